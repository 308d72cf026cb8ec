"""The CUDA kernels on one weight, on a GPU. test_cuda_stand_in.py runs them without one."""

import pytest
import torch
import torch_ws
from cuda_check import check, every_dtype, names_of, needs_gpu
from torch_ws import Formula, standardize

pytestmark = needs_gpu

# Rows that 16 bytes do not divide: depthwise, first and stem convolutions.
AWKWARD = [9, 25, 27, 49, 147]


def test_the_kernels_are_loaded():
    assert torch_ws.info()["cuda_reason"] is None


@pytest.mark.parametrize("direction", ["forward", "backward"])
@every_dtype
def test_every_entry_of_the_launch_table(dtypes, direction):
    from gpu.launch_table import ROWS, lengths  # needs the CUDA library

    for rows in ROWS:
        for cols in lengths(direction, *names_of(dtypes), rows):
            weight = (torch.randn(rows, cols, device="cuda") * 0.05 + 0.01).to(dtypes[0])
            check(weight, (torch.randn(rows, cols, device="cuda") + 0.5).to(dtypes[1]))


@pytest.mark.parametrize("rows", [1, 7, 4096])  # one, a block that is not full, more than the SMs
@pytest.mark.parametrize("cols", AWKWARD)
@every_dtype
def test_awkward_lengths(dtypes, cols, rows):
    weight = (torch.randn(rows, cols, device="cuda") * 0.05 + 0.01).to(dtypes[0])
    check(weight, (torch.randn(rows, cols, device="cuda") + 0.5).to(dtypes[1]))


@pytest.mark.parametrize("rows", [1, 3, 64, 500])  # fewer rows than SMs, and more
@pytest.mark.parametrize("cols", [18432, 65536, 65537, 300_000])  # 3-D, linear, odd, and longer
def test_long_rows(cols, rows):
    weight = torch.randn(rows, cols, device="cuda") * 0.05 + 0.01
    check(weight, torch.randn(rows, cols, device="cuda") + 0.5)


@pytest.mark.parametrize("cols", [*AWKWARD, 576, 4608, 70_000])  # of every team, and split rows
@every_dtype
def test_gain_and_shift(dtypes, cols):
    weight = torch.randn(24, cols, device="cuda").to(dtypes[0])
    # with a part along the weight: a gain's gradient is otherwise the rest of sums that cancel, and
    # in float64 the judge knows it no better; a quarter, so that sums of 70,000 fit float16
    grad = ((torch.randn(24, cols, device="cuda") + weight + 0.5) / 4).to(dtypes[1])
    gain, shift = torch.randn(2, 24, device="cuda").to(dtypes[0])
    check(weight, grad, gain, shift)
    check(weight, grad, gain, shift, formula="weight_norm")
    check(weight, grad, None, shift)


@pytest.mark.parametrize("correction", [0, 1])
@pytest.mark.parametrize("eps_mode", ["std", "var", "clamp"])
@pytest.mark.parametrize("cols", [27, 576, 70_000])
def test_formulas(cols, eps_mode, correction):
    weight = torch.randn(24, cols, device="cuda") * 0.05
    # eps of the variance's size, so that its place in the formula shows
    formula = Formula(eps=2e-3, eps_mode=eps_mode, correction=correction, scale="fan_in", gamma=1.7)
    check(weight, torch.randn_like(weight), formula=formula)


@pytest.mark.parametrize("cols", [*AWKWARD, 576, 4608, 70_000])
@pytest.mark.parametrize("offset", [1, 2, 3, 4])  # in elements: 2 to 32 bytes
@every_dtype
def test_weight_inside_a_flat_buffer(dtypes, offset, cols):
    flat = torch.randn(offset + 24 * cols, device="cuda").to(dtypes[0])
    grad = torch.randn(offset + 24 * cols, device="cuda").to(dtypes[1])
    check(flat[offset:].view(24, cols), torch.randn(24, cols, device="cuda").to(dtypes[1]))
    check(flat[offset:].view(24, cols), grad[offset:].view(24, cols))


@pytest.mark.parametrize("kernel_size", [1, 2, 3, 4])  # runs of 1, 4, 9, 16: some take vectors
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("channel_dim", [0, 1])
@every_dtype
def test_layouts(dtypes, channel_dim, channels_last, kernel_size):
    shape = (48, 32, kernel_size, kernel_size)
    weight, grad = (torch.randn(shape, device="cuda").to(dtype) for dtype in dtypes)
    if channels_last:
        weight = weight.to(memory_format=torch.channels_last)
    assert standardize(weight, channel_dim=channel_dim).stride() == weight.stride()
    check(weight, grad, channel_dim=channel_dim)  # of another layout than the weight
    like = torch.randn_like(weight).to(dtypes[1])
    check(weight, like, channel_dim=channel_dim)


def test_sliced_weight():
    weight = torch.randn(48, 40, 3, 3, device="cuda")[:, 4:36]
    check(weight, torch.randn(48, 32, 3, 3, device="cuda"))


@pytest.mark.parametrize("rows", [3, 200])  # few, and more than one to an SM
@pytest.mark.parametrize("gap", [1, 8])  # 16-byte accesses are not possible, or are
@pytest.mark.parametrize("cols", [8, 9, 147, 500, 2000, 5000, 9001, 20_000, 70_000])
@every_dtype
def test_rows_with_gaps_between_them(dtypes, cols, gap, rows):
    weight = torch.randn(rows, cols + gap, device="cuda").to(dtypes[0])[:, :cols]
    grad = torch.randn(rows, cols + gap, device="cuda").to(dtypes[1])[:, :cols]
    check(weight, grad)


@pytest.mark.parametrize("shape", [(0, 9), (5, 0), (0, 3, 3, 3)])
def test_empty(shape):
    weight = torch.empty(shape, device="cuda", requires_grad=True)
    gain = torch.ones(shape[0], device="cuda", requires_grad=True)
    out = standardize(weight, gain)
    assert out.shape == weight.shape
    grads = torch.autograd.grad(out, (weight, gain), torch.empty_like(out))
    assert grads[0].shape == weight.shape and not grads[1].any()
