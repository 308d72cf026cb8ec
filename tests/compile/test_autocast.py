"""Autocast: the standardized weight comes out in its dtype, and no operation casts a weight."""

import contextlib
import copy

import pytest
import torch
import torch_ws
from small_network import Calls, assert_same_gradients
from torch import nn
from torch.profiler import ProfilerActivity, profile

DTYPES = [torch.bfloat16, torch.float16]


class Mixed(nn.Module):
    """Layers whose weights have shapes that nothing else has, so that a cast of one is known by it.

    `plain` runs with autocast off, `other` in another dtype.
    """

    def __init__(self):
        super().__init__()
        self.conv = torch_ws.WSConv2d(3, 5, 3, padding=1, bias=False, gain=True)
        self.up = torch_ws.WSConvTranspose2d(5, 7, 2, stride=2, bias=False)
        self.head = torch_ws.WSLinear(7, 11, bias=False, shift=True)
        self.plain = torch_ws.WSLinear(11, 13, bias=False)
        self.other = torch_ws.WSLinear(13, 17, bias=False)

    def forward(self, x):
        x = self.head(self.up(self.conv(x).relu()).relu().mean((2, 3)))
        with torch.autocast("cpu", enabled=False):
            x = self.plain(x.float())
        with torch.autocast("cpu", dtype=torch.float16):
            return self.other(x)


def shapes(model):
    layers = [m for m in model.modules() if hasattr(m, "formula")]
    return {tuple(layer.weight.shape) for layer in layers} | {(5,), (11,)}  # and gain and shift


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", ["layers", "group", "buckets", "hold"])
def test_no_weight_is_cast_forward_or_backward(mode, dtype):
    model = Mixed()
    if mode in ("group", "buckets"):
        torch_ws.group(model, None if mode == "group" else 1e-9)
    x = torch.randn(2, 3, 6, 6)
    block = torch_ws.hold(model) if mode == "hold" else contextlib.nullcontext()

    def passes():
        for _ in range(2):
            with torch.autocast("cpu", dtype=dtype):
                out = model(x)
            out.float().square().sum().backward()

    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler, block:
        passes()
    casts = [
        event
        for event in profiler.events()
        if event.name in ("aten::to", "aten::_to_copy", "aten::type", "aten::_autocast_to_reduced")
    ]
    assert casts, "the input is cast: the profiler would show a weight's cast too"
    known = shapes(model)
    found = [(e.name, e.input_shapes[0]) for e in casts if tuple(e.input_shapes[0]) in known]
    if mode == "hold":
        # No weight is cast, but its gradients are, once a pass, to be summed in float32: those of
        # the four layers whose results are of another dtype.
        assert len([name for name, _ in found if name == "aten::_to_copy"]) == 2 * 4
    else:
        assert found == []
    names = {event.name for event in profiler.events()}
    op = {"layers": "ws::forward", "hold": "ws::forward_many"}.get(mode, "ws::forward_into")
    assert op in names


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bucket_mb", [None, 1e-9])
def test_regions_of_other_states_in_a_grouped_pass(bucket_mb, dtype):
    model = Mixed()
    judge = copy.deepcopy(model)
    torch_ws.group(model, bucket_mb)
    x = torch.randn(2, 3, 6, 6)
    for step in range(3):
        with Calls() as calls:
            for net in (model, judge):
                net.zero_grad()
                with torch.autocast("cpu", dtype=dtype):
                    out = net(x)
                if net is model:
                    ours, own = out, calls.counts.get("forward", 0)
                out.float().square().sum().backward()
        assert torch.equal(ours, out)
        assert_same_gradients(model, judge)
        # `plain`, and `other` where its dtype is not that of the pass, compute by themselves; a
        # launch does not make them again
        assert own == (1 if dtype == torch.float16 else 2)
        launched = [len(args[0]) for name, args in calls.arguments if name == "forward_many"]
        assert launched == [5 if step == 0 else 5 - own]


def test_the_state_may_change_from_pass_to_pass():
    model = Mixed()
    judge = copy.deepcopy(model)
    torch_ws.group(model)
    x = torch.randn(2, 3, 6, 6)
    for dtype in (torch.bfloat16, None, torch.float16, torch.bfloat16):
        for net in (model, judge):
            net.zero_grad()
            with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
                out = net(x)
            out.float().square().sum().backward()
            if net is model:
                ours = out
        assert torch.equal(ours, out)
        assert_same_gradients(model, judge)


@pytest.mark.parametrize("dtype", DTYPES)
def test_autocast_entered_inside_the_model(dtype):
    """The model's own forward turns autocast on: its layers then are not the group's."""

    class Inside(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Mixed()

        def forward(self, x):
            with torch.autocast("cpu", dtype=dtype):
                return self.net(x)

    model = Inside()
    judge = copy.deepcopy(model)
    torch_ws.group(model)
    x = torch.randn(2, 3, 6, 6)
    for _ in range(2):
        assert torch.equal(model(x), judge(x))


@pytest.mark.parametrize("weight_dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_weights_keep_their_dtype(weight_dtype):
    layer = torch_ws.WSLinear(4, 5, dtype=weight_dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer.standardized_weight().dtype == weight_dtype


def test_gradients_arrive_in_the_weights_dtype():
    layer = torch_ws.WSLinear(4, 5, gain=True, shift=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(torch.randn(2, 4))
    out.float().square().sum().backward()
    assert {p.grad.dtype for p in layer.parameters()} == {torch.float32}
