"""However gradients come about in a fused model, its training is that of the plain one."""

import threading

import pytest
import torch
from fused import FUSED, assert_same, assert_same_state, assert_stored, fused_pair
from small_network import assert_close_gradients, batch, loss_of
from torch.utils.checkpoint import checkpoint
from torch_ws.training import standardized_grad
from torch_ws.training.standardized_grad import deferred_of

# How gradients come about, each a function of a network and two batches; all call backward.


def several_backwards(net, x, y):
    loss_of(net, x).backward()
    loss_of(net, y, 3).backward()
    loss_of(net, x, 4).backward()


def two_losses(net, x, y):
    out = net(x)
    out.square().sum().backward(retain_graph=True)
    out.pow(3).sum().backward()


def two_passes(net, x, y):
    (loss_of(net, x) + loss_of(net, y)).backward()


def penalty_on_weights(net, x, y):
    (loss_of(net, x) + sum(p.square().sum() for p in net.parameters())).backward()


def checkpointed(net, x, y):
    for reentrant in (False, True):
        checkpoint(net, x.requires_grad_(), use_reentrant=reentrant).square().sum().backward()


def gradient_penalty(net, x, y):
    loss = loss_of(net, x)
    grads = torch.autograd.grad(loss, [net.stem.weight, net.down.weight], create_graph=True)
    (loss + sum(g.square().sum() for g in grads)).backward()


def scaled_by_hand(net, x, y):
    loss_of(net, x).backward()
    for p in net.parameters():
        if p.grad is not None:
            p.grad.mul_(0.3).div_(2)
    loss_of(net, y).backward()


def of_some_inputs(net, x, y):
    loss_of(net, x).backward(inputs=[net.stem.weight, net.head.gain])


def zeroed_in_place(net, x, y):
    loss_of(net, x).backward()
    for p in net.parameters():
        if p.grad is not None:
            p.grad.zero_()
    loss_of(net, y).backward()


def with_frozen_gain(net, x, y):
    net.stem.gain.requires_grad_(False)
    loss_of(net, x).backward()
    net.stem.gain.requires_grad_(True)


def in_eval_mode(net, x, y):
    net.eval()
    loss_of(net, x).backward()
    net.train()


def with_passes_of_no_gradient(net, x, y):
    with torch.no_grad():
        net(y)
    with torch.inference_mode():
        net(y)
    loss_of(net, x).backward()
    net.eval()
    with torch.no_grad():
        net(y)
    net.train()


def add_one(parameter):
    parameter.grad.add_(1)


def hooked(net, x, y):
    """A tensor hook that changes a gradient, and one on the parameter's accumulation."""
    handles = [
        net.stem.weight.register_hook(lambda grad: 2 * grad.clamp(-1, 1)),
        net.down.weight.register_hook(lambda grad: None),
        net.head.weight.register_post_accumulate_grad_hook(add_one),
    ]
    loss_of(net, x).backward()
    for handle in handles:
        handle.remove()


WAYS = [
    several_backwards,
    two_losses,
    two_passes,
    penalty_on_weights,
    checkpointed,
    gradient_penalty,
    scaled_by_hand,
    of_some_inputs,
    zeroed_in_place,
    with_frozen_gain,
    in_eval_mode,
    with_passes_of_no_gradient,
    hooked,
]


@pytest.mark.parametrize("way", WAYS)
def test_ways_to_gradients(way):
    model, optimizer, _, judge, plain = fused_pair("SGD, momentum", lr=1e-3)
    for _ in range(3):
        x, y = batch(), batch(3)
        for net, opt in ((model, optimizer), (judge, plain)):
            way(net, x.clone(), y.clone())
            opt.step()
            opt.zero_grad()
        assert_same(model, judge)
        assert_same_state(optimizer, plain)
        assert_stored(model, made=way is not of_some_inputs)


def test_gradients_are_deferred():
    """Otherwise nothing here would test what it is about."""
    model, _, _, _, _ = fused_pair("SGD")
    several_backwards(model, batch(), batch())
    for name in FUSED:
        assert deferred_of(getattr(model, name).weight.grad) is not None, name


# What makes the graph itself add a gradient to .grad: who would notice otherwise; None: nobody
WATCHERS = {
    "nobody": None,
    "tensor hook": lambda weight: weight.register_hook(lambda grad: None),
    "accumulation hook": lambda weight: weight.register_post_accumulate_grad_hook(lambda p: None),
}


@pytest.mark.parametrize("watcher", WATCHERS)
def test_the_graph_adds_gradients_where_somebody_looks(watcher, monkeypatch):
    """Elsewhere the node does, which spares Python two calls of the dispatcher a layer."""
    model, _, _, judge, _ = fused_pair("SGD")
    calls = []
    detach = standardized_grad._LINEAR[torch.ops.aten.detach.default]
    counting = {torch.ops.aten.detach.default: lambda g: calls.append(g.shape) or detach(g)}
    monkeypatch.setattr(standardized_grad, "_LINEAR", standardized_grad._LINEAR | counting)
    weight = model.down.weight
    handle = WATCHERS[watcher] and WATCHERS[watcher](weight)
    x = batch()
    for net in (model, judge):
        loss_of(net, x).backward()
    assert calls == ([weight.shape] if handle else [])
    assert deferred_of(weight.grad) is not None
    if handle:
        handle.remove()
        weight.grad = judge.down.weight.grad = None
        for net in (model, judge):
            loss_of(net, x).backward()
        assert len(calls) == 1
    assert_close_gradients(model, judge)


def test_threads_add_their_gradients():
    """Each pass of each thread is in the sum once."""
    model, _, _, judge, _ = fused_pair("SGD")
    xs = [batch() for _ in range(8)]
    barrier = threading.Barrier(4)

    def run(some):
        barrier.wait()
        for x in some:
            loss_of(model, x).backward()

    threads = [threading.Thread(target=run, args=(xs[i::4],)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for x in xs:
        loss_of(judge, x).backward()
    for name in FUSED:
        assert deferred_of(getattr(model, name).weight.grad) is not None, name
    assert_close_gradients(model, judge)
