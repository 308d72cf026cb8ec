"""torch.compile: one graph, compiled once, with the launches that eager execution has."""

import copy

import pytest
import torch
import torch_ws
from compiling import Graphs
from small_network import Hyper, batch, gradients, network, twins
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

pytestmark = pytest.mark.usefixtures("fresh_compiler")


def train(model, fast, x):
    """Three steps of training; the results."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    outs = []
    for _ in range(3):
        optimizer.zero_grad()
        outs.append(fast(x))
        outs[-1].square().sum().backward()
        optimizer.step()
    return outs


def assert_close(model, judge):
    for name, value in judge.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value)
    for name, grad in gradients(judge).items():
        torch.testing.assert_close(gradients(model)[name], grad)


# None: the layers one by one, 6 calls of 5 layers; group in one bucket, and in five
@pytest.mark.parametrize(
    ("grouping", "forward", "backward"),
    [
        (None, {"forward": 6}, {"backward": 4, "backward_affine": 2}),
        ((), {"forward_many": 1}, {"backward_many": 1}),
        ((1e-9,), {"forward_many": 5}, {"backward_many": 5}),
    ],
)
def test_training(grouping, forward, backward):
    model, judge = twins()
    if grouping is not None:
        torch_ws.group(model, *grouping)
    graphs = Graphs()
    fast = torch.compile(model, fullgraph=True, backend=graphs)
    x = batch()
    torch.testing.assert_close(train(model, fast, x), train(judge, judge, x))
    assert_close(model, judge)
    assert graphs.compilations == 1
    found = graphs.backward[0]
    if grouping is None:
        assert sum(found.values()) == 6
    else:
        assert found == backward
    assert graphs.forward == [forward]


@pytest.mark.parametrize("grouped", [False, True])
def test_an_eager_pass_before_teaches_the_compiled_one(grouped):
    """What is not reached is then not computed; eager passes in between recompile nothing."""
    model, judge = twins()
    if grouped:
        torch_ws.group(model, 1e-9)
    x = batch()
    model(x)
    graphs = Graphs()
    fast = torch.compile(model, fullgraph=True, backend=graphs)
    for _ in range(2):
        torch.testing.assert_close(train(model, fast, x), train(judge, judge, x))
        torch.testing.assert_close(train(model, model, x), train(judge, judge, x))
    assert graphs.compilations == 1
    if grouped:
        assert graphs.forward == [{"forward_many": 5}]


@pytest.mark.parametrize("grouped", [False, True])
def test_evaluation_sees_every_change(grouped):
    """The graph computes the weight from the parameter: nothing that eval mode keeps is in it."""
    model, judge = twins()
    if grouped:
        torch_ws.group(model)
    model.eval()
    graphs = Graphs()
    fast = torch.compile(model, fullgraph=True, backend=graphs)
    x = batch()
    with torch.no_grad():
        model(x)  # fills the layers' caches
        for _ in range(3):
            torch.testing.assert_close(fast(x), judge(x))
            for net in (model, judge):
                net.stem.weight.copy_(net.stem.weight.roll(1, 0).exp())
    assert graphs.compilations == 1
    assert graphs.forward == [{"forward_many": 1} if grouped else {"forward": 6}]


@pytest.mark.slow
@pytest.mark.parametrize("grouped", [False, True])
def test_inductor(grouped):
    model = nn.Sequential(
        torch_ws.WSConv2d(3, 4, 3, padding="same", stride=2, gain=True),
        nn.GroupNorm(2, 4),
        nn.ReLU(),
        torch_ws.WSConv2d(4, 5, 3, formula="nfnet"),
    )
    judge = copy.deepcopy(model)
    if grouped:
        torch_ws.group(model)
    counter = CompileCounterWithBackend("inductor")
    fast = torch.compile(model, fullgraph=True, backend=counter)
    x = torch.randn(2, 3, 9, 9)
    torch.testing.assert_close(train(model, fast, x), train(judge, judge, x))
    assert_close(model, judge)
    assert counter.frame_count == 1


def test_compile_in_place():
    model, judge = twins()
    torch_ws.group(model)
    graphs = Graphs()
    model.compile(fullgraph=True, backend=graphs)
    x = batch()
    torch.testing.assert_close(train(model, model, x), train(judge, judge, x))
    assert_close(model, judge)
    assert graphs.compilations == 1 and graphs.backward == [{"backward_many": 1}]


@pytest.mark.parametrize("grouped", [False, True])
def test_autocast(grouped):
    model, judge = twins(torch.float32)
    if grouped:
        torch_ws.group(model)
    graphs = Graphs()
    fast = torch.compile(model, fullgraph=True, backend=graphs)
    x = batch(dtype=torch.float32)
    for _ in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(fast(x), judge(x))
    assert graphs.compilations == 1
    assert graphs.forward == [{"forward_many": 1} if grouped else {"forward": 6}]


def test_group_removed_and_changed():
    model, judge = twins()
    handle = torch_ws.group(model)
    graphs = Graphs()
    fast = torch.compile(model, fullgraph=True, backend=graphs)
    x = batch()
    fast(x)
    for net in (model, judge):
        net.up.formula = torch_ws.formulas["timm"]
        net.twice = nn.Sequential(net.twice, torch_ws.WSConv2d(4, 4, 1, dtype=torch.float64))
    judge.load_state_dict(model.state_dict())
    torch.testing.assert_close(fast(x), judge(x))
    assert graphs.forward[-1] == {"forward_many": 1}
    handle.remove()
    torch.testing.assert_close(fast(x), judge(x))
    assert graphs.forward[-1] == {"forward": 8}


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, x):
        x = self.net.stem(x)
        x = checkpoint(lambda x: self.net.twice(x).relu(), x, use_reentrant=False)
        return self.net.head(self.net.norm(x).mean((2, 3))[:, :3])


@pytest.mark.parametrize("bucket_mb", [None, 1e-9])
def test_group_with_checkpoints(bucket_mb):
    model = Checkpointed()
    judge = copy.deepcopy(model)
    torch_ws.group(model, bucket_mb)
    graphs = Graphs()
    fast = torch.compile(model, fullgraph=True, backend=graphs)
    x = batch()
    torch.testing.assert_close(train(model, fast, x), train(judge, judge, x))
    assert_close(model, judge)
    assert graphs.compilations == 1


def test_group_gives_a_layer_no_other_weights_result():
    model, x, weight = Hyper(), torch.randn(2, 3), torch.randn(3, 3, requires_grad=True)
    judge = copy.deepcopy(model)
    torch_ws.group(model)
    fast = torch.compile(model, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        torch.testing.assert_close(fast(weight, x), judge(weight, x))
