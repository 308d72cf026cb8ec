"""The CPU backward kernels against autograd through the reference in float64."""

import pytest
import torch
from accuracy import assert_close, layer_norm_errors
from grids import DTYPES, LENGTHS
from torch_ws import Formula, reference, standardize


def expected_grads(weight, grad, gain=None, shift=None, **kwargs):
    inputs = [
        None if t is None else t.detach().double().requires_grad_() for t in (weight, gain, shift)
    ]
    out = reference.standardize(*inputs, **kwargs)
    present = [t for t in inputs if t is not None]
    return torch.autograd.grad(out, present, grad.double())


@pytest.mark.parametrize("dtypes", DTYPES, ids=lambda d: f"{d[0]}-{d[1]}".replace("torch.", ""))
@pytest.mark.parametrize("cols", LENGTHS)
def test_lengths(isa, dtypes, cols):
    weight_dtype, out_dtype = dtypes
    weight = (torch.randn(5, cols) * 0.05 + 0.01).to(weight_dtype).requires_grad_()
    grad = torch.randn(5, cols).to(out_dtype)
    standardize(weight, dtype=out_dtype).backward(grad)
    assert weight.grad.dtype == weight_dtype
    (grad_weight,) = expected_grads(weight, grad)
    _, peer = layer_norm_errors(weight, grad)
    if cols == 1:
        assert torch.equal(weight.grad, torch.zeros_like(weight))
    elif cols <= 3:
        # Mean and variance take two of the values' degrees of freedom: two values standardize to -1
        # and 1 whatever they are. The gradient is then what is left of a difference of nearly equal
        # terms, so it is judged against those terms, grad / std.
        terms = grad.double().abs().max() / weight.detach().double().std(1, correction=0).min()
        error = (weight.grad.double() - grad_weight).abs().max() / terms
        assert error <= 2 * peer + 4 * torch.finfo(weight_dtype).eps
    else:
        assert_close(weight.grad, grad_weight, peer)


@pytest.mark.parametrize("eps_mode", ["std", "var", "clamp"])
@pytest.mark.parametrize("correction", [0, 1])
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("affine", ["", "gain", "shift", "gain shift"])
def test_formulas(isa, eps_mode, correction, center, affine):
    # eps within the range of the channels' variances, so that "clamp" takes both its branches
    formula = Formula(eps=2e-3, eps_mode=eps_mode, correction=correction, center=center, gamma=1.7)
    weight = torch.randn(64, 33) * torch.linspace(0.01, 0.1, 64)[:, None] + 0.02
    gain = torch.randn(64).requires_grad_() if "gain" in affine else None
    shift = torch.randn(64).requires_grad_() if "shift" in affine else None
    weight.requires_grad_()
    grad = torch.randn(64, 33) + 0.5
    present = [t for t in (weight, gain, shift) if t is not None]
    actual = torch.autograd.grad(standardize(weight, gain, shift, formula=formula), present, grad)
    _, peer = layer_norm_errors(weight, grad)
    for a, e in zip(
        actual, expected_grads(weight, grad, gain, shift, formula=formula), strict=True
    ):
        assert_close(a, e, peer)


@pytest.mark.parametrize("std", [1e-12, 1e-6, 1e6, 1e12])
def test_scale_of_the_weights_does_not_matter(isa, std):
    # d^3 in the derivative would leave float32's range long before the gradient does
    weight = (torch.randn(4, 100) * std).requires_grad_()
    grad = torch.randn(4, 100)
    formula = Formula(eps=0.0, eps_mode="var")
    (actual,) = torch.autograd.grad(standardize(weight, formula=formula), weight, grad)
    (expected,) = expected_grads(weight, grad, formula=formula)
    assert_close(actual * std, expected * std, 1e-6)


@pytest.mark.parametrize("offset", [0, 1])  # aligned to a vector, so stored past the caches; or not
def test_a_large_gradient_is_that_of_its_parts(isa, offset):
    memory = torch.randn(2, 1100 * 1024 + 1)[:, offset : offset + 1100 * 1024]
    weight, grad = (t.view(1100, 1024) for t in memory)  # 4.3 MB, more than kStreamedBytes
    arguments = (None, 0, 1e-5, 0, 0, True, 1.0)
    whole = torch.ops.ws.backward(grad, weight, *arguments)
    parts = [
        torch.ops.ws.backward(g, w, *arguments)
        for g, w in zip(grad.split(100), weight.split(100), strict=True)
    ]
    assert torch.equal(whole, torch.cat(parts))


def test_expanded_gradient(isa):
    # sum().backward() hands over a gradient of stride 0
    weight = torch.randn(6, 7, 3, 3, requires_grad=True)
    gain = torch.randn(6, requires_grad=True)
    actual = torch.autograd.grad(standardize(weight, gain).sum(), (weight, gain))
    expected = torch.autograd.grad(
        standardize(weight, gain), (weight, gain), torch.ones(6, 7, 3, 3)
    )
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


@pytest.mark.parametrize("threads", [2, 7])
def test_bitwise_the_same_for_any_number_of_threads(isa, threads):
    weight, gain, shift = torch.randn(97, 1000), torch.randn(97), torch.randn(97)
    inputs = [t.requires_grad_() for t in (weight, gain, shift)]
    grad = torch.randn(97, 1000)

    def grads():
        return torch.autograd.grad(standardize(*inputs), inputs, grad)

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = grads()
        torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for a, b in zip(grads(), alone, strict=True))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("frozen", ["weight", "gain", "shift"])
def test_only_what_needs_a_gradient_gets_one(frozen):
    inputs = {
        "weight": torch.randn(4, 9),
        "gain": torch.randn(4),
        "shift": torch.randn(4),
    }
    for name, tensor in inputs.items():
        tensor.requires_grad_(name != frozen)
    standardize(**inputs).square().sum().backward()
    for name, tensor in inputs.items():
        assert (tensor.grad is None) == (name == frozen)


def test_nothing_of_the_weights_size_is_saved_but_the_weight():
    weight = torch.randn(64, 64, 3, 3, requires_grad=True)
    saved = []

    def pack(tensor):
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        standardize(weight)
    assert [t.data_ptr() for t in saved] == [weight.data_ptr()]
