"""What the tests of fuse share: optimizers, a fused network, and the plain one to judge it by."""

import torch
import torch_ws
from small_network import Calls, loss_of, twins
from torch_ws.training import deferred

OPTIMIZERS = {
    "SGD": (torch.optim.SGD, {}),
    "SGD, decay": (torch.optim.SGD, {"weight_decay": 0.1}),
    "SGD, momentum": (torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}),
    "SGD, dampening": (torch.optim.SGD, {"momentum": 0.9, "dampening": 0.3, "maximize": True}),
    "SGD, nesterov": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "foreach": True}),
    "SGD, fused": (torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1, "fused": True}),
    "Adam": (torch.optim.Adam, {"weight_decay": 0.1}),
    "Adam, decoupled": (torch.optim.Adam, {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    "AdamW": (torch.optim.AdamW, {"betas": (0.6, 0.8), "eps": 1e-3, "foreach": True}),
    "AdamW, fused": (torch.optim.AdamW, {"weight_decay": 0.1, "fused": True, "maximize": True}),
    "amsgrad": (torch.optim.AdamW, {"amsgrad": True, "betas": (0.5, 0.5)}),
}
# Layers of Network with a kernel. Not `up`, whose rows are no view of its weight; `unreached` has
# one that no step comes to.
FUSED = ("stem", "twice", "down", "head")


def make(name, model, lr=0.02):
    cls, options = OPTIMIZERS[name]
    return cls(model.parameters(), lr=lr, **options)


def fused_pair(name, lr=0.02, **options):
    """A fused network and its optimizer, and the same without, to judge it by."""
    model, judge = twins()
    optimizer, plain = make(name, model, lr), make(name, judge, lr)
    return model, optimizer, torch_ws.fuse(model, optimizer, **options), judge, plain


class Computed:
    """Counts what is computed of deferred gradients: "norms" in one call, or a gradient "value"."""

    def __init__(self, monkeypatch):
        self.counts: dict = {}
        for name, kind in (("raw_norms_many", "norms"), ("raw_backward", "value")):
            monkeypatch.setattr(deferred, name, self.counting(kind, getattr(deferred, name)))

    def counting(self, kind, function):
        def counted(*arguments):
            self.counts[kind] = self.counts.get(kind, 0) + 1
            return function(*arguments)

        return counted


def train(model, optimizer, batches):
    for x in batches:
        loss_of(model, x).backward()
        optimizer.step()
        optimizer.zero_grad()


def assert_same(model, judge, tolerance=1e-12):
    """Of all parameters, relative to the largest element of each."""
    for (name, ours), other in zip(model.named_parameters(), judge.parameters(), strict=True):
        error = (ours - other).abs().max() / other.abs().max().clamp(min=1e-30)
        assert error <= tolerance, f"{name}: {error:.2g}"


def assert_same_state(optimizer, plain, tolerance=1e-12):
    ours, others = optimizer.state_dict(), plain.state_dict()
    assert ours["param_groups"] == others["param_groups"]
    assert ours["state"].keys() == others["state"].keys()
    for key, state in others["state"].items():
        assert list(ours["state"][key]) == list(state)
        for name, value in state.items():
            torch.testing.assert_close(ours["state"][key][name], value, rtol=tolerance, atol=1e-13)


def assert_stored(model, made=True):
    """What is stored of every fused layer is to the last bit what the layer would compute.

    made: the step has made it all; else what has changed without its weight is made now.
    """
    for name in FUSED:
        layer = getattr(model, name)
        options = {"formula": layer.formula, "channel_dim": layer.channel_dim}
        expected = torch_ws.standardize(layer.weight, layer.gain, layer.shift, **options)
        with torch.no_grad(), Calls() as calls:
            assert torch.equal(layer.standardized_weight(), expected), name
        assert calls.counts == {} or not made, name
