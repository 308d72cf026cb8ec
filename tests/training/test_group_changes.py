"""group: models that change between passes and within them."""

import copy

import pytest
import torch
import torch_ws
from small_network import (
    BUCKETS,
    SOME,
    Calls,
    Network,
    Switch,
    assert_like,
    assert_same_gradients,
    batch,
    step,
)
from torch import nn


def test_a_layer_that_comes_and_goes():
    model, x = Switch(), torch.randn(2, 3)
    judge = copy.deepcopy(model)
    torch_ws.group(model)
    for last in (True, False, True, True, False):
        for net in (model, judge):
            net.zero_grad()
            net(x, last=last).sum().backward()
        assert_same_gradients(model, judge)


def test_tied_weights():
    model = Network().double()
    model.norm = torch_ws.WSConv2d(4, 4, 3, padding=1, formula="timm", bias=False).double()
    model.norm.weight = model.twice.weight
    judge = copy.deepcopy(model)
    assert judge.norm.weight is judge.twice.weight
    for bucket_mb in BUCKETS:
        handle = torch_ws.group(model, bucket_mb)
        for _ in range(2):
            assert_like(model, judge, batch())
        handle.remove()


def freeze(model):
    model.stem.weight.requires_grad_(False)
    model.up.requires_grad_(False)


def replace(model):
    torch.manual_seed(1)
    model.twice = torch_ws.WSConv2d(4, 4, 3, padding=1, formula="timm").double()


def load(model):
    torch.manual_seed(1)
    model.load_state_dict(Network().double().state_dict())


def load_assigned(model):
    torch.manual_seed(1)
    model.load_state_dict(Network().double().state_dict(), assign=True)


def add(model):
    torch.manual_seed(1)
    model.norm = nn.Sequential(model.norm, torch_ws.WSConv2d(4, 4, 3, padding=1).double())


def other_formula(model):
    model.up.formula = torch_ws.formulas["centered_weight_norm"]


def swap_gain(model):
    model.stem.gain = nn.Parameter(torch.linspace(0.5, 2, 4).double())


def remove(model):
    model.twice = nn.Identity()


def parametrize(model):
    nn.utils.parametrizations.weight_norm(model.twice)


# what may happen to a model between its passes
CHANGES = {
    "frozen": freeze,
    "replaced": replace,
    "added": add,
    "removed": remove,
    "loaded": load,
    "loaded, assigned": load_assigned,
    "formula": other_formula,
    "gain": swap_gain,
    "parametrized": parametrize,
    "float32": lambda model: model.float(),
    "mixed dtypes": lambda model: model.head.float().register_forward_pre_hook(
        lambda layer, args: args[0].float()
    ),
    "memory format": lambda model: model.to(memory_format=torch.channels_last),
    "no gradients at all": lambda model: model.requires_grad_(False).norm.requires_grad_(),
}


@pytest.mark.parametrize("bucket_mb", [None, SOME])
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_model(pair, change, bucket_mb):
    model, judge, x = pair
    torch_ws.group(model, bucket_mb)
    step(model, x)
    for net in (model, judge):
        CHANGES[change](net)
    x = x.to(model.stem.weight.dtype)
    for _ in range(2):
        assert_like(model, judge, x)
    if change == "added":
        with Calls() as calls:
            step(model, x)
        assert calls.counts["forward_many"] == 1 and "forward" not in calls.counts
    for net in (model, judge):
        net.requires_grad_()
    assert_like(model, judge, x)


def test_weights_of_several_dtypes_and_devices():
    """One launch for each device, whatever the weights' dtypes; meta is the other device here."""
    model = nn.ModuleDict(
        {
            "a": torch_ws.WSLinear(3, 4),
            "b": torch_ws.WSLinear(3, 4, dtype=torch.float64),
            "c": torch_ws.WSLinear(3, 4, device="meta"),
            "d": torch_ws.WSLinear(3, 4, dtype=torch.bfloat16, device="meta"),
        }
    )

    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = model

        def forward(self):
            return [layer.standardized_weight() for layer in self.layers.values()]

    root = Root()
    torch_ws.group(root)
    with Calls() as calls:
        outs = root()
    assert calls.counts == {"forward_many": 2}
    for layer, out in zip(model.values(), outs, strict=True):
        assert (out.dtype, out.device) == (layer.weight.dtype, layer.weight.device)
    assert torch.equal(outs[0], torch_ws.standardize(model["a"].weight))
    assert torch.equal(outs[1], torch_ws.standardize(model["b"].weight))
    with torch.autocast("cpu", dtype=torch.bfloat16), Calls() as calls:
        outs = root()
    assert calls.counts == {"forward_many": 3}
    assert outs[0].dtype == torch.bfloat16 and outs[1].dtype == torch.float64


class InPlace(nn.Module):
    """Changes a weight between the beginning of the pass and the layer's turn."""

    def __init__(self):
        super().__init__()
        self.first = torch_ws.WSLinear(3, 3)
        self.second = torch_ws.WSLinear(3, 3)
        self.first.weight.requires_grad_(False)

    def forward(self, x):
        with torch.no_grad():
            self.first.weight.mul_(torch.linspace(1, 2, 9).view(3, 3))
        return self.second(self.first(x))


def test_a_weight_that_changes_during_the_pass():
    model, x = InPlace(), torch.randn(2, 3)
    judge = copy.deepcopy(model)
    torch_ws.group(model)
    for _ in range(2):
        assert torch.equal(model(x), judge(x))


def test_other_weights_for_a_layer_during_the_pass():
    class Hyper(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch_ws.WSLinear(3, 3)

        def forward(self, weight, x):
            inner = torch.func.functional_call(self.layer, {"weight": weight}, (x,))
            (tangent,) = torch.func.vmap(
                lambda w: torch.func.functional_call(self.layer, {"weight": w}, (x,))
            )(weight[None])
            return self.layer(inner + tangent)

    model, x = Hyper(), torch.randn(2, 3)
    weight = torch.randn(3, 3, requires_grad=True)
    judge = copy.deepcopy(model)
    torch_ws.group(model)
    for _ in range(2):
        ours, theirs = model(weight, x), judge(weight, x)
        assert torch.equal(ours, theirs)
        ours, theirs = (
            torch.autograd.grad(o.sum(), [weight, net.layer.weight])
            for o, net in ((ours, model), (theirs, judge))
        )
        torch.testing.assert_close(ours, theirs)


def test_functional_call_of_the_root(pair):
    model, judge, x = pair
    torch_ws.group(model)
    parameters = {name: torch.randn_like(p) for name, p in model.named_parameters()}

    def loss(parameters, net):
        return torch.func.functional_call(net, parameters, (x,)).square().sum()

    assert torch.equal(loss(parameters, model), loss(parameters, judge))
    ours = torch.func.grad(loss)(parameters, model)
    torch.testing.assert_close(ours, torch.func.grad(loss)(parameters, judge))
