"""The norms of the rows of the weights' gradients, for which nothing as large is written."""

import pytest
import torch
from grids import DTYPES, LENGTHS
from optimizer_steps import kernel_gradient, scalars_of
from torch_ws import Formula, formulas, reference
from torch_ws.core.update import raw_norms_many


def norms_of(weights, grads, gains=None, formula="paper", channel_dim=0, affine=False):
    """Squared norms, then with `affine` the gradients of gains and of shifts, a list of each."""
    count = len(weights)
    scalars = [float(n) for w in weights for n in scalars_of(formula, w, channel_dim)]
    arguments = (gains or [None] * count, [channel_dim] * count, scalars, affine)
    results = raw_norms_many(grads, weights, *arguments)
    assert len(results) == (3 if affine else 1) * count
    return [results[k : k + count] for k in range(0, len(results), count)]


def assert_norms(squared, gradient):
    """By PyTorch's own error in the sum of the same squares. `gradient`: rows, of ws::backward."""
    numbers = torch.finfo(squared.dtype)
    expected = gradient.double().square().sum(1)
    wide = gradient if gradient.dtype == torch.float64 else gradient.float()
    peer = (wide.square().sum(1).double() - expected).abs()
    # short rows by a few roundings, as each lane is summed up; 16-bit gradients and norms have one
    roundings = 8 if numbers.bits > 16 else 2
    smallest = numbers.smallest_normal * numbers.eps
    error = (squared.double() - expected).abs()
    assert (error <= 2 * peer + roundings * numbers.eps * expected + smallest).all()


@pytest.mark.parametrize("dtypes", DTYPES, ids=lambda d: f"{d[0]}-{d[1]}".replace("torch.", ""))
def test_lengths(isa, dtypes):
    weight_dtype, out_dtype = dtypes
    for cols in LENGTHS:
        weight = (torch.randn(5, cols) * 0.3).to(weight_dtype)
        grad = (torch.randn(5, cols) * 0.1).to(out_dtype)
        ((squared,),) = norms_of([weight], [grad])
        assert squared.dtype == weight_dtype and squared.shape == (5,)
        assert_norms(squared, kernel_gradient(grad, weight))


@pytest.mark.parametrize("formula", [*formulas, Formula(eps=1e-3, eps_mode="var", correction=1)])
def test_formulas(isa, formula):
    # weights across the range of every eps; the gradients of gain and shift are backward's
    weight = torch.randn(16, 72) * torch.logspace(-3, 0, 16)[:, None]
    grad, gain = torch.randn_like(weight), torch.randn(16)
    (squared,), *affine = norms_of([weight], [grad], [gain], formula, affine=True)
    assert_norms(squared, kernel_gradient(grad, weight, gain, formula))
    expected = torch.ops.ws.backward_affine(grad, weight, gain, 0, *scalars_of(formula, weight))
    assert all(torch.equal(a, e) for (a,), e in zip(affine, expected[1:], strict=True))


@pytest.mark.parametrize("angle", [1e-1, 1e-3, 1e-5])
def test_a_gradient_nearly_along_the_weight(isa, angle):
    # Of which little is left. In the closed form it is the difference of two sums (derivation.md).
    weight = torch.randn(4, 576)
    grad = weight + angle * torch.randn(4, 576)
    ((squared,),) = norms_of([weight], [grad])
    assert_norms(squared, kernel_gradient(grad, weight))
    leaf = weight.double().requires_grad_()
    out = reference.standardize(leaf)
    (gradient,) = torch.autograd.grad(out, leaf, grad.double())
    # the gradient's own error, from terms of size 1: the closed form's would be that over angle
    error = (squared.double().sqrt() - gradient.norm(dim=1)).abs() / gradient.norm(dim=1)
    assert error.max() <= 2e-7 / angle


