"""Values at the ends of their dtype: right wherever the exact result fits, and never NaN.

Scale-invariant weights under weight decay shrink without bound. The squares of float32 values are
out of float32's range from 1.8e19 on, lose digits below 1e-19, and are 0 below 2.6e-23.
"""

import pytest
import torch
from torch_ws import Formula, formulas, reference, standardize, standardize_many

# Powers of ten. float32 has all its digits from 1.2e-38 to 3.4e38, and fewer and fewer to 1.4e-45.
WEIGHTS = (-42, -38, -30, -22, -20, -18, -2, 10, 17, 19, 20, 30, 37)
GRADS = (-42, -30, -20, 0, 20, 30, 37)
NO_EPS = Formula(eps=0.0, eps_mode="var")
FORMULAS = {name: formulas[name] for name in ("paper", "qiao", "timm", "nfnet", "weight_norm")}
FORMULAS |= {"no eps": NO_EPS, "no eps, std": Formula(eps=0.0), "large eps": Formula(eps=1e25)}
every_formula = pytest.mark.parametrize("formula", FORMULAS.values(), ids=FORMULAS)


def channels(powers, cols=200):
    return torch.randn(len(powers), cols) * 10.0 ** torch.tensor(powers)[:, None].double()


def assert_right(actual, expected, terms=None):
    """By channel, where the exact result fits the dtype.

    `expected` is float64. The error is relative to the channel's largest value, or, for sums, to
    the sum of the `terms`, which may cancel.
    """
    numbers = torch.finfo(actual.dtype)
    expected = expected.view(len(expected), -1)
    actual = actual.double().view(expected.shape)
    scale = expected.abs().amax(1) if terms is None else terms.abs().sum(1)
    assert not actual[expected.isfinite().all(1)].isnan().any()
    fits = scale < numbers.max
    error = (actual - expected)[fits].abs().amax(1)
    # one step of the subnormal numbers for each rounding
    roundings = 2 if terms is None else terms.shape[1]
    smallest = roundings * numbers.smallest_normal * numbers.eps
    assert (error <= (1e-6 + numbers.eps) * scale[fits] + smallest).all()
    return fits.sum()


