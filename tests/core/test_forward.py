"""The CPU kernels against the reference in float64: every instruction set, dtype and formula."""

import pytest
import torch
import torch_ws
from accuracy import assert_close, layer_norm_errors
from grids import DTYPES, LENGTHS
from torch_ws import Formula, reference, standardize


def expected(weight, *args, **kwargs):
    return reference.standardize(weight.double(), *args, **kwargs)


@pytest.mark.parametrize("dtypes", DTYPES, ids=lambda d: f"{d[0]}-{d[1]}".replace("torch.", ""))
@pytest.mark.parametrize("cols", LENGTHS)
def test_lengths(isa, dtypes, cols):
    weight_dtype, out_dtype = dtypes
    weight = (torch.randn(5, cols) * 0.05 + 0.01).to(weight_dtype)
    out = standardize(weight, dtype=out_dtype)
    peer, _ = layer_norm_errors(weight, torch.ones(5, cols, dtype=out_dtype))
    assert out.dtype == out_dtype
    assert_close(out, expected(weight), peer)


@pytest.mark.parametrize("eps_mode", ["std", "var", "clamp"])
@pytest.mark.parametrize("correction", [0, 1])
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("affine", ["", "gain", "shift", "gain shift"])
def test_formulas(isa, eps_mode, correction, center, affine):
    # eps of the variance's size, so that its place in the formula shows; fan_in scale and gamma
    # reach the kernel as one factor
    formula = Formula(
        eps=2e-3, eps_mode=eps_mode, correction=correction, center=center, scale="fan_in", gamma=1.7
    )
    weight = torch.randn(64, 33) * torch.linspace(0.01, 0.1, 64)[:, None] + 0.02
    gain = torch.randn(64) if "gain" in affine else None
    shift = torch.randn(64) if "shift" in affine else None
    out = standardize(weight, gain, shift, formula=formula)
    peer, _ = layer_norm_errors(weight, torch.ones(64, 33))
    gain, shift = (None if t is None else t.double() for t in (gain, shift))
    assert_close(out, expected(weight, gain, shift, formula=formula), peer)


def test_long_channel_does_not_lose_digits(isa):
    # one channel of 4 M elements: a plain float32 sum would be off by far more than F.layer_norm's
    weight = torch.rand(1, 1 << 22)
    peer, _ = layer_norm_errors(weight, torch.ones_like(weight))
    assert_close(standardize(weight), expected(weight), peer)


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


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_bitwise_the_same_for_any_number_of_threads(isa, threads):
    weight = torch.randn(97, 1000)  # 97: no number of threads here divides it
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = standardize(weight)
        torch.set_num_threads(threads)
        for _ in range(3):
            assert torch.equal(standardize(weight), alone)
    finally:
        torch.set_num_threads(before)


def test_inputs_are_left_alone(isa):
    weight, gain, shift = torch.randn(8, 33), torch.randn(8), torch.randn(8)
    copies = weight.clone(), gain.clone(), shift.clone()
    standardize(weight, gain, shift)
    assert all(torch.equal(a, b) for a, b in zip((weight, gain, shift), copies, strict=True))


def test_a_device_without_kernels_uses_the_reference():
    weight = torch.randn(4, 5, device="meta", requires_grad=True)
    out = torch_ws.standardize(weight, dtype=torch.bfloat16)
    assert (out.device.type, out.dtype, out.shape) == ("meta", torch.bfloat16, (4, 5))
