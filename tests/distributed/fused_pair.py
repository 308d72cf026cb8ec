"""A sharded, fused model beside the same in one process without fuse. For the cases of fuse."""

import contextlib
import copy
import functools
import itertools
from collections import Counter
from unittest import mock

import torch
import torch_ws
from cases_before_gather import before_gather
from one_process import assert_same, batches, network, target_loss
from torch import nn
from torch.distributed.tensor import DTensor
from torch_ws.distributed import fused_rows, gather
from torch_ws.training import fused_update
from torch_ws.training.standardized_grad import StandardizedGrad

SGD = functools.partial(torch.optim.SGD, lr=0.05)
AdamW = functools.partial(torch.optim.AdamW, lr=0.02)
OPTIMIZERS = [  # every state that a weight may have, and torch's three implementations
    functools.partial(SGD, weight_decay=0.1),
    functools.partial(SGD, momentum=0.9, dampening=0.3, weight_decay=0.1),
    functools.partial(SGD, momentum=0.9, nesterov=True, maximize=True, foreach=True),
    functools.partial(torch.optim.Adam, lr=0.02, weight_decay=0.1, foreach=True),
    functools.partial(AdamW, fused=True),
    functools.partial(AdamW, amsgrad=True, betas=(0.5, 0.5)),
]
MOMENTUM = OPTIMIZERS[1]


class Pair:
    """A sharded, fused model and its optimizer, and the same in one process without fuse."""

    def __init__(self, rank, world, optimizer=MOMENTUM, wrap=None, single=None, **options):
        self.single = network() if single is None else single
        self.model = (wrap or before_gather())(copy.deepcopy(self.single))
        self.plain, self.ours = (optimizer(m.parameters()) for m in (self.single, self.model))
        self.handle = torch_ws.fuse(self.model, self.ours, **options)
        self.rank, self.world = rank, world
        self.weights = [f.weight for f in self.handle._layers if f.reason is None]

    def __iter__(self):
        return iter(((self.single, self.plain), (self.model, self.ours)))

    def backward(self, everything, part):
        expected, actual = self.single(everything), self.model(part)
        size = len(part)
        assert_same(actual, expected[size * self.rank : size * (self.rank + 1)], "output")
        target_loss(expected).backward()
        target_loss(actual).backward()

    def assert_deferred(self):
        assert self.weights
        for weight in self.weights:
            assert isinstance(weight.grad, DTensor)
            local = weight.grad._local_tensor
            assert type(local) is StandardizedGrad and local.deferred.value is None

    def step(self):
        for _, optimizer in self:
            optimizer.step()
        self.compare()
        for _, optimizer in self:
            optimizer.zero_grad()

    def compare(self):
        """Parameters and states."""
        self.compare_parameters()
        ours, plain = self.ours.state_dict(), self.plain.state_dict()
        assert ours["param_groups"] == plain["param_groups"]
        assert ours["state"].keys() == plain["state"].keys()
        for key, state in plain["state"].items():
            assert list(ours["state"][key]) == list(state)
            for name, value in state.items():
                assert_same_part(ours["state"][key][name], value, f"{key} {name}")

    def compare_parameters(self, attribute="data"):
        pairs = zip(self.model.named_parameters(), self.single.parameters(), strict=True)
        for (name, parameter), other in pairs:
            ours, plain = (getattr(p, attribute) for p in (parameter, other))
            assert_same_part(ours, plain, f"{name} {attribute}")

    def train(self, steps=3, before_step=lambda model, optimizer: None, standardized=0):
        """`standardized`: how many weights are, in a pass, that the step has not made."""
        for i, batch in enumerate(batches(steps, self.rank, self.world)):
            with calls() as made:
                self.backward(*batch)
            assert i == 0 or made.total() == standardized, made
            self.assert_deferred()
            for side in self:
                before_step(*side)
            self.assert_deferred()
            with calls() as made:
                self.step()
            assert made == {"raw_update_many": 1}, made
        return self


def assert_same_part(actual, expected, what):
    """Each rank compares what it has of a DTensor: collectives would take most of the time."""
    if isinstance(actual, DTensor):
        for dim, placement in enumerate(actual.placements):
            if placement.is_shard():
                place = actual.device_mesh.get_coordinate()[dim]
                parts = expected.chunk(actual.device_mesh.size(dim), placement.dim)
                none = expected.narrow(placement.dim, 0, 0)
                expected = parts[place] if place < len(parts) else none
        actual = actual.to_local()
    assert_same(actual, expected, what)


@contextlib.contextmanager
def calls():
    """What is called to update weights, and to standardize what is gathered."""
    made: Counter = Counter()

    def counting(name, original):
        def counted(*arguments, **options):
            made[name] += 1
            return original(*arguments, **options)

        return counted

    places = (fused_update, "raw_update_many"), (gather, "standardize"), (fused_rows, "standardize")
    with contextlib.ExitStack() as stack:
        for module, name in places:
            counted = counting(name, getattr(module, name))
            stack.enter_context(mock.patch.object(module, name, counted))
        yield made


def small(*sizes, **options):
    """Linear layers; of 1 and 2 channels some ranks have no row."""
    torch.manual_seed(0)
    layers = [torch_ws.WSLinear(a, b, **options) for a, b in itertools.pairwise(sizes)]
    return nn.Sequential(nn.Flatten(), *layers).double()
