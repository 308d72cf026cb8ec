"""torch_ws._C on CUDA arrays: through DLPack, on the stream that it is given."""

import pytest
import torch
from accuracy import assert_close, layer_norm_errors
from cuda_check import every_dtype, needs_gpu
from torch_ws import _C, reference, standardize

pytestmark = needs_gpu

OPTIONS = {"eps": 1e-3, "eps_mode": 1, "correction": 1, "scale": 0.5}


@pytest.mark.parametrize("cols", [27, 576, 70_000])  # short and odd, a warp's, split over blocks
@every_dtype
def test_equals_the_ops(dtypes, cols):
    weight = torch.randn(24, cols, device="cuda").to(dtypes[0])
    grad = torch.randn(24, cols, device="cuda").to(dtypes[1])
    gain, shift = torch.randn(2, 24, device="cuda").to(dtypes[0])
    out, grad_weight = torch.empty_like(grad), torch.empty_like(weight)
    grad_gain, grad_shift = torch.empty_like(gain), torch.empty_like(gain)
    _C.forward(weight, out, gain, shift, **OPTIONS)
    _C.backward(grad, weight, grad_weight, gain, grad_gain, grad_shift, **OPTIONS)
    inputs = [t.clone().requires_grad_() for t in (weight, gain, shift)]
    expected = torch.ops.ws.standardize(*inputs, dtype=dtypes[1], **OPTIONS)
    assert torch.equal(out, expected)
    grads = torch.autograd.grad(expected, inputs, grad)
    for actual, want in zip((grad_weight, grad_gain, grad_shift), grads, strict=True):
        assert torch.equal(actual, want)


def test_stream():
    # The weight is written late on a side stream: a kernel on any other stream sees the zeros.
    source = torch.randn(256, 576, device="cuda")
    weight, out = torch.zeros_like(source), torch.empty_like(source)
    expected = standardize(source)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        weight.copy_(source)
        _C.forward(weight, out, stream=stream.cuda_stream)
    stream.synchronize()
    assert torch.equal(out, expected)


def test_strided_arrays_are_used_where_they_are():
    weight = torch.randn(3, 8, 9, device="cuda")[:, ::2]  # channel_dim 1: runs of 9
    out = torch.full((3, 8, 9), 7.0, device="cuda")
    _C.forward(weight, out[:, ::2], channel_dim=-2)
    rows = weight.movedim(1, 0).flatten(1)
    peer, _ = layer_norm_errors(rows, torch.ones_like(rows))
    expected = reference.standardize(weight.double(), channel_dim=1)
    assert_close(out[:, ::2], expected, peer)
    assert (out[:, 1::2] == 7).all()


@pytest.mark.parametrize("cols", [27, 576, 70_000])
@pytest.mark.parametrize("channel_dim", [0, 1])
def test_in_place(cols, channel_dim):
    shape = (24, cols) if channel_dim == 0 else (cols, 24)
    weight, grad = torch.randn(2, *shape, device="cuda")
    out, grad_weight = torch.empty_like(weight), torch.empty_like(weight)
    _C.forward(weight, out, channel_dim=channel_dim)
    _C.backward(grad, weight, grad_weight, channel_dim=channel_dim)
    for name in ("grad", "weight"):
        inputs = {"grad": grad.clone(), "weight": weight.clone()}
        _C.backward(*inputs.values(), inputs[name], channel_dim=channel_dim)
        assert torch.equal(inputs[name], grad_weight)
    _C.forward(weight, weight, channel_dim=channel_dim)
    assert torch.equal(weight, out)


def test_arrays_on_different_devices_are_refused():
    weight, out = torch.randn(4, 9, device="cuda"), torch.full((4, 9), 7.0)
    with pytest.raises(ValueError, match="out must be on weight's device"):
        _C.forward(weight, out)
    assert (out == 7).all()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_second_device():
    weight = torch.randn(24, 576, device="cuda:1")
    out = torch.empty_like(weight)
    with torch.cuda.device(0):
        _C.forward(weight, out)
        assert torch.cuda.current_device() == 0
    assert torch.equal(out, standardize(weight))
