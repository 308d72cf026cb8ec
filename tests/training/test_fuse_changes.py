"""A fused model that changes, is copied, saved, averaged or let go of."""

import copy
import gc
import io
import weakref

import pytest
import torch
import torch_ws
from fused import FUSED, assert_same, assert_same_state, assert_stored, fused_pair, make, train
from small_network import Calls, batch, loss_of, network, twins
from torch import nn
from torch_ws.training.standardized_grad import deferred_of


@pytest.mark.parametrize("moment", ["before", "backward", "read", "step", "zero_grad"])
def test_removed_at_any_moment(moment):
    """What is left is what torch alone would have: weights, states, gradients, hooks."""
    model, optimizer, handle, judge, plain = fused_pair("SGD, momentum")
    x = batch()
    train(model, optimizer, [x])
    train(judge, plain, [x])
    moments = ["before", "backward", "read", "step", "zero_grad"]

    def actions(net, opt):
        yield None
        yield loss_of(net, x).backward()
        yield net.down.weight.grad.abs()
        yield opt.step()
        yield opt.zero_grad()

    for net, opt in ((model, optimizer), (judge, plain)):
        run = actions(net, opt)
        for name in moments:
            next(run)
            if name == moment and net is model:
                handle.remove()
        assert "_init_group" not in vars(opt) and type(opt.step).__name__ == "method"
    for layer in model.modules():
        assert "_provider" not in vars(layer)
    assert repr(handle) == "Fused(removed)"
    handle.remove()  # again: nothing
    for _ in range(2):
        train(model, optimizer, [x])
        train(judge, plain, [x])
        assert_same(model, judge)
        assert_same_state(optimizer, plain)
    with Calls() as calls:
        train(model, optimizer, [x])
    assert "update_many" not in calls.counts
    torch_ws.fuse(model, optimizer)  # and again
    train(model, optimizer, [x])
    train(judge, plain, [x, x])
    assert_same(model, judge)


def test_gradients_at_removal_are_ordinary():
    model, _, handle, judge, _ = fused_pair("SGD")
    x = batch()
    for net in (model, judge):
        loss_of(net, x).backward()
    handle.remove()
    for ours, other in zip(model.parameters(), judge.parameters(), strict=True):
        assert (ours.grad is None) == (other.grad is None)
        if ours.grad is not None:
            assert type(ours.grad) is torch.Tensor
            torch.testing.assert_close(ours.grad, other.grad, rtol=1e-12, atol=0)


# Writers of weights, each in its own way noticed
WRITERS = {
    "in place": lambda net: nn.init.uniform_(net.stem.weight, 0, 1),
    "gain": lambda net: nn.init.constant_(net.stem.gain, 2),
    "data": lambda net: setattr(net.stem.weight, "data", torch.rand_like(net.stem.weight)),
    "formula": lambda net: setattr(net.stem, "formula", "timm"),
    "load_state_dict": lambda net: net.load_state_dict(
        {k: torch.full_like(v, 0.5).cumsum(0) for k, v in net.state_dict().items()}
    ),
    "assign": lambda net: net.load_state_dict(
        {k: torch.full_like(v, 0.5).cumsum(0) for k, v in net.state_dict().items()}, assign=True
    ),
    "reset": lambda net: (torch.manual_seed(3), net.stem.reset_parameters()),
    "swap": lambda net: setattr(net.stem, "weight", nn.Parameter(torch.ones(4, 3, 3, 3).cumsum(1))),
}


@pytest.mark.parametrize("way", WRITERS)
def test_writes_between_steps(way):
    torch.manual_seed(1)
    model, optimizer, _, judge, plain = fused_pair("SGD, momentum")
    x = batch()
    train(model, optimizer, [x])
    train(judge, plain, [x])
    for net in (model, judge):
        torch.manual_seed(2)
        WRITERS[way](net)
        net.double()
    for _ in range(2):
        with torch.no_grad():
            torch.testing.assert_close(model(x), judge(x), rtol=1e-12, atol=1e-14)
        train(model, optimizer, [x])
        train(judge, plain, [x])
    assert_same(model, judge)


