"""What the tests of group, hold and compilation share: a network, and what watches it."""

import copy
import os
import tempfile
from collections import Counter

import torch
import torch_ws
from torch import nn


class Network(nn.Module):
    """Every kind of layer that matters here, one of them used twice and one never reached.

    A gain and a shift, a transposed convolution whose rows are no view of its weight, four
    formulas, and layers of torch.nn in between.
    """

    def __init__(self):
        super().__init__()
        self.unreached = torch_ws.WSConv2d(3, 5, 3)
        self.stem = torch_ws.WSConv2d(3, 4, 3, padding=1, gain=True)
        self.norm = nn.GroupNorm(2, 4)
        self.twice = torch_ws.WSConv2d(4, 4, 3, padding=1, formula="nfnet")
        self.up = torch_ws.WSConvTranspose2d(4, 6, 2, stride=2, groups=2, shift=True, formula="bit")
        self.down = torch_ws.WSConvTranspose2d(6, 3, 2, formula="qiao", bias=False)
        self.head = torch_ws.WSLinear(3, 5, gain=True, shift=True)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        x = self.twice(self.twice(x)).relu()
        x = self.down(self.up(x).relu()).relu()
        return self.head(x.mean((2, 3)))


REACHED = 5  # layers of Network that a pass reaches
# Sizes in Network, in bytes of float64: stem 864, twice 1152, up 384, down 576, head 120
SOME = 1600 / 2**20  # stem; twice and up; down and head
BUCKETS = [None, SOME, 1e-9]  # in MiB, for group: one; some; one a layer
SEVERAL_USES = ("twice.weight", "norm.weight", "before.weight", "after.weight")


class Switch(nn.Module):
    """Its last layer is in some passes only."""

    def __init__(self):
        super().__init__()
        self.a = torch_ws.WSLinear(3, 3)
        self.b = torch_ws.WSLinear(3, 3)
        self.c = torch_ws.WSLinear(3, 3)

    def forward(self, x, last=True):
        x = self.b(self.a(x))
        return self.c(x) if last else x


class Hyper(nn.Module):
    """A layer that is used with another weight than its own, and then with its own."""

    def __init__(self):
        super().__init__()
        self.layer = torch_ws.WSLinear(3, 3)

    def forward(self, weight, x):
        inner = torch.func.functional_call(self.layer, {"weight": weight}, (x,))
        return self.layer(inner)


def network(dtype=torch.float64):
    return Network().to(dtype)


def twins(dtype=torch.float64):
    """Two networks of the same parameters: one to group or hold, one to judge it by."""
    model = network(dtype)
    return model, copy.deepcopy(model)


def batch(size=2, dtype=torch.float64):
    return torch.randn(size, 3, 6, 6, dtype=dtype)


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters()}


def assert_same_gradients(model, judge):
    """To the last bit, and missing where the judge's are.

    Only a weight with several uses in a pass may differ by rounding: whether its gradients are
    summed before standardization's backward or after it is up to who computes them.
    """
    expected = gradients(judge)
    for name, grad in gradients(model).items():
        assert (grad is None) == (expected[name] is None), name
        if name in SEVERAL_USES:
            torch.testing.assert_close(grad, expected[name])
        else:
            assert grad is None or torch.equal(grad, expected[name]), name


def assert_close_gradients(model, judge, tolerance=1e-12):
    """Relative to the largest; missing where the judge's are."""
    expected = gradients(judge)
    for name, grad in gradients(model).items():
        assert (grad is None) == (expected[name] is None), name
        if grad is not None:
            error = (grad - expected[name]).abs().max() / expected[name].abs().max()
            assert error <= tolerance, f"{name}: {error:.2g}"


def step(model, x):
    """A step of training without its optimizer; the result."""
    model.zero_grad()
    out = model(x)
    out.square().sum().backward()
    return out


def assert_like(model, judge, x):
    """A step of training gives the same to the last bit."""
    assert torch.equal(step(model, x), step(judge, x))
    assert_same_gradients(model, judge)


def loss_of(model, x, power=2):
    return model(x).pow(power).sum()


class Calls(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts the package's ops, such as {"forward_many": 1}, and keeps their arguments."""

    def __init__(self):
        super().__init__()
        self.arguments = []

    @property
    def counts(self):
        return dict(Counter(name for name, _ in self.arguments))

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "ws":
            self.arguments.append((function._schema.name.removeprefix("ws::"), args))
        return function(*args, **(kwargs or {}))


def in_two_processes(function):
    """Runs `function(rank)` in two processes that are a gloo group, and returns both results."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_process, (function, folder), nprocs=2)
        return [torch.load(f"{folder}/{rank}", weights_only=False) for rank in range(2)]


def _process(rank, function, folder):
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    try:
        torch.save(function(rank), f"{folder}/{rank}")
    finally:
        torch.distributed.destroy_process_group()
    # PyTorch's threads may abort an interpreter that finalizes: leave without
    os._exit(0)
