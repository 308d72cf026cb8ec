"""A fused model's nodes: one for all layers of a pass, and what falls out of that."""

import gc
import weakref

import pytest
import torch
import torch_ws
from fused import assert_same
from small_network import Switch, assert_close_gradients
from torch import nn
from torch_ws.training import serve
from torch_ws.training.standardized_grad import deferred_of

direct = serve.serve


def straight(middle=None):
    """Layers in a row; `middle`: options of the second."""
    middle = middle or {}
    layers = [torch_ws.WSLinear(4, 4), torch_ws.WSLinear(4, 4, **middle), torch_ws.WSLinear(4, 4)]
    return nn.Sequential(*layers).double()


def fused(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return optimizer, torch_ws.fuse(model, optimizer)


def grad_fns(model):
    return [layer.standardized_weight().grad_fn for layer in model]


def x_of(model):
    return torch.randn(3, 4, dtype=torch.float64)


# A middle layer of a kind of its own: with what it shares the node all the same
@pytest.mark.parametrize("middle", [{}, {"gain": True, "shift": True}, {"formula": "nfnet"}])
def test_one_node(middle):
    model = straight(middle)
    fused(model)
    assert len(set(grad_fns(model))) == 3
    for _ in range(2):
        assert len(set(grad_fns(model))) == 1


# The sizes of buckets, and how many nodes three layers of 128 bytes have: one each, whatever fits,
# and one for all
@pytest.mark.parametrize("bucket, count", [(1, 3), (256, 2), (300, 2), (384, 1)])
def test_buckets(bucket, count, monkeypatch):
    monkeypatch.setattr(serve, "BUCKET", bucket)
    model, judge = straight(), straight()
    judge.load_state_dict(model.state_dict())
    fused(model)
    grad_fns(model)
    assert len(set(grad_fns(model))) == count
    x = x_of(model)
    for net in (model, judge):
        net(x).square().sum().backward()
    assert_close_gradients(model, judge)


def test_gradients_of_a_bucket_do_not_wait_for_the_pass(monkeypatch):
    """Or they would all be in memory at once, beside those of earlier passes."""
    monkeypatch.setattr(serve, "BUCKET", 256)
    model = straight()
    optimizer, _ = fused(model)
    seen = []

    def look(grad):
        seen.append([layer.weight.grad is not None for layer in model])

    for _ in range(3):
        optimizer.zero_grad()
        middle = model[1](model[0](x_of(model)))
        middle.register_hook(look)
        model[2](middle).square().sum().backward()
    assert seen == [[False, False, True]] * 3


def test_a_layer_that_a_pass_uses_twice(monkeypatch):
    """Two nodes a pass; the one of the second use leaves others what they take in the next pass."""
    model, judge = straight(), straight()
    judge.load_state_dict(model.state_dict())
    fused(model)
    made = []
    monkeypatch.setattr(serve, "serve", lambda *a: made.append(len(a[0])) or direct(*a))
    for _ in range(3):
        made.clear()
        x = x_of(model)
        for a, b, c in (model, judge):
            c(a(b(a(x)))).square().sum().backward()
    assert len(made) == 2
    assert_close_gradients(model, judge)


def hooked(model):
    model[1].weight.register_hook(lambda grad: None)


def first_hooked(model):
    model[0].weight.register_hook(lambda grad: None)


def frozen(model):
    model[1].weight.requires_grad_(False)


def uncached(model):
    torch_ws.eval_cache(False, model[1])


def written(model):
    with torch.no_grad():
        model[1].weight.mul_(2)


def another(model):
    model[1].weight = nn.Parameter(model[1].weight.detach().clone())


# Why a layer has no part in the others' node, and how many nodes there are then
APART = [(hooked, 2), (first_hooked, 2), (written, 2), (another, 2), (uncached, 2), (frozen, 2)]


@pytest.mark.parametrize("change, count", APART)
def test_a_layer_apart(change, count):
    model, judge = straight(), straight()
    judge.load_state_dict(model.state_dict())
    fused(model)
    grad_fns(model)
    for net in (model, judge):
        change(net)
    found = grad_fns(model)
    assert len(set(found)) == count
    assert (found[1] is None) == (change is frozen)
    x = x_of(model)
    for net in (model, judge):
        net(x).square().sum().backward()
    assert_close_gradients(model, judge)


def another_formula(model):
    model[1].formula = "nfnet"


# What changes a layer after the node for all was made, and how many layers each node has: its own
# also has the one that is to come, unless it standardizes for itself
@pytest.mark.parametrize(
    "change, nodes",
    [(written, [3, 2]), (another, [3, 2]), (another_formula, [3, 2]), (uncached, [3])],
)
def test_a_change_within_a_pass(change, nodes, monkeypatch):
    """What was ready for the layer is not given to it any more."""
    model, judge = straight(), straight()
    judge.load_state_dict(model.state_dict())
    fused(model)
    grad_fns(model)
    made = []
    monkeypatch.setattr(serve, "serve", lambda *a: made.append(len(a[0])) or direct(*a))
    x = x_of(model)
    for net in (model, judge):
        out = net[0](x)
        change(net)
        out = net[2](net[1](out))
        out.square().sum().backward()
    assert made == nodes
    assert_close_gradients(model, judge)


def test_data_parallel_passes_have_a_node_a_layer(monkeypatch):
    """So that their gradients can be sent while others are computed."""
    model = straight()
    fused(model)
    grad_fns(model)
    monkeypatch.setattr(nn.parallel.DistributedDataParallel, "_active_ddp_module", object())
    for _ in range(2):
        assert len(set(grad_fns(model))) == 3


def test_graphs_that_share_a_node():
    """Each may be freed; a layer's gradient is there when those of its own graph are."""
    model, judge = straight(), straight()
    judge.load_state_dict(model.state_dict())
    fused(model)
    grad_fns(model)
    x = x_of(model)
    for net in (model, judge):
        losses = [layer(x).square().sum() for layer in net]
        losses[1].backward()
        assert net[0].weight.grad is None
        (losses[0] + losses[2]).backward()
        with pytest.raises(RuntimeError, match="second time"):
            losses[0].backward()
    assert all(deferred_of(layer.weight.grad) is not None for layer in model)
    assert_close_gradients(model, judge)


def test_a_layer_that_no_pass_reaches_any_more():
    torch.manual_seed(0)
    model, judge = Switch().double(), Switch().double()
    judge.load_state_dict(model.state_dict())
    optimizer, _ = fused(model)
    plain = torch.optim.SGD(judge.parameters(), lr=0.1, momentum=0.9)
    for last in (True, True, False, False, True):
        x = torch.randn(2, 3, dtype=torch.float64)
        for net, opt in ((model, optimizer), (judge, plain)):
            net(x, last).square().sum().backward()
            assert (net.c.weight.grad is None) == (not last)
            opt.step()
            opt.zero_grad()
    assert_same(model, judge)


@pytest.mark.parametrize("name", ["weight", "gain"])
def test_written_between_the_passes(name):
    model = straight({"gain": True})
    fused(model)
    grad_fns(model)
    out = model(x_of(model)).sum()
    with torch.no_grad():
        getattr(model[1], name).mul_(2)
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation: .*\(4"):
        out.backward()


def test_what_nobody_took_does_not_keep_the_memory():
    """The step writes the next standardized weights into the same memory."""
    model = straight()
    optimizer, _ = fused(model)
    grad_fns(model)
    model(x_of(model)).sum().backward()
    model[0].standardized_weight()  # a new pass, of which the others take nothing
    addresses = [layer._cached.result.data_ptr() for layer in model]
    optimizer.step()
    assert [layer._cached.result.data_ptr() for layer in model] == addresses
    expected = [torch_ws.standardize(layer.weight) for layer in model]
    for layer, weight in zip(model, expected, strict=True):
        assert torch.equal(layer.standardized_weight(), weight)


def test_a_model_is_freed():
    model = straight()
    optimizer, handle = fused(model)
    grad_fns(model)
    model[0].standardized_weight()  # the others' wait
    layer = weakref.ref(model[1])
    del model, optimizer, handle
    gc.collect()
    assert layer() is None


def test_double_backward():
    """Of a node for many, where a gradient's own graph goes on to all weights and the gain."""
    model, judge = straight({"gain": True}), straight({"gain": True})
    judge.load_state_dict(model.state_dict())
    fused(model)
    grad_fns(model)
    x = x_of(model)
    for net in (model, judge):
        loss_of_gradient(net, x).backward()
    assert_close_gradients(model, judge)


def loss_of_gradient(net, x):
    loss = net(x).square().sum()
    grads = torch.autograd.grad(loss, list(net.parameters()), create_graph=True)
    return loss + sum(grad.square().sum() for grad in grads)
