"""Degenerate rows, and what must come out of them whichever way a weight is standardized.

A case is function(run, cols, dtypes): it makes rows of that length and holds what
run(weight, grad, formula) gives for them to what it says. That is a dict of RESULTS, for gains of 1
and shifts of 0. The ways are in core/test_degenerate.py and cuda/test_cuda_degenerate.py.
"""

import torch
from accuracy import assert_close, relative_error
from torch_ws import Formula, formulas, reference

RESULTS = ("out", "grad_weight", "grad_gain", "grad_shift")

# Every eps_mode with and without an eps, both corrections, both scales, and one without a center
FORMULAS = [formulas[name] for name in ("paper", "qiao", "timm", "nfnet", "weight_norm")]
FORMULAS += [Formula(eps=0.0, eps_mode=mode) for mode in ("std", "var", "clamp")]


def by_autograd(function):
    """The way of function(weight, gain, shift, formula=, dtype=) and its derivative."""

    def run(weight, grad, formula):
        vectors = weight.new_ones(len(weight)), weight.new_zeros(len(weight))
        inputs = [t.detach().requires_grad_() for t in (weight, *vectors)]
        out = function(*inputs, formula=formula, dtype=grad.dtype)
        return dict(
            zip(RESULTS, (out.detach(), *torch.autograd.grad(out, inputs, grad)), strict=True)
        )

    return run


def constant_rows(run, cols, dtypes):
    """Zeros; the gradient is (g - mean(g)) / d, and 0 where d is 0. Without a center: of zeros."""
    top = torch.finfo(dtypes[0])
    # a sum that is no multiple of the value in floating point, or infinite, or lost, or 0
    values = torch.tensor([0.1, 1e4 / 3, top.max, top.smallest_normal, 0], dtype=dtypes[0])
    grad = (1e-3 * torch.randn(5, cols)).to(dtypes[1])  # 1 / d is up to 1e5
    for formula in FORMULAS:
        eps, mode, _, center, scale = formula.arguments(cols)
        weight = (values if center else 0 * values)[:, None].repeat(1, cols)
        result = run(weight, grad, formula)
        assert not result["out"].any() and not result["grad_gain"].any()
        if eps == 0:
            assert not result["grad_weight"].any()
        else:
            expected = grad.double() - (grad.double().mean(1, keepdim=True) if center else 0)
            expected *= scale / reference.denominator(torch.zeros(()).double(), eps, mode)
            error = relative_error(result["grad_weight"], expected)
            assert error <= 4 * torch.finfo(dtypes[0]).eps


def constant_gradients(run, cols, dtypes):
    """No gradient but the shift's: of ordinary rows, of constant ones, and without a gradient."""
    ends = torch.finfo(dtypes[1])
    values = [0, 1, 0.1, ends.smallest_normal, ends.max / 2 / cols]
    weights = torch.randn(5, cols), torch.full((5, cols), 0.1), torch.full((5, cols), 1e4 / 3)
    for formula in FORMULAS:
        for weight in weights:
            grad = torch.tensor(values, dtype=dtypes[1])[:, None].repeat(1, cols)
            result = run(weight.to(dtypes[0]), grad, formula)
            rows = slice(None) if formula.center else slice(1)
            assert not result["grad_weight"][rows].any() and not result["grad_gain"][rows].any()
            assert not result["grad_shift"][0].any()
            assert relative_error(result["grad_shift"], grad.double().sum(1)) <= 1e-2


def rows_of_one_element(run, cols, dtypes):
    """Zeros, and no gradient but the shift's, which is g."""
    weight, grad = torch.randn(20, 1).to(dtypes[0]), torch.randn(20, 1).to(dtypes[1])
    for formula in FORMULAS:
        if formula.center and formula.correction == 0:
            result = run(weight, grad, formula)
            assert not any(result[name].any() for name in RESULTS[:3])
            assert torch.equal(result["grad_shift"], grad[:, 0].to(dtypes[0]))


def nan_and_inf(run, cols, dtypes):
    """They spoil their own row, all of it, and no other."""
    rows = 19 if cols < 64 else 3  # short ones share a warp
    others = torch.arange(rows) != 1
    for formula in (formulas["paper"], formulas["weight_norm"]):
        tensors = torch.randn(rows, cols).to(dtypes[0]), torch.randn(rows, cols).to(dtypes[1])
        clean = run(*tensors, formula)
        # the first element is the one that the others are less
        for bad, column in ("nan", 0), ("nan", -1), ("inf", 0), ("-inf", -1):
            for spoilt in tensors:
                before = spoilt[1, column].item()
                spoilt[1, column] = float(bad)
                result = run(*tensors, formula)
                spoilt[1, column] = before
                for name in RESULTS:
                    assert torch.equal(result[name][others], clean[name][others])
                spoilt_results = ["grad_weight"] + ["out"] * (spoilt is tensors[0])
                for of_row in (result[name][1] for name in spoilt_results):
                    if bad == "nan":
                        assert of_row.isnan().all()
                    elif formula.center:
                        assert not of_row.isfinite().any()
                    else:  # what is divided by an infinite norm is 0
                        assert of_row.isnan().any()


def far_from_zero(run, cols, dtypes):
    """|mean| / std of the weight, or of the gradient too, is large: no digit is lost to it."""
    if dtypes[1].itemsize < 4:
        return  # such rows are constant in 16 bits
    formula = formulas["paper"]
    for of_weight, of_grad in [(1e2, 0), (1e4, 0), (1e6, 0), (1e3, 1e3), (1e5, 1e5)]:
        weight, grad = torch.randn(3, cols) + of_weight, torch.randn(3, cols) - of_grad
        weight, grad = weight.to(dtypes[0]), grad.to(dtypes[1])
        result = run(weight, grad, formula)
        judge = by_autograd(reference.standardize)(weight.double(), grad.double(), formula)
        for name in ("out", "grad_weight"):
            # F.layer_norm loses most digits here, which is no measure
            assert_close(result[name], judge[name], 1e-6)


CASES = {
    case.__name__: case
    for case in (
        constant_rows,
        constant_gradients,
        rows_of_one_element,
        nan_and_inf,
        far_from_zero,
    )
}
