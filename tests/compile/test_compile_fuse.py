"""fuse and torch.compile: a compiled model trains as without it, compiled before or after."""

import pytest
import torch
import torch_ws
from fused import FUSED, assert_same, assert_same_state, fused_pair, make
from small_network import Calls, assert_close_gradients, batch, twins
from torch_ws.training.standardized_grad import deferred_of

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["SGD, momentum", "AdamW, fused"])
@pytest.mark.parametrize("when", ["before", "after", "layer"])  # compiled: before fuse, after it
def test_a_compiled_model(name, when, fresh_compiler):
    """In its graph layers standardize for themselves; the step takes their gradients."""
    model, judge = twins()
    optimizer, plain = make(name, model), make(name, judge)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.backends.debugging.aot_eager(graph, inputs)

    if when == "before":
        model.compile(fullgraph=True, backend=backend)
    torch_ws.fuse(model, optimizer)
    if when == "after":
        model.compile(fullgraph=True, backend=backend)
    if when == "layer":  # one layer compiled, the others served
        model.twice.compile(fullgraph=True, backend=backend)
    for i in range(3):
        x = batch()
        for net, opt in ((model, optimizer), (judge, plain)):
            net(x).square().sum().backward()
            if i == 1:
                net(x).square().sum().backward()
            if net is model:
                deferred = {n for n in FUSED if deferred_of(getattr(net, n).weight.grad)}
                assert deferred == (set(FUSED) - {"twice"} if when == "layer" else set())
            with Calls() as calls:
                opt.step()
            assert calls.counts == ({"update_many": 1} if net is model else {})
            opt.zero_grad()
        assert_same(model, judge)
        assert_same_state(optimizer, plain)
    assert len(graphs) == 1  # nothing that a step changes is guarded


def test_gradients_read_by_compiled_code(fresh_compiler):
    """A compiled function that is given weights finds their gradients."""
    model, _, _, judge, _ = fused_pair("SGD")

    @torch.compile(backend="aot_eager")
    def clip(parameters):
        total = sum(p.grad.square().sum() for p in parameters).sqrt()
        for p in parameters:
            p.grad.mul_(1 / total)
        return total

    for _ in range(3):
        x = batch()
        results = []
        for net in (model, judge):
            net(x).square().sum().backward()
            weights = [net.stem.weight, net.down.weight]
            results.append([clip(weights), *(p.grad.clone() for p in weights)])
            net.zero_grad()
        torch.testing.assert_close(*results, rtol=1e-12, atol=0)


@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace:UserWarning")
def test_compiled_autograd(fresh_compiler):
    """A backward pass that is compiled, at times in pieces, leaves ordinary gradients."""
    model, optimizer, _, judge, plain = fused_pair("SGD")
    model(batch())
    for _ in range(3):
        x = batch()
        with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
            model(x).square().sum().backward()
        judge(x).square().sum().backward()
        assert {type(p.grad) for p in model.parameters()} <= {torch.Tensor, type(None)}
        assert_close_gradients(model, judge)
        for opt in (optimizer, plain):
            opt.step()
            opt.zero_grad()
    assert_same(model, judge)
