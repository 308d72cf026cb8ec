"""The CUDA kernels through PyTorch, on a GPU. test_cuda_stand_in.py tests more of them without."""

import pytest
import torch
from accuracy import assert_close, layer_norm_errors
from test_forward import DTYPES
from torch_ws import _C, reference, standardize

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

every_dtype = pytest.mark.parametrize(
    "dtypes", DTYPES, ids=lambda d: f"{d[0]}-{d[1]}".replace("torch.", "")
)


def check(weight, grad, gain=None, shift=None, **kwargs):
    """Forward and backward against the reference in float64."""
    inputs = [t.detach().requires_grad_() for t in (weight, gain, shift) if t is not None]
    doubles = [t.detach().double().requires_grad_() for t in inputs]
    out = standardize(*inputs, dtype=grad.dtype, **kwargs)
    judge = reference.standardize(*doubles, **kwargs)
    assert out.device == weight.device and out.dtype == grad.dtype
    peers = layer_norm_errors(weight, grad, kwargs.get("channel_dim", 0))
    assert_close(out.detach(), judge.detach(), peers[0])
    actual = torch.autograd.grad(out, inputs, grad)
    expected = torch.autograd.grad(judge, doubles, grad.double())
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e, peers[1])


def lengths(direction, dtypes):
    """The shortest and the longest row of every kernel, from the launch table itself."""
    names = [str(dtype).removeprefix("torch.") for dtype in dtypes]
    found = set()
    for step in (8, 1):  # multiples of 8 elements for vector accesses, odd numbers for scalar ones
        cols, max_cols = step, 0
        while max_cols < 1 << 40:
            plan = _C.launch_plan(1, cols, direction=direction, weight=names[0], out=names[1])
            max_cols = plan["max_cols"]
            found |= {cols, max_cols - (step == 1)} if max_cols < 1 << 40 else {cols}
            cols = max_cols + step
    return sorted(found - {1})


@pytest.mark.parametrize("direction", ["forward", "backward"])
@every_dtype
def test_lengths(dtypes, direction):
    for cols in lengths(direction, dtypes):
        # 130 rows: more than one block of every kernel, the last of them not full
        weight = (torch.randn(130, cols, device="cuda") * 0.05 + 0.01).to(dtypes[0])
        check(weight, (torch.randn(130, cols, device="cuda") + 0.5).to(dtypes[1]))


@every_dtype
def test_gain_and_shift(dtypes):
    weight = torch.randn(64, 32, 3, 3, device="cuda").to(dtypes[0])
    grad = torch.randn(64, 32, 3, 3, device="cuda").to(dtypes[1]) + 0.5
    gain, shift = torch.randn(2, 64, device="cuda").to(dtypes[0])
    check(weight, grad, gain, shift)
    check(weight, grad, gain, shift, formula="weight_norm")


@pytest.mark.parametrize("offset", [1, 2, 4])  # in elements; the last is aligned in float32 alone
@every_dtype
def test_weight_inside_a_flat_buffer(dtypes, offset):
    flat = torch.randn(offset + 64 * 576, device="cuda").to(dtypes[0])
    grad = torch.randn(offset + 64 * 576, device="cuda").to(dtypes[1])
    check(flat[offset:].view(64, 576), torch.randn(64, 576, device="cuda").to(dtypes[1]))
    check(flat[offset:].view(64, 576), grad[offset:].view(64, 576))


@pytest.mark.parametrize("kernel_size", [1, 2, 3, 4])  # runs of 1, 4, 9, 16: some take vectors
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("channel_dim", [0, 1])
def test_layouts(channel_dim, channels_last, kernel_size):
    weight = torch.randn(48, 32, kernel_size, kernel_size, device="cuda")
    grad = torch.randn_like(weight)
    if channels_last:
        weight = weight.to(memory_format=torch.channels_last)
    assert standardize(weight, channel_dim=channel_dim).stride() == weight.stride()
    check(weight, grad, channel_dim=channel_dim)  # of another layout than the weight
    check(weight, torch.randn_like(weight), channel_dim=channel_dim)


def test_sliced_weight():
    weight = torch.randn(48, 40, 3, 3, device="cuda")[:, 4:36]
    check(weight, torch.randn(48, 32, 3, 3, device="cuda"))


@pytest.mark.parametrize("shape", [(0, 9), (5, 0), (0, 3, 3, 3)])
def test_empty(shape):
    weight = torch.empty(shape, device="cuda", requires_grad=True)
    gain = torch.ones(shape[0], device="cuda", requires_grad=True)
    out = standardize(weight, gain)
    assert out.shape == weight.shape
    grads = torch.autograd.grad(out, (weight, gain), torch.empty_like(out))
    assert grads[0].shape == weight.shape and not grads[1].any()


def test_current_stream():
    # The weight is written late on a side stream: a kernel on any other stream sees the zeros.
    source = torch.randn(256, 576, device="cuda")
    weight = torch.zeros_like(source)
    expected = standardize(source)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        weight.copy_(source)
        out = standardize(weight)
    stream.synchronize()
    assert torch.equal(out, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_second_device():
    weight = torch.randn(64, 576, device="cuda:1")
    with torch.cuda.device(0):
        check(weight, torch.randn(64, 576, device="cuda:1"))
        assert torch.cuda.current_device() == 0


def test_cuda_graph():
    weight = torch.randn(64, 576, device="cuda", requires_grad=True)
    gain = torch.randn(64, device="cuda", requires_grad=True)
    grad = torch.randn(64, 576, device="cuda")

    def step():
        out = standardize(weight, gain)
        return out, *torch.autograd.grad(out, (weight, gain), grad)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # as PyTorch asks for: once before the capture
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        weight.copy_(torch.randn_like(weight))
    graph.replay()
    for replayed, eager in zip(captured, step(), strict=True):
        assert torch.equal(replayed, eager)


@pytest.mark.parametrize("cols", [36, 576, 2304, 30000])  # a kernel of every size of team
def test_a_thousand_repeats_are_bitwise_equal(cols):
    weight = torch.randn(300, cols, device="cuda", requires_grad=True)
    grad = torch.randn(300, cols, device="cuda")

    def step():
        out = standardize(weight)
        return out.detach(), *torch.autograd.grad(out, weight, grad)

    first = step()
    for _ in range(1000):
        assert all(map(torch.equal, first, step()))
