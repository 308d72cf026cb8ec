"""fuse: training is that of the plain composition, with the updates of weights in one call."""

import io

import pytest
import torch
import torch_ws
from fused import (
    OPTIMIZERS,
    assert_same,
    assert_same_state,
    assert_stored,
    fused_pair,
    make,
    train,
)
from small_network import Calls, batch, loss_of, twins
from torch_ws.training.standardized_grad import deferred_of


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_is_that_without_it(name):
    model, optimizer, handle, judge, plain = fused_pair(name)
    assert handle.unfused.keys() == {"up"}
    for size in (2, 1, 3, 2):
        x = batch(size)
        with Calls() as calls:
            train(model, optimizer, [x])
        train(judge, plain, [x])
        # unreached and up are not fused; each pass makes their weights; nobody else's
        assert calls.counts.get("update_many", 1) == 1
        assert_same(model, judge)
        assert_same_state(optimizer, plain)
        assert_stored(model)
    assert "unreached.weight" not in {n for n, p in model.named_parameters() if p.grad is not None}


def test_resumed_bit_for_bit():
    """A checkpoint has weights and states alone: what is stored is made of them again, the same."""
    batches = [batch() for _ in range(6)]
    model, optimizer, _, _, _ = fused_pair("AdamW")
    train(model, optimizer, batches[:3])
    resumed, _ = twins()
    other = make("AdamW", resumed)
    torch_ws.fuse(resumed, other)
    train(resumed, other, [batch()])  # some other steps before
    resumed.load_state_dict(model.state_dict())
    other.load_state_dict(torch.load(saved(optimizer.state_dict()), weights_only=True))
    train(model, optimizer, batches[3:])
    train(resumed, other, batches[3:])
    for ours, theirs in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def saved(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


@pytest.mark.parametrize("name", ["SGD, momentum", "amsgrad"])  # states before the first step: none
def test_state_dicts_go_both_ways(name):
    """From a fused optimizer to a plain one and back, in the middle of training."""
    batches = [batch() for _ in range(6)]
    model, optimizer, handle, judge, plain = fused_pair(name)
    train(judge, plain, batches)
    train(model, optimizer, batches[:2])
    middle, _ = twins()
    middle.load_state_dict(model.state_dict())
    unfused = make(name, middle)
    unfused.load_state_dict(optimizer.state_dict())
    train(middle, unfused, batches[2:4])
    model.load_state_dict(middle.state_dict())
    state = unfused.state_dict()
    for one in state["state"].values():  # in another layout: the kernel wants the weight's
        for key, value in one.items():
            if value.dim() == 4:
                one[key] = value.contiguous(memory_format=torch.channels_last)
    optimizer.load_state_dict(state)
    train(model, optimizer, batches[4:])
    assert_same(model, judge)
    assert_same_state(optimizer, plain)
    assert handle.unfused.keys() == {"up"}


@pytest.mark.parametrize("name", ["SGD, nesterov", "AdamW, fused"])
def test_schedulers_and_groups(name):
    """Options of each group and their schedules, a weight that is frozen for a while."""
    model, judge = twins()
    sides = []
    for net in (model, judge):
        cls, options = OPTIMIZERS[name]
        decayed = [p for p in net.parameters() if p.dim() > 1]
        others = [p for p in net.parameters() if p.dim() <= 1]
        groups = [{"params": decayed, "weight_decay": 0.2}, {"params": others, "lr": 0.01}]
        optimizer = cls(groups, lr=0.02, **options)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=8)
        sides.append((net, optimizer, schedule))
    torch_ws.fuse(model, sides[0][1])
    for i in range(6):
        x = batch()
        for net, optimizer, schedule in sides:
            net.twice.weight.requires_grad_(i % 3 != 1)
            train(net, optimizer, [x])
            schedule.step()
        assert_same(model, judge)
        assert_stored(model)


def test_lr_as_a_tensor():
    model, judge = twins()
    for net in (model, judge):
        optimizer = torch.optim.SGD(net.parameters(), lr=torch.tensor(0.02), momentum=0.9)
        if net is model:
            torch_ws.fuse(net, optimizer)
        train(net, optimizer, [torch.ones(2, 3, 6, 6, dtype=torch.float64)] * 2)
        optimizer.param_groups[0]["lr"].fill_(0.01)
        train(net, optimizer, [torch.ones(2, 3, 6, 6, dtype=torch.float64)] * 2)
    assert_same(model, judge)


def test_closure():
    model, optimizer, _, judge, plain = fused_pair("Adam")
    for x in (batch(), batch()):
        results = []
        for net, opt in ((model, optimizer), (judge, plain)):

            def closure(net=net, opt=opt, x=x):
                opt.zero_grad()
                loss = loss_of(net, x)
                loss.backward()
                return loss

            results.append(opt.step(closure))
        torch.testing.assert_close(*results)
        assert_same(model, judge)


def test_other_hooks_see_what_is_theirs():
    """Before a step the gradients, after it the new weights; whether registered early or late."""
    model, judge = twins()
    seen: dict = {}
    for net in (model, judge):
        optimizer = make("SGD, momentum", net)

        def before(opt, args, kwargs, net=net):
            seen.setdefault(net, []).append(net.stem.weight.grad.sum().item())

        def after(opt, args, kwargs, net=net):
            with torch.no_grad():
                seen[net].append(net.stem.standardized_weight().square().sum().item())

        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)
        if net is model:
            torch_ws.fuse(net, optimizer)
        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)
        train(net, optimizer, [torch.ones(2, 3, 6, 6, dtype=torch.float64)] * 2)
    assert seen[model] == pytest.approx(seen[judge], rel=1e-12) and len(seen[model]) == 8


def test_sums_of_gradients_stay_in_one_place():
    """Micro-batches add to the memory that the first one's gradient came in."""
    model, _, _, _, _ = fused_pair("SGD")
    for p in (model.stem.weight, model.head.weight):
        loss_of(model, batch()).backward()
        places = {deferred_of(p.grad).grad.data_ptr()}
        for _ in range(3):
            loss_of(model, batch()).backward()
            places.add(deferred_of(p.grad).grad.data_ptr())
        assert len(places) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    """The stored weight is autocast's; gradients stay in its dtype until they are summed."""
    model, judge = twins(torch.float32)
    optimizer, plain = make("SGD, momentum", model), make("SGD, momentum", judge)
    torch_ws.fuse(model, optimizer)
    for micro_batches in (1, 3, 1):
        batches = [batch(dtype=torch.float32) for _ in range(micro_batches)]
        for net, opt in ((model, optimizer), (judge, plain)):
            for x in batches:
                with torch.autocast("cpu", dtype):
                    loss = net(x).float().square().sum()
                loss.backward()
            if net is model:
                deferred = deferred_of(net.down.weight.grad)
                assert net.down.weight.grad.dtype == torch.float32
                assert deferred.grad.dtype == (dtype if micro_batches == 1 else torch.float32)
            opt.step()
            opt.zero_grad()
        assert model.down._cached.result.dtype == dtype
        # what autocast's rounding of activations makes of float32 differences in the last digit
        assert_same(model, judge, 0.02)
    with torch.no_grad():  # without autocast: another weight, and then the first again
        assert model(batches[0]).dtype == torch.float32
        assert model.down._cached.result.dtype == torch.float32