def assert_all_right(function, inputs, grad, formula, **kwargs):
    """Result and gradients of function(weight, gain, shift), where the latter are not None."""

    def derived(function, inputs, grad, **kwargs):
        inputs = [t if t is None else t.detach().requires_grad_() for t in inputs]
        out = function(*inputs)
        grads = torch.autograd.grad(out, [t for t in inputs if t is not None], grad, **kwargs)
        return out.detach(), *grads

    actual = derived(function, inputs, grad, **kwargs)
    doubles, grad = [t if t is None else t.double() for t in inputs], grad.double()
    judge = derived(lambda *t: reference.standardize(*t, formula=formula), doubles, grad)
    w_hat = reference.standardize(doubles[0], formula=formula)
    terms = (None, None, grad * w_hat, grad)
    return [assert_right(*t) for t in zip(actual, judge, terms, strict=False)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("out_dtype", [torch.float32, torch.bfloat16])
@every_formula
def test_weights(isa, formula, dtype, out_dtype):
    if (dtype, out_dtype) == (torch.bfloat16, torch.float32):
        pytest.skip("no such kernel")
    weight = channels(WEIGHTS).to(dtype)
    gain, shift = channels((0,), len(WEIGHTS))[0].to(dtype), torch.ones(len(WEIGHTS)).to(dtype)
    grad = torch.randn(weight.shape).to(out_dtype)
    for inputs in ((weight, None, None), (weight, gain, shift)):
        fit = assert_all_right(
            lambda *t: standardize(*t, formula=formula, dtype=out_dtype), inputs, grad, formula
        )
        assert fit[0] == len(WEIGHTS)


@every_formula
def test_gradients(isa, formula):
    # every magnitude of weights with every one of gradients, and gains at both ends
    powers = [(w, g) for w in WEIGHTS for g in GRADS]
    weight, grad = (channels(p).float() for p in zip(*powers, strict=True))
    for size in (1.0, 1e-38, 1e37):
        gain, shift = torch.randn(len(weight)) * size, torch.randn(len(weight))
        assert_all_right(
            lambda *t: standardize(*t, formula=formula), (weight, gain, shift), grad, formula
        )


@pytest.mark.parametrize("power", [-1000, -600, 600, 1000])
def test_float64_in_units_of_other_size(isa, power):
    # no judge has a wider range, but a power of two changes no digit
    weight, grad = torch.randn(2, 4, 100, dtype=torch.float64)
    gain = torch.randn(4, dtype=torch.float64)
    unit = 2.0**power
    for formula in (NO_EPS, Formula(eps=0.0, center=False)):

        def grads(weight, grad, formula=formula):
            inputs = [weight.requires_grad_(), gain.clone().requires_grad_()]
            out = standardize(*inputs, formula=formula)
            return out.detach(), *torch.autograd.grad(out, inputs, grad)

        out, grad_weight, grad_gain = grads(weight.clone(), grad)
        for of_weight, of_grad in ((unit, 1.0), (unit, unit), (1.0, unit)):
            scaled = grads(weight * of_weight, grad * of_grad)
            torch.testing.assert_close(scaled[0], out)
            torch.testing.assert_close(scaled[1] / of_grad * of_weight, grad_weight)
            torch.testing.assert_close(scaled[2] / of_grad, grad_gain)


def test_the_same_bits_however_it_is_called(isa):
    weight, grad = channels(WEIGHTS * 7, 900).float(), channels(GRADS * 13, 900).float()

    def run(function, weight, grad):
        weight = weight.clone().requires_grad_()
        out = function(weight)
        return out.detach(), *torch.autograd.grad(out, weight, grad)

    def in_a_list(weight):
        return torch.cat(standardize_many(weight.split([40, 51])))

    def by_threads(weight):
        torch.set_num_threads(3)
        return standardize(weight)

    def runs(tensor):  # of nine elements, as in the weight of a transposed convolution
        return tensor.view(91, 100, 9).transpose(0, 1).contiguous()

    alone = [run(standardize, w[None], g[None]) for w, g in zip(weight, grad, strict=True)]
    expected = [torch.cat(tensors) for tensors in zip(*alone, strict=True)]
    of_runs = run(lambda w: standardize(w, channel_dim=1), runs(weight), runs(grad))
    before = torch.get_num_threads()
    try:
        actual = [
            run(in_a_list, weight, grad),
            run(by_threads, weight, grad),
            [t.transpose(0, 1).reshape(91, 900) for t in of_runs],
        ]
    finally:
        torch.set_num_threads(before)
    for tensors in actual:
        for tensor, alone in zip(tensors, expected, strict=True):
            torch.testing.assert_close(tensor, alone, rtol=0, atol=0, equal_nan=True)


# --- the plain-PyTorch path, for weights and standardized weights that have all their digits

REFERENCE = [name for name in FORMULAS if name != "large eps"]
of_the_reference = pytest.mark.parametrize("formula", [FORMULAS[name] for name in REFERENCE])


def every_pair(weights, grads):
    powers = [(w, g) for w in weights for g in grads]
    return [channels(p).float() for p in zip(*powers, strict=True)]


@of_the_reference
def test_reference(formula):
    # products with the gradient and their sums are PyTorch's here, and have to fit
    weight, grad = every_pair(WEIGHTS[1:], (-30, 0, 30))
    inputs = weight, *torch.randn(2, len(weight))
    assert_all_right(lambda *t: reference.standardize(*t, formula=formula), inputs, grad, formula)

    def vmapped(*inputs):
        one_by_one = [t[:, None] for t in inputs]
        return torch.vmap(lambda *t: standardize(*t, formula=formula))(*one_by_one)[:, 0]

    assert_all_right(vmapped, inputs, grad, formula)


@of_the_reference
def test_differentiable_gradients(formula):
    weight, grad = every_pair(WEIGHTS[1:], GRADS)
    inputs = weight, *torch.randn(2, len(weight))
    assert_all_right(
        lambda *t: standardize(*t, formula=formula), inputs, grad, formula, create_graph=True
    )
