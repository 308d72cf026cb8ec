"""A step on another device than the CPU: what is there stays there, and nothing waits for it.

The meta device stands in: its tensors have no values, so that whatever asks for one raises. The ops
check their arguments there. tests/cuda/test_cuda_fuse.py has the values of a GPU.
"""

import sys

import pytest
import torch
import torch_ws
from torch import nn
from torch_ws.training import fused_step, fused_update
from torch_ws.training.standardized_grad import StandardizedGrad


@pytest.fixture
def calls(monkeypatch):
    """The arguments of each call of the op, by the names that raw_update_many gives them."""
    found = []
    names = fused_update.raw_update_many.__code__.co_varnames

    def counted(*arguments):
        found.append(dict(zip(names, arguments, strict=False)))
        raw_update_many(*arguments)

    raw_update_many = fused_update.raw_update_many
    monkeypatch.setattr(fused_update, "raw_update_many", counted)
    monkeypatch.setitem(fused_step.DTYPES, "meta", (torch.float32,))
    return found


def layer(device="meta", **options):
    return torch_ws.WSLinear(4, 3, bias=False, device=device, **options)


def backward(model):
    [weight, *_] = model.parameters()
    model(torch.ones(2, 4, device=weight.device)).sum().backward()


def number(value=1.0):
    return torch.tensor(value, device="meta")


def test_learning_rate(calls):
    model, lr = layer(), number()
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
    optimizer.param_groups[0]["lr"] = lr  # whose value torch.optim's own __init__ asks for
    handle = torch_ws.fuse(model, optimizer)
    assert handle.unfused == {}
    for _ in range(2):
        backward(model)
        assert type(model.weight.grad) is StandardizedGrad
        optimizer.step()
        optimizer.zero_grad()
    first, second = calls
    for call in calls:
        assert call["lr"].data_ptr() == lr.data_ptr() and call["lr"].device == lr.device
        assert call["rule"][1] == 0
    assert (first["flags"], second["flags"]) == ([1], [0])
    assert second["states"][0] is optimizer.state[model.weight]["momentum_buffer"]


def test_learning_rate_on_the_cpu(calls):
    """Of a tensor on the CPU the kernel gets the number, as torch's own do."""
    model = layer()
    optimizer = torch.optim.SGD(model.parameters(), lr=torch.tensor(0.5))
    torch_ws.fuse(model, optimizer)
    backward(model)
    optimizer.step()
    assert calls[0]["lr"] is None and calls[0]["rule"][1] == 0.5


# Where Adam has its step: on the CPU by default; with the weights if it is capturable or fused
@pytest.mark.parametrize("place", ["cpu", "meta"])
def test_steps(calls, place):
    model = nn.Sequential(layer(gain=True), torch_ws.WSLinear(3, 2, bias=False, device="meta"))
    weights = model[0].weight, model[1].weight
    optimizer = torch.optim.AdamW(weights)
    torch_ws.fuse(model, optimizer)
    for _ in range(2):
        backward(model)
        optimizer.step()
        optimizer.zero_grad()
        for weight in weights:
            state = optimizer.state[weight]
            state["step"] = state["step"].to(place)
    for call, where in zip(calls, ["cpu", place], strict=True):
        assert [s.device.type for s in call["steps"]] == [where, where]
        assert all(s.shape == () and s.dtype == torch.float32 for s in call["steps"])
    if place == "cpu":
        assert [optimizer.state[weight]["step"].item() for weight in weights] == [2, 2]


def test_grad_scaler(calls, monkeypatch):
    """What it leaves to a step with fused=True; it has to be known before the first momentum."""
    sgd = sys.modules[torch.optim.SGD.__module__]
    monkeypatch.setattr(sgd, "_device_dtype_check_for_fused", lambda *_, **__: None)
    model = layer()
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
    handle, made = torch_ws.fuse(model, optimizer), model._standardize

    def step():
        optimizer.zero_grad()
        backward(model)
        optimizer.step()

    step()
    optimizer.param_groups[0]["fused"] = True  # which torch has not for the meta device
    optimizer.grad_scale, optimizer.found_inf = number(8.0), number(0.0)
    step()
    assert calls[1]["grad_scale"].device.type == calls[1]["found_inf"].device.type == "meta"
    optimizer.zero_grad()
    backward(model)
    handle.refresh()  # nothing is stored: what a step without an update leaves has to be right
    standardized = []
    monkeypatch.setattr(model, "_standardize", lambda *a: standardized.append(a) or made(*a))
    optimizer.step()
    assert len(standardized) == 1
    del optimizer.state[model.weight]
    with pytest.raises(RuntimeError, match="item"):
        step()
    assert len(calls) == 3


def test_dtypes(calls):
    """One that the device has no kernel for trains as without fuse."""
    model = layer(dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters())
    handle = torch_ws.fuse(model, optimizer)
    assert handle.unfused == {"": "no kernel for dtype float64 on meta"}
    backward(model)
    assert type(model.weight.grad) is torch.Tensor
    optimizer.step()
    assert calls == []


def test_a_node_a_device(calls):
    model = nn.Sequential(layer("cpu"), layer("cpu"), layer())
    torch_ws.fuse(model, torch.optim.AdamW(model.parameters()))
    for count in (3, 2):  # the first pass tells the second what it is going to use
        assert len({one.standardized_weight().grad_fn for one in model}) == count


def test_a_call_a_device(calls):
    """A group's weights on two devices, in the order of the group, and each layer's next weight."""
    model = nn.Sequential(layer("cpu"), nn.Identity(), layer())
    optimizer = torch.optim.AdamW(model.parameters())
    torch_ws.fuse(model, optimizer)
    backward(model[0])
    backward(model[2])
    optimizer.step()
    devices = [[w.device.type for w in call["weights"]] for call in calls]
    assert devices == [["cpu"], ["meta"]]
    expected = torch_ws.standardize(model[0].weight, formula=model[0].formula)
    assert torch.equal(model[0].standardized_weight(), expected)
    assert model[2]._cached.result is calls[1]["outs"][0]
