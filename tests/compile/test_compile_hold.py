"""torch.compile and hold: nothing in the graph standardizes, block after block."""

import copy

import pytest
import torch
import torch_ws
from compiling import Graphs
from small_network import Hyper, batch, gradients, network, twins

pytestmark = pytest.mark.usefixtures("fresh_compiler")


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("in_place", [False, True])
def test_hold(in_place, grouped, autocast):
    """Held weights are inputs of the graph: nothing in it standardizes, block after block."""
    model, judge = twins(torch.float32)
    if grouped:
        torch_ws.group(model)
    graphs = Graphs()
    if in_place:
        model.compile(fullgraph=True, backend=graphs)
        fast = model
    else:
        fast = torch.compile(model, fullgraph=True, backend=graphs)
    x = batch(dtype=torch.float32)

    def passes(net):
        for scale in (1, 2):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                out = net(scale * x)
            out.float().square().sum().backward()

    for _ in range(3):
        with (
            torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast),
            torch_ws.hold(fast),
        ):
            passes(fast)
        passes(judge)
    assert graphs.compilations == 1
    assert graphs.forward == [{}] and graphs.backward == [{}]
    for name, grad in gradients(judge).items():
        ours = gradients(model)[name]
        if grad is not None:
            tolerance = 1e-2 if autocast else 1e-5
            assert (ours - grad).abs().max() <= tolerance * grad.abs().max(), name
    fast(x)  # outside of a block again
    assert graphs.compilations == 2


def test_hold_leaves_the_weights_out_of_the_graph():
    """Hooks of an unused input would run in backward, among them DistributedDataParallel's."""
    model = network()
    inputs = []

    def backend(module, example_inputs):
        inputs.extend(example_inputs)
        return module

    fast = torch.compile(model, fullgraph=True, backend=backend)
    with torch_ws.hold(fast):
        fast(batch()).sum().backward()
    held = {id(p) for m in model.modules() if hasattr(m, "formula") for p in m._tensors()}
    assert inputs and held.isdisjoint(map(id, inputs))


def test_hold_gives_a_layer_no_other_weights_result():
    model, x, weight = Hyper(), torch.randn(2, 3), torch.randn(3, 3, requires_grad=True)
    judge = copy.deepcopy(model)
    fast = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch_ws.hold(fast):
        torch.testing.assert_close(fast(weight, x), judge(weight, x))
        for net in (model, judge):
            net.layer.formula = torch_ws.formulas["nfnet"]
        torch.testing.assert_close(fast(weight, x), judge(weight, x))


def test_hold_of_what_is_compiled_elsewhere():
    """The block cannot know of it: compiled code standardizes by itself, and all adds up."""
    model, judge = twins()
    fast = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = batch()
    with torch_ws.hold(model):
        for net in (fast, model, fast):
            net(x).square().sum().backward()
    for _ in range(3):
        judge(x).square().sum().backward()
    for name, grad in gradients(judge).items():
        torch.testing.assert_close(gradients(model)[name], grad)
