"""group: several passes, checkpointing, hooks and modes; whose graph a layer is in."""

import copy
import threading

import pytest
import torch
import torch_ws
from small_network import (
    BUCKETS,
    SOME,
    Calls,
    Switch,
    assert_same_gradients,
    batch,
    gradients,
    network,
    step,
)
from torch import nn
from torch.utils.checkpoint import checkpoint


@pytest.mark.parametrize("bucket_mb", [None, SOME])
def test_several_forward_passes_before_backward(pair, bucket_mb):
    model, judge, x = pair
    torch_ws.group(model, bucket_mb)
    for net in (model, judge):
        outs = [net(scale * x) for scale in (1, 2, 3)]
        sum(out.square().sum() for out in outs).backward()
    for name, grad in gradients(judge).items():
        torch.testing.assert_close(gradients(model)[name], grad)


def test_retain_graph_and_double_backward(pair):
    model, judge, x = pair
    torch_ws.group(model, SOME)

    def penalize(net):
        loss = net(x).pow(3).sum()
        parameters = [p for p in net.parameters() if p is not net.unreached.weight]
        parameters = [p for p in parameters if p is not net.unreached.bias]
        grads = torch.autograd.grad(loss, parameters, create_graph=True)
        sum(g.square().sum() for g in grads).backward()

    penalize(model)
    penalize(judge)
    for name, grad in gradients(judge).items():
        torch.testing.assert_close(gradients(model)[name], grad)


@pytest.mark.parametrize("bucket_mb", BUCKETS)
def test_two_losses_of_one_pass(bucket_mb):
    """The layers of a bucket share a node: it runs twice only if the first time retains it."""
    model, x = Switch(), torch.randn(2, 3)
    judge = copy.deepcopy(model)

    def losses(net):
        return net.a(x).sum(), net.b(x).square().sum()

    class Root(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self):
            return losses(self.net)

    root = Root(model)
    torch_ws.group(root, bucket_mb)
    for retain in (True, False):
        model.zero_grad()
        first, second = root()
        first.backward(retain_graph=retain)
        if retain or bucket_mb == 1e-9:
            second.backward()
        else:
            with pytest.raises(RuntimeError, match="backward through the graph a second time"):
                second.backward()
            continue
        judge.zero_grad()
        for loss in losses(judge):
            loss.backward()
        assert_same_gradients(model, judge)


class Checkpointed(nn.Module):
    """Recomputes the middle of Network, the layer that is used twice among it, in backward."""

    def __init__(self, use_reentrant):
        super().__init__()
        self.net = network()
        self.use_reentrant = use_reentrant

    def forward(self, x):
        x = self.net.norm(self.net.stem(x)).relu()
        x = checkpoint(self.middle, x, use_reentrant=self.use_reentrant)
        return self.net.head(self.net.twice(x).mean((2, 3))[:, :3])

    def middle(self, x):
        return self.net.twice(self.net.twice(x)).relu()


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("bucket_mb", BUCKETS)
def test_checkpoints_of_parts(use_reentrant, bucket_mb):
    model = Checkpointed(use_reentrant)
    judge = copy.deepcopy(model)
    torch_ws.group(model, bucket_mb)
    for _ in range(3):
        x = batch()
        assert torch.equal(step(model, x), step(judge, x))
        for name, grad in gradients(judge).items():  # the order of the sum over uses differs
            torch.testing.assert_close(gradients(model)[name], grad)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_checkpoint_of_the_whole(pair, use_reentrant):
    model, judge, x = pair
    torch_ws.group(model)
    for _ in range(2):
        for net in (model, judge):
            net.zero_grad()
            out = checkpoint(net, x.requires_grad_(), use_reentrant=use_reentrant)
            out.square().sum().backward()
        assert_same_gradients(model, judge)


def test_saved_tensors_on_the_host(pair):
    """Hooks around the whole pass are the same for all layers: they go on in one launch."""
    model, judge, x = pair
    torch_ws.group(model)
    step(model, x)
    with torch.autograd.graph.save_on_cpu(), Calls() as calls:
        step(model, x)
    assert calls.counts == {"forward_many": 1, "backward_many": 1}
    step(judge, x)
    assert_same_gradients(model, judge)


def test_threads(pair):
    """Passes in several threads share nothing: each has gradients of its own."""
    model, judge, x = pair
    torch_ws.group(model)
    expected = torch.autograd.grad(judge(x).square().sum(), judge.stem.weight)[0]
    barrier, results = threading.Barrier(4), [None] * 4

    def wait(*_):
        barrier.wait(timeout=60)

    model.norm.register_forward_hook(wait)

    def run(i):
        results[i] = torch.autograd.grad(model(x).square().sum(), model.stem.weight)[0]

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(result, expected) for result in results)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_modes(pair, training, mode):
    model, judge, x = pair
    torch_ws.group(model)
    step(model, x)
    for net in (model, judge):
        net.train(training)
    for _ in range(2):
        with mode():
            assert torch.equal(model(x), judge(x))
    with Calls() as calls, mode():
        model(x)
    cached = not training and mode is not torch.enable_grad
    if cached:
        assert calls.counts == {}
    elif mode is not torch.inference_mode:
        assert calls.counts == {"forward_many": 1}
    model.train()
    with Calls() as calls:
        step(model, x)
    assert calls.counts == {"forward_many": 1, "backward_many": 1}


def test_gradients_enabled_only_inside():
    class Inside(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, x):
            with torch.no_grad():
                hidden = self.net.stem(x)
            with torch.enable_grad():
                return self.net.twice(hidden + self.net.stem(x))

    model, x = Inside(), batch()
    judge = copy.deepcopy(model)
    torch_ws.group(model)
    for _ in range(2):
        for net in (model, judge):
            net.zero_grad()
            with torch.no_grad():
                out = net(x)
            out.square().sum().backward()
        assert_same_gradients(model, judge)
