"""group: the handle tells what it has served, and a layer that trains outside of a pass warns."""

import copy
import gc
import threading
import warnings

import pytest
import torch
import torch_ws
from small_network import batch, network
from torch import nn
from torch.utils.checkpoint import checkpoint

WARNING = r"torch_ws.group\(Trainer\) is not active: WSConv2d\(.*Call Trainer itself"


class Trainer(nn.Module):
    """Has the loop, as Lightning's modules do: its own forward is not what is called."""

    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, x):
        return self.net(x)

    def training_step(self, x):
        return self.net(x).square().mean()


def said(function):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        function()
    return [str(w.message) for w in caught]


def test_repr_tells_layers_and_passes():
    model = network()
    handle = torch_ws.group(model)
    assert repr(handle) == "Group(Network: 6 layers, 0 passes served)"
    for _ in range(2):
        model(batch())
    assert repr(handle) == "Group(Network: 6 layers, 2 passes served)"
    handle.remove()
    assert repr(handle) == "Group(removed)"


def test_repr_of_a_compiled_group(fresh_compiler):
    model = nn.Sequential(torch_ws.WSLinear(3, 4), torch_ws.WSLinear(4, 2))
    handle = torch_ws.group(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert not said(lambda: [compiled(torch.randn(2, 3)).sum().backward() for _ in range(2)])
    assert repr(handle) == "Group(Sequential: 2 layers, compiled)"


def test_training_past_the_forward_warns_once_and_computes():
    trainer, x = Trainer(), batch()
    judge = copy.deepcopy(trainer)
    torch_ws.group(trainer)
    with pytest.warns(UserWarning, match=WARNING):
        trainer.training_step(x).backward()
    assert not said(lambda: trainer.training_step(x))
    judge.training_step(x).backward()
    for parameter, expected in zip(trainer.parameters(), judge.parameters(), strict=True):
        assert (parameter.grad is None) == (expected.grad is None)
        assert parameter.grad is None or torch.equal(parameter.grad, expected.grad)


def test_after_passes_too():
    trainer = Trainer()
    torch_ws.group(trainer)
    trainer(batch())
    with pytest.warns(UserWarning, match=WARNING):
        trainer.training_step(batch())


def outside_without_gradients(trainer):
    with torch.no_grad():
        trainer.training_step(batch())


def frozen(trainer):
    trainer.requires_grad_(False).training_step(batch())


def in_eval(trainer):
    trainer.eval().training_step(batch())


def ungrouped(trainer):
    trainer.handle.remove()
    trainer.training_step(batch())


def held(trainer):
    with torch_ws.hold(trainer):
        trainer.training_step(batch()).backward()
    trainer(batch())


def recomputed(trainer):
    stem = trainer.net.stem
    stem.forward = lambda x, run=stem.forward: checkpoint(run, x, use_reentrant=False)
    trainer(batch()).square().mean().backward()


def recomputed_reentrant(trainer):
    stem = trainer.net.stem
    stem.forward = lambda x, run=stem.forward: checkpoint(run, x, use_reentrant=True)
    trainer(batch().requires_grad_()).square().mean().backward()


def of_a_copy(trainer):
    copy.deepcopy(trainer).training_step(batch())


def of_a_layer_whose_model_is_gone(trainer):
    net = Trainer()
    torch_ws.group(net)
    stem = net.net.stem
    del net
    gc.collect()
    stem(batch())


# what goes on outside of a pass, or seems to, and is no reason for a warning
@pytest.mark.parametrize(
    "use",
    [
        outside_without_gradients,
        frozen,
        in_eval,
        ungrouped,
        held,
        recomputed,
        recomputed_reentrant,
        of_a_copy,
        of_a_layer_whose_model_is_gone,
    ],
)
def test_no_warning(use):
    trainer = Trainer()
    trainer.handle = torch_ws.group(trainer)
    assert not said(lambda: use(trainer))


def test_no_warning_while_another_pass_runs():
    """A layer's place in one pass may be taken by a pass of another thread that ends first."""
    model, x = network(), batch()
    expected = model(x)
    torch_ws.group(model)
    inner = threading.Event()

    def forward_in_another_thread(*_):
        if not inner.is_set():
            inner.set()
            thread = threading.Thread(target=lambda: model(x))
            thread.start()
            thread.join()

    model.norm.register_forward_hook(forward_in_another_thread)
    outputs = []
    assert not said(lambda: outputs.append(model(x)))
    assert inner.is_set() and torch.equal(outputs[0], expected)
