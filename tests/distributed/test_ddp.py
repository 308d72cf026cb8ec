"""group and hold with DistributedDataParallel, in two processes."""

import copy
import itertools

import pytest
import torch
import torch_ws
from small_network import (
    gradients,
    in_two_processes,
    network,
)
from torch import nn

pytestmark = pytest.mark.slow


class Stack(nn.Module):
    """As long as needed to have several DistributedDataParallel buckets of one layer each."""

    def __init__(self, depth=5, width=64):
        super().__init__()
        self.layers = nn.ModuleList(torch_ws.WSLinear(width, width) for _ in range(depth))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x).relu()
        return x


def _grouped(rank):
    """For each way of grouping: the order of events in backward, and the gradients."""
    torch.manual_seed(2)
    source = Stack().double()
    data = torch.randn(4, 64, dtype=torch.float64)
    results = {}
    for way, bucket_mb in itertools.product(("before", "inside", "around"), (None, 0.033)):
        model, events = copy.deepcopy(source), []
        if way == "before":
            torch_ws.group(model, bucket_mb)
        ddp = nn.parallel.DistributedDataParallel(model, bucket_cap_mb=0.033)
        if way != "before":
            torch_ws.group(ddp if way == "around" else model, bucket_mb)

        def reduce(events, bucket):
            events.append("reduce")
            return (
                torch.distributed.all_reduce(bucket.buffer().div_(2), async_op=True)
                .get_future()
                .then(lambda future: future.value()[0])
            )

        ddp.register_comm_hook(events, reduce)
        for i, layer in enumerate(model.layers):
            layer.register_full_backward_hook(lambda *_, i=i, events=events: events.append(i))
        x = data[2 * rank : 2 * rank + 2].requires_grad_()
        for _ in range(3):
            events.clear()
            ddp.zero_grad()
            ddp(x).mean().backward()
        results[way, bucket_mb] = list(events), gradients(model)
    return source, data, results


def test_group():
    """Buckets let the reduction of late layers begin before early layers run backward."""
    (source, data, first), (_, _, second) = in_two_processes(_grouped)
    source(data).mean().backward()
    for case in first:
        for events, grads in (first[case], second[case]):
            for name, grad in gradients(source).items():
                torch.testing.assert_close(grads[name], grad)
            # layer 1 has run backward, so that layer 0's gradient is what remains
            early = events[: events.index(1)].count("reduce")
            if case[1] is None:
                assert early == 0, (case, events)
            else:
                assert early >= 2, (case, events)


class Reached(nn.Module):
    """DistributedDataParallel wants every parameter to be used."""

    def __init__(self, model):
        super().__init__()
        del model.unreached
        self.model = model

    def forward(self, x):
        return self.model(x)


def _held(rank):
    """Both ranks' gradients after a block of three micro-batches, each rank with its own half."""
    ddp = nn.parallel.DistributedDataParallel
    torch.manual_seed(1)
    source = Reached(network())
    data = torch.randn(3, 4, 3, 6, 6, dtype=torch.float64)
    results = {}
    for as_view in (False, True):
        for wrapper in ("DistributedDataParallel", "module", "compiled"):
            model = ddp(copy.deepcopy(source), gradient_as_bucket_view=as_view)
            if wrapper == "compiled":
                model.module.compile(fullgraph=True, backend="aot_eager")
            for _ in range(2):  # a second step, with rebuilt buckets
                model.zero_grad()
                with torch_ws.hold(model if wrapper != "module" else model.module):
                    for i, x in enumerate(data):
                        half = x[2 * rank : 2 * rank + 2]
                        if i < 2:
                            with model.no_sync():
                                model(half).square().mean().backward()
                        else:
                            model(half).square().mean().backward()
            results[as_view, wrapper] = {n: g.clone() for n, g in gradients(model.module).items()}
    errors = {}
    try:
        with torch_ws.hold(model):
            for x in data:
                model(x).sum().backward()
    except RuntimeError as error:
        errors["no_sync"] = str(error)
    for option in ("find_unused_parameters", "static_graph"):
        try:
            with torch_ws.hold(ddp(copy.deepcopy(source), **{option: True})):
                pass
        except ValueError as error:
            errors[option] = str(error)
    return results, errors, source, data


def test_hold():
    """After the block, both ranks have the gradients of one process on the whole batch."""
    (first, errors, judge, data), (second, *_) = in_two_processes(_held)
    for x in data:
        judge(x).square().mean().backward()
    expected = gradients(judge)
    for results in (first, second):
        for case, grads in results.items():
            for name, grad in grads.items():
                error = (grad - expected[name]).abs().max() / expected[name].abs().max()
                assert error < 1e-12, (case, name)
    assert "all passes but the last must run under the no_sync()" in errors["no_sync"]
    assert "must have find_unused_parameters=False" in errors["find_unused_parameters"]
    assert "must have static_graph=False" in errors["static_graph"]