def test_another_formula_between_backward_and_step():
    """The gradient is by the formula that the pass had."""
    model, optimizer, _, judge, plain = fused_pair("SGD, momentum")
    for net, opt in ((model, optimizer), (judge, plain)):
        loss_of(net, torch.ones(2, 3, 6, 6, dtype=torch.float64)).backward()
        net.stem.formula = "centered_weight_norm"
        opt.step()
    assert_same(model, judge)
    assert_stored(model)


def test_another_weight_between_backward_and_step():
    """The step updates the one that the optimizer has; the layer goes on with its own."""
    model, optimizer, _, judge, plain = fused_pair("SGD, momentum")
    x = batch()
    for net, opt in ((model, optimizer), (judge, plain)):
        old = net.down.weight
        loss_of(net, x).backward()
        net.down.weight = nn.Parameter(torch.linspace(0, 1, old.numel()).double().view_as(old))
        opt.step()
        net.extra = old  # to be compared
    assert_same(model, judge)
    with torch.no_grad():
        torch.testing.assert_close(model(x), judge(x), rtol=1e-12, atol=0)


def test_refresh_after_writes_that_nobody_counts():
    model, _, handle, _, _ = fused_pair("SGD")
    layer = model.stem
    before = layer.standardized_weight().detach().clone()
    layer.weight.data.neg_()
    assert torch.equal(layer.standardized_weight(), before)  # this is what refresh is for
    handle.refresh()
    torch.testing.assert_close(layer.standardized_weight(), -before)


def test_without_the_cache_passes_follow_every_write():
    model, optimizer, _, judge, plain = fused_pair("SGD, momentum")
    torch_ws.eval_cache(False, model)
    x = batch()
    for _ in range(2):
        for net, opt in ((model, optimizer), (judge, plain)):
            net.stem.weight.data.mul_(torch.linspace(1, 2, 3).double().view(3, 1, 1))
            train(net, opt, [x])
        assert_same(model, judge)


def test_averaged_copied_and_pickled():
    """Copies have the weights, nothing that is stored and no part in the optimizer's step."""
    model, optimizer, _, judge, plain = fused_pair("AdamW")
    averages = [torch.optim.swa_utils.AveragedModel(net) for net in (model, judge)]
    for _ in range(3):
        x = batch()
        train(model, optimizer, [x])
        train(judge, plain, [x])
        averages[0].update_parameters(model)
        averages[1].update_parameters(judge)
    assert_same(*averages)
    loss_of(model, x).backward()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for copied in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert len(file.getvalue()) < 2 * sum(p.numel() * 8 for p in model.parameters()) + 20000
        for layer in copied.modules():
            assert not {"_provider", "_cached"} & vars(layer).keys()
        other = make("SGD", copied)
        before = [p.detach().clone() for p in model.parameters()]
        train(copied, other, [x])
        assert all(map(torch.equal, before, model.parameters()))
    another = copy.deepcopy(optimizer)
    assert "_init_group" not in vars(another)


def test_functional_call_and_parameters_of_others():
    """A pass with other parameters is computed for itself, and its gradients are theirs."""
    model, _, _, judge, _ = fused_pair("SGD")
    other = {n: nn.Parameter(torch.rand_like(p)) for n, p in judge.named_parameters()}
    x = batch()
    results = []
    for net in (model, judge):
        loss = torch.func.functional_call(net, other, (x,)).square().sum()
        grads = torch.autograd.grad(loss, list(other.values()), allow_unused=True)
        results.append([loss, *(g for g in grads if g is not None)])
        loss_of(net, x).backward()
    torch.testing.assert_close(*results, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        model.down.weight.grad + 0, judge.down.weight.grad, rtol=1e-12, atol=0
    )


