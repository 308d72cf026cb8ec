"""fuse with DistributedDataParallel, in two processes: the training of one process."""

import copy

import pytest
import torch
import torch_ws
from fused import OPTIMIZERS, assert_same
from small_network import in_two_processes, network
from test_ddp import Reached
from torch import nn

pytestmark = pytest.mark.slow
WAYS = [  # (options of DistributedDataParallel, what is given to fuse, accumulate)
    ({}, "module", False),
    ({}, "ddp", True),
    ({"gradient_as_bucket_view": True}, "ddp", True),
    ({"find_unused_parameters": True}, "before", False),
    ({"static_graph": True, "gradient_as_bucket_view": True}, "module", False),
]


def _make(name, model):
    cls, options = OPTIMIZERS[name]
    return cls(model.parameters(), lr=0.02, **options)


def _trained(rank):
    """The models after three steps, each rank with its half of the batches."""
    torch.manual_seed(1)
    source = Reached(network())
    data = torch.randn(6, 4, 3, 6, 6, dtype=torch.float64)
    models = []
    for options, what, accumulate in WAYS:
        for name in ("SGD, momentum", "AdamW, fused"):
            model = copy.deepcopy(source)
            optimizer = _make(name, model)
            if what == "before":
                torch_ws.fuse(model, optimizer)
            ddp = nn.parallel.DistributedDataParallel(model, **options)
            if what != "before":
                torch_ws.fuse(ddp if what == "ddp" else model, optimizer)
            for i in range(0, 6, 2):
                halves = [x[2 * rank : 2 * rank + 2] for x in data[i : i + 2]]
                if accumulate:
                    with ddp.no_sync():
                        ddp(halves[0]).square().mean().backward()
                ddp(halves[1]).square().mean().backward()
                nn.utils.clip_grad_norm_(ddp.parameters(), 0.5)
                optimizer.step()
                optimizer.zero_grad()
            models.append(model)
    return source, data, models


def test_training_is_that_of_one_process():
    (source, data, first), (_, _, second) = in_two_processes(_trained)
    models = iter(zip(first, second, strict=True))
    for _, _, accumulate in WAYS:
        for name in ("SGD, momentum", "AdamW, fused"):
            judge = copy.deepcopy(source)
            optimizer = _make(name, judge)
            for i in range(0, 6, 2):
                for x in data[i + (not accumulate) : i + 2]:
                    judge(x).square().mean().backward()
                nn.utils.clip_grad_norm_(judge.parameters(), 0.5)
                optimizer.step()
                optimizer.zero_grad()
            for model in next(models):
                assert_same(model, judge, 1e-11)
