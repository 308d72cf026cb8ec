"""The CPU kernels against the reference in float64: every instruction set, dtype and formula."""

import pytest
import torch
import torch_ws
from accuracy import assert_close, layer_norm_errors
from grids import DTYPES, LENGTHS
from torch_ws import Formula, reference, standardize


def derived(function, tensors, grad, **kwargs):
    """The result for (weight, gain, shift), of which some may be None, and its gradients."""
    inputs = [None if t is None else t.detach().requires_grad_() for t in tensors]
    out = function(*inputs, **kwargs)
    return out.detach(), *torch.autograd.grad(out, [t for t in inputs if t is not None], grad)


def expected(tensors, grad, **kwargs):
    doubles = [None if t is None else t.double() for t in tensors]
    return derived(reference.standardize, doubles, grad.double(), **kwargs)


@pytest.mark.parametrize("dtypes", DTYPES, ids=lambda d: f"{d[0]}-{d[1]}".replace("torch.", ""))
@pytest.mark.parametrize("cols", LENGTHS)
def test_lengths(isa, dtypes, cols):
    weight_dtype, out_dtype = dtypes
    weight = (torch.randn(5, cols) * 0.05 + 0.01).to(weight_dtype)
    grad = torch.randn(5, cols).to(out_dtype)
    out, grad_weight = derived(standardize, [weight], grad, dtype=out_dtype)
    assert out.dtype == out_dtype and grad_weight.dtype == weight_dtype
    judge, judge_grad = expected([weight], grad)
    peers = layer_norm_errors(weight, grad)
    assert_close(out, judge, peers[0])
    if cols == 1:
        assert torch.equal(grad_weight, torch.zeros_like(weight))
    elif cols <= 3:
        # Mean and variance take two of the values' degrees of freedom: two values standardize to -1
        # and 1 whatever they are. The gradient is then what is left of a difference of nearly equal
        # terms, so it is judged against those terms, grad / std.
        terms = grad.double().abs().max() / weight.double().std(1, correction=0).min()
        error = (grad_weight.double() - judge_grad).abs().max() / terms
        assert error <= 2 * peers[1] + 4 * torch.finfo(weight_dtype).eps
    else:
        assert_close(grad_weight, judge_grad, peers[1])


@pytest.mark.parametrize("eps_mode", ["std", "var", "clamp"])
@pytest.mark.parametrize("correction", [0, 1])
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("affine", ["", "gain", "shift", "gain shift"])
def test_formulas(isa, eps_mode, correction, center, affine):
    # eps within the range of the channels' variances, so that "clamp" takes both its branches;
    # fan_in scale and gamma reach the kernel as one factor
    formula = Formula(
        eps=2e-3, eps_mode=eps_mode, correction=correction, center=center, scale="fan_in", gamma=1.7
    )
    weight = torch.randn(64, 33) * torch.linspace(0.01, 0.1, 64)[:, None] + 0.02
    vectors = [torch.randn(64) if name in affine else None for name in ("gain", "shift")]
    grad = torch.randn(64, 33) + 0.5
    actual = derived(standardize, [weight, *vectors], grad, formula=formula)
    judges = expected([weight, *vectors], grad, formula=formula)
    peers = layer_norm_errors(weight, grad)
    for i, (a, e) in enumerate(zip(actual, judges, strict=True)):
        assert_close(a, e, peers[min(i, 1)])


def test_long_channel_does_not_lose_digits(isa):
    # one channel of 4 M elements: a plain float32 sum would be off by far more than F.layer_norm's
    weight = torch.rand(1, 1 << 22)
    peer, _ = layer_norm_errors(weight, torch.ones_like(weight))
    assert_close(standardize(weight), reference.standardize(weight.double()), peer)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_16_bit_value_converts_as_pytorch_does(isa, dtype):
    # N = 2, center=False and scale d make the kernel the identity on the first of two elements:
    # all finite bit patterns go in and come out.
    bits = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)
    values = bits.view(dtype)
    values = values[values.isfinite()]
    one_by_one = Formula(eps=1.0, eps_mode="clamp", center=False)
    weight = torch.stack([values, torch.zeros_like(values)], dim=1)
    small = weight.float().square().sum(1) <= 2  # var <= eps: d = 1, so out = weight
    out = standardize(weight, formula=one_by_one)
    assert small.sum() > 1 << 14
    assert torch.equal(out[small], weight[small])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrowing_rounds_as_pytorch_does(isa, dtype):
    # every boundary between two neighbours of the 16-bit type, and one ulp to either side
    values = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype)
    values = values[values.isfinite()].double().sort().values.unique()
    middles = ((values[1:] + values[:-1]) / 2).float()
    inf = torch.tensor(float("inf"))
    candidates = torch.cat([middles, torch.nextafter(middles, inf), torch.nextafter(middles, -inf)])
    candidates = candidates[candidates.abs() < 1e18]  # their squares stay finite
    weight = torch.zeros(candidates.numel(), 2)
    weight[:, 0] = candidates
    formula = Formula(eps=1e37, eps_mode="clamp", center=False, gamma=float(1e37**0.5))
    full = standardize(weight, formula=formula)  # gamma / d is 1 up to rounding, the same in both
    assert torch.equal(standardize(weight, formula=formula, dtype=dtype), full.to(dtype))


@pytest.mark.parametrize("std", [1e-12, 1e-6, 1e6, 1e12])
def test_scale_of_the_weights_does_not_matter(isa, std):
    # d^3 in the derivative would leave float32's range long before the gradient does
    weight, grad = torch.randn(4, 100) * std, torch.randn(4, 100)
    formula = Formula(eps=0.0, eps_mode="var")
    actual = derived(standardize, [weight], grad, formula=formula)
    judges = expected([weight], grad, formula=formula)
    assert_close(actual[0], judges[0], 1e-6)
    assert_close(actual[1] * std, judges[1] * std, 1e-6)


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


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_bitwise_the_same_for_any_number_of_threads(isa, threads):
    inputs = torch.randn(97, 1000), *torch.randn(2, 97)  # 97: no number of threads divides it
    grad, before = torch.randn(97, 1000), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = derived(standardize, inputs, grad)
        torch.set_num_threads(threads)
        for _ in range(3):
            again = derived(standardize, inputs, grad)
            assert all(torch.equal(a, b) for a, b in zip(again, alone, strict=True))
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


def test_inputs_are_left_alone(isa):
    weight, gain, shift = torch.randn(8, 33), torch.randn(8), torch.randn(8)
    copies = weight.clone(), gain.clone(), shift.clone()
    standardize(weight, gain, shift)
    assert all(torch.equal(a, b) for a, b in zip((weight, gain, shift), copies, strict=True))


def test_a_device_without_kernels_uses_the_reference():
    weight = torch.randn(4, 5, device="meta", requires_grad=True)
    out = torch_ws.standardize(weight, dtype=torch.bfloat16)
    assert (out.device.type, out.dtype, out.shape) == ("meta", torch.bfloat16, (4, 5))
