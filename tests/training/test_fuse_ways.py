"""However gradients come about in a fused model, its training is that of the plain one."""

import pytest
import torch
from fused import FUSED, assert_same, assert_same_state, assert_stored, fused_pair
from small_network import batch, loss_of
from torch.utils.checkpoint import checkpoint
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