@pytest.mark.parametrize(
    "make, channel_dim",
    [
        (lambda: torch.randn(6, 12, 3, 3), 1),  # gathered
        (lambda: torch.randn(40, 33), 1),  # runs of single elements
        (lambda: torch.randn(18, 7, 3, 3)[::2], 0),
        (lambda: torch.randn(1, 7, 3).expand(9, 7, 3), 0),
        (lambda: torch.randn(9, 1, 1).expand(9, 7, 3), 0),  # constant rows
    ],
)
def test_layouts(isa, make, channel_dim):
    weight = make()
    rows = weight.movedim(channel_dim, 0).contiguous()
    grad = torch.randn_like(rows)
    (squared,), (grad_gain,), (grad_shift,) = norms_of(
        [weight], [grad.movedim(0, channel_dim)], channel_dim=channel_dim, affine=True
    )
    expected = norms_of([rows], [grad], affine=True)
    for a, (e,) in zip((squared, grad_gain, grad_shift), expected, strict=True):
        assert torch.equal(a, e)
    assert_norms(squared, kernel_gradient(grad, rows).flatten(1))


def test_rows_of_every_magnitude(isa):
    # squares of the weight or the gradient leave float32's range, those of the result do not
    powers = torch.tensor([(-30, -30), (-22, -20), (0, -15), (0, 15), (20, 20), (30, 30)]).double()
    weight = (torch.randn(6, 147) * 10 ** powers[:, :1]).float()
    grad = (torch.randn(6, 147) * 10 ** powers[:, 1:]).float()
    formula = Formula(eps=0.0, eps_mode="var")
    ((squared,),) = norms_of([weight], [grad], formula=formula)
    assert_norms(squared, kernel_gradient(grad, weight, formula=formula))


@pytest.mark.parametrize("where", ["weight", "grad"])
def test_a_broken_row_stays_its_own(isa, where):
    weight, grad = torch.randn(7, 147), torch.randn(7, 147)
    ((expected,),) = norms_of([weight], [grad])
    (weight if where == "weight" else grad)[3, 100] = float("nan")
    ((squared,),) = norms_of([weight], [grad])
    assert squared[3].isnan()
    others = [0, 1, 2, 4, 5, 6]
    assert torch.equal(squared[others], expected[others])


@pytest.mark.parametrize("threads", [2, 7])
def test_many_weights_on_any_number_of_threads(isa, threads):
    shapes, before = [(97, 1000), (8, 8), (331, 40)], torch.get_num_threads()
    weights, grads, gains = ([torch.randn(s[:dims]) for s in shapes] for dims in (2, 2, 1))
    try:
        torch.set_num_threads(threads)
        together = norms_of(weights, grads, gains, affine=True)
        torch.set_num_threads(1)
        for i, (weight, grad, gain) in enumerate(zip(weights, grads, gains, strict=True)):
            for many, (single,) in zip(
                together, norms_of([weight], [grad], [gain], affine=True), strict=True
            ):
                assert torch.equal(many[i], single)
    finally:
        torch.set_num_threads(before)


REFUSED = {
    "grad's shape": ({"grads": [torch.randn(9, 4)]}, "grad must have the weight's shape"),
    "grad's dtype": ({"grads": [torch.randn(4, 9).double()]}, "grad must have dtype"),
    "gain": ({"gains": [torch.randn(9)]}, "gain must have shape"),
    "lists": ({"gains": []}, "gains must have one entry a weight"),
    "formulas": ({"formulas": [1e-5]}, "formulas must have 5 numbers a weight"),
    "weight": ({"weights": [torch.ones(4, 9, dtype=torch.int32)]}, "weight must have dtype"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_in_words(case):
    given, words = REFUSED[case]
    arguments = {"grads": [torch.randn(4, 9)], "weights": [torch.randn(4, 9)], "gains": [None]}
    arguments |= {"channel_dims": [0], "formulas": [1e-5, 0, 0, 1, 1.0], "affine": False}
    with pytest.raises(ValueError, match=words):
        raw_norms_many(**arguments | given)
