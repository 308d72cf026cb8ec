"""Strides: results keep them, dense channels are not copied, and values do not depend on them."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch_ws import reference, standardize

# name -> a weight of (12, 6, 3, 3) or 3-d likewise whose channels (dimension 0) are dense in memory
DENSE = {
    "contiguous": lambda: torch.randn(12, 6, 3, 3),
    "channels_last": lambda: torch.randn(12, 6, 3, 3).to(memory_format=torch.channels_last),
    "channels_last_3d": lambda: torch.randn(12, 6, 2, 3, 3).to(
        memory_format=torch.channels_last_3d
    ),
    "permuted kernel": lambda: torch.randn(12, 3, 6, 3).permute(0, 2, 3, 1),
    "every second channel": lambda: torch.randn(24, 6, 3, 3)[::2],
    "offset in a flat buffer": lambda: torch.randn(12 * 54 + 1)[1:].view(12, 6, 3, 3),
}


def both(weight, grad, **kwargs):
    """Result and gradient of the kernel and of the reference in float64."""
    results = []
    for function, w in ((standardize, weight), (reference.standardize, weight.double())):
        w = w.detach().requires_grad_()
        out = function(w, **kwargs)
        results.append((out.detach(), *torch.autograd.grad(out, w, grad.to(out.dtype))))
    return results


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("grad_layout", ["the weight's", "contiguous", "transposed"])
def test_channels_dense_in_memory(isa, name, grad_layout):
    weight = DENSE[name]()
    grad = torch.empty_like(weight)
    if grad_layout == "contiguous":
        grad = grad.contiguous()
    elif grad_layout == "transposed":
        grad = torch.empty(weight.transpose(0, 1).shape).transpose(0, 1)
    grad.normal_()
    (out, grad_weight), (out64, grad64) = both(weight, grad)
    torch.testing.assert_close(out.double(), out64, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grad_weight.double(), grad64, rtol=1e-4, atol=1e-4)
    assert out.stride() == torch.empty_like(weight).stride()
    assert grad_weight.stride() == torch.empty_like(weight).stride()


def aten_ops(call):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        call()
    return {event.key for event in profile.key_averages()}


@pytest.mark.parametrize("name", DENSE)
def test_no_copy_of_dense_channels(name):
    weight = DENSE[name]()
    grad = torch.empty_like(weight).normal_()
    arguments = (0, 1e-5, 0, 0, True, 1.0)
    ops = aten_ops(lambda: torch.ops.ws.forward(weight, None, None, *arguments, None))
    ops |= aten_ops(lambda: torch.ops.ws.backward(grad, weight, None, *arguments))
    assert {"ws::forward", "ws::backward"} <= ops
    assert not ops & {"aten::copy_", "aten::clone", "aten::contiguous", "aten::_to_copy"}


@pytest.mark.parametrize(
    "shape",
    [
        (6, 12, 3, 3),  # runs of 9 elements
        (6, 12),  # runs of one: columns
        (5, 7, 1, 1),  # the same, with dimensions of one element
        (3, 5, 2, 2, 2),  # 3-d
        (40, 33, 5),  # more channels than are gathered at a time
    ],
)
def test_channel_dim_1(isa, shape):
    weight, grad = torch.randn(shape), torch.randn(shape)
    gain = torch.randn(shape[1])
    actual = both(weight, grad, channel_dim=1)[0]
    turned = both(weight.transpose(0, 1).contiguous(), grad.transpose(0, 1).contiguous())[0]
    for a, t in zip(actual, turned, strict=True):
        assert torch.equal(a, t.transpose(0, 1))
    with_gain = standardize(weight, gain, channel_dim=-len(shape) + 1)
    assert torch.equal(
        with_gain, standardize(weight.transpose(0, 1).contiguous(), gain).transpose(0, 1)
    )
    assert with_gain.stride() == weight.stride()


def test_channel_dim_1_is_not_copied():
    weight = torch.randn(6, 12, 3, 3)
    ops = aten_ops(lambda: torch.ops.ws.forward(weight, None, None, 1, 1e-5, 0, 0, True, 1.0, None))
    assert "ws::forward" in ops
    assert not ops & {"aten::copy_", "aten::clone", "aten::contiguous"}


@st.composite
def strided_weights(draw):
    """A weight of 2 to 5 dimensions in any order in memory, sliced, expanded or neither."""
    dim = draw(st.integers(2, 5))
    shape = draw(st.lists(st.integers(1, 7), min_size=dim, max_size=dim))
    order = draw(st.permutations(range(dim)))
    steps = draw(st.lists(st.integers(1, 2), min_size=dim, max_size=dim))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    memory = torch.randn([n * s for n, s in zip(shape, steps, strict=True)], dtype=dtype)
    weight = memory[tuple(slice(None, None, s) for s in steps)].permute(order)
    if draw(st.booleans()):
        weight = weight.narrow(0, 0, 1).expand(weight.shape)
    return weight, draw(st.integers(-dim, dim - 1))


@settings(max_examples=300, deadline=None)
@given(strided_weights(), st.booleans())
def test_any_strides(case, transposed_grad):
    weight, channel_dim = case
    before = weight.clone()
    grad = torch.randn(weight.shape, dtype=weight.dtype)
    if transposed_grad:
        grad = grad.transpose(0, -1).contiguous().transpose(0, -1)
    (out, grad_weight), (out64, grad64) = both(weight, grad, channel_dim=channel_dim)
    assert torch.equal(weight, before)
    assert out.stride() == torch.empty_like(weight).stride()
    torch.testing.assert_close(out.double(), out64, rtol=1e-5, atol=1e-5)
    # relative to the channel's terms grad / (std + eps), which a channel of few values cancels
    scale = 1 + grad.double().abs().max() / 1e-5
    std = weight.double().movedim(channel_dim, 0).flatten(1).std(1, correction=0)
    scale = torch.minimum(scale, 1 + grad.double().abs().max() / (std + 1e-5))
    scale = scale.view([-1 if d == channel_dim % weight.dim() else 1 for d in range(weight.dim())])
    assert ((grad_weight.double() - grad64).abs() <= 1e-5 * scale).all()