def test_torch_func():
    model, _, _, judge, _ = fused_pair("SGD")
    x = batch()
    results = []
    for net in (model, judge):
        parameters = {n: p.detach() for n, p in net.named_parameters()}
        grads = torch.func.grad(
            lambda p, net=net: torch.func.functional_call(net, p, (x,)).square().sum()
        )(parameters)
        _, tangents = torch.func.jvp(
            lambda p, net=net: torch.func.functional_call(net, p, (x,)), (parameters,), (grads,)
        )
        results.append([*grads.values(), tangents])
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)


def test_nothing_else_of_the_weights_size():
    """Results stay where they are from step to step: nothing takes memory beside them."""
    model, optimizer, _, _, _ = fused_pair("SGD, momentum")
    train(model, optimizer, [batch(), batch()])
    places = [getattr(model, name)._cached.result.data_ptr() for name in FUSED]
    train(model, optimizer, [batch(), batch()])
    assert places == [getattr(model, name)._cached.result.data_ptr() for name in FUSED]


def test_results_that_somebody_holds_stay():
    """The step writes elsewhere then: a graph, a user, a pass of another loss."""
    model, optimizer, _, _, _ = fused_pair("SGD")
    held = model.stem.standardized_weight()
    with torch.no_grad():
        also = model.down.standardized_weight()
    values = held.detach().clone(), also.clone()
    train(model, optimizer, [batch()])
    assert torch.equal(held, values[0]) and torch.equal(also, values[1])
    assert not torch.equal(model.stem.standardized_weight(), values[0])
    assert_stored(model)


def test_train_and_eval_keep_what_is_stored():
    model, optimizer, _, _, _ = fused_pair("SGD")
    train(model, optimizer, [batch()])
    with Calls() as calls:
        for mode in (True, False, True):
            model.train(mode)
            with torch.no_grad():
                model(batch())
    assert calls.counts == {
        "forward": 3
    }  # `up`'s, which is not fused, without a cache in train mode


def test_let_go_of():
    """Nothing global keeps a model, its optimizer or its weights alive."""
    model, optimizer, handle, _, _ = fused_pair("AdamW")
    train(model, optimizer, [batch()])
    loss_of(model, batch()).backward()
    kept = [weakref.ref(t) for t in (model, optimizer, model.stem.weight)]
    del model, optimizer, handle, _
    gc.collect()
    assert [ref() for ref in kept] == [None] * 3


def test_layers_replaced_and_added():
    """A layer that is not there any more is no part of a step; a new one is computed as ever."""
    model, optimizer, handle, judge, plain = fused_pair("SGD, momentum")
    x = batch()
    new = torch_ws.WSLinear(3, 5).double()
    for net, opt in ((model, optimizer), (judge, plain)):
        train(net, opt, [x])
        net.head = copy.deepcopy(new)
        opt.add_param_group({"params": list(net.head.parameters()), "lr": 0.5})
        train(net, opt, [x, x])
    assert_same(model, judge)
    assert deferred_of(model.head.weight.grad) is None and "head" not in handle.unfused


def test_frozen_for_good():
    model, judge = twins()
    for net in (model, judge):
        net.stem.weight.requires_grad_(False)
        optimizer = make("SGD, momentum", net)
        if net is model:
            torch_ws.fuse(net, optimizer)
        train(net, optimizer, [torch.ones(2, 3, 6, 6, dtype=torch.float64)] * 3)
    assert_same(model, judge)


def test_channels_last_and_other_layouts():
    """Rows made of runs, and gradients whose strides are not the weight's."""
    model, judge = network(), network()
    judge.load_state_dict(model.state_dict())
    sides = []
    for net in (model, judge):
        net.to(memory_format=torch.channels_last)
        sides.append((net, make("AdamW", net)))
    torch_ws.fuse(*sides[0])
    for _ in range(3):
        x = batch().to(memory_format=torch.channels_last)
        for net, optimizer in sides:
            train(net, optimizer, [x])
        assert_same(model, judge)
        assert_stored(model)
