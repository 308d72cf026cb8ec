"""hold: the gradients of a block are those without it, from one standardization each way."""

import gc
import weakref

import pytest
import torch
import torch_ws
from small_network import REACHED, Calls, assert_close_gradients, batch, loss_of, network, twins
from torch import nn
from torch.utils.checkpoint import checkpoint


def test_gradients_are_those_without_it():
    model, judge = twins()
    for model_or_judge in (model, judge):  # gradients that are there already are added to
        loss_of(model_or_judge, torch.ones(1, 3, 6, 6, dtype=torch.float64)).backward()
    batches = [batch(), batch(3), batch(1)]
    with Calls() as calls, torch_ws.hold(model):
        for x in batches:
            loss_of(model, x).backward()
    assert calls.counts == {"forward_many": 1, "backward_many": 1}
    for x in batches:
        loss_of(judge, x).backward()
    assert_close_gradients(model, judge)


def test_results_in_the_block_are_the_layers_own():
    model, judge = twins()
    x = batch()
    with torch_ws.hold(model):
        assert torch.equal(model(x), judge(x))
        with torch.no_grad():
            assert torch.equal(model(x), judge(x))
        model.eval()
        with torch.no_grad():
            assert torch.equal(model(x), judge(x))
        with torch.inference_mode():
            assert torch.equal(model(x), judge(x))
        leaf = model.stem.standardized_weight()
        assert leaf.is_leaf and leaf is model.stem.standardized_weight()
    assert not model.stem.standardized_weight().is_leaf


def test_first_use_in_inference_mode():
    model, judge = twins()
    x = batch()
    with torch_ws.hold(model):
        with torch.inference_mode():
            model(x)
        loss_of(model, x).backward()
    loss_of(judge, x).backward()
    assert_close_gradients(model, judge)


def test_nothing_used_nothing_done():
    model = network()
    with Calls() as calls, torch_ws.hold(model):
        pass
    assert calls.counts == {}
    with torch_ws.hold(model):
        model(batch())
    assert all(p.grad is None for p in model.parameters())


def test_retain_graph_and_several_backward_calls():
    model, judge = twins()
    x = batch()

    def passes(model):
        first, second = loss_of(model, x), loss_of(model, 2 * x, power=4)
        first.backward(retain_graph=True)
        (first + second).backward()

    with torch_ws.hold(model):
        passes(model)
    passes(judge)
    assert_close_gradients(model, judge)


def test_gradient_penalty():
    """Second derivatives with respect to the input reach the held weights too."""
    model, judge = twins()
    x = batch().requires_grad_()

    def penalize(model):
        (grad,) = torch.autograd.grad(loss_of(model, x, 3), x, create_graph=True)
        grad.square().sum().backward()

    with torch_ws.hold(model):
        penalize(model)
    penalize(judge)
    assert_close_gradients(model, judge)


def test_frozen_and_tied_parameters():
    model, judge = twins()
    tied = torch.randn(4, 4, 3, 3, dtype=torch.float64)
    for net in (model, judge):
        net.stem.weight.requires_grad_(False)  # its gain learns on
        net.up.shift.requires_grad_(False)
        net.norm = torch_ws.WSConv2d(4, 4, 3, padding=1, bias=False, formula="timm")
        net.twice.weight = net.norm.weight = nn.Parameter(tied.clone())
    x = batch()
    with torch_ws.hold(model):
        loss_of(model, x).backward()
    loss_of(judge, x).backward()
    assert_close_gradients(model, judge)
    assert model.stem.weight.grad is None and model.stem.gain.grad is not None


def test_devices_without_a_kernel(monkeypatch):
    """The reference's derivatives take the kernels' place; the CPU pretends to have none."""
    monkeypatch.setattr(torch_ws.training.batch, "has_kernel", lambda tensor: False)
    model, judge = twins()
    for net in (model, judge):
        net.stem.weight.requires_grad_(False)
        net.head.gain.requires_grad_(False)
    x = batch()
    with Calls() as calls, torch_ws.hold(model):
        loss_of(model, x).backward()
    assert "backward_many" not in calls.counts
    loss_of(judge, x).backward()
    assert_close_gradients(model, judge)


def test_hooks_of_parameters_run_once_at_the_end():
    model = network()
    seen = []
    model.stem.weight.register_hook(lambda grad: seen.append("gradient"))
    model.stem.weight.register_post_accumulate_grad_hook(lambda p: seen.append("accumulated"))
    with torch_ws.hold(model):
        for _ in range(3):
            loss_of(model, batch()).backward()
        assert seen == [] and model.stem.weight.grad is None
        assert model.stem.bias.grad is not None
    assert seen == ["gradient", "accumulated"]


def test_gradients_are_summed_in_the_weights_dtype():
    """Under autocast: 300 gradients of 1 are 300, which a sum in bfloat16 never reaches."""
    model = torch_ws.WSLinear(4, 3, bias=False, shift=True)
    with torch_ws.hold(model):
        for _ in range(300):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                out = model.standardized_weight()
            assert out.dtype == torch.bfloat16
            out[:, 0].sum().backward()
    assert torch.equal(model.shift.grad, torch.full((3,), 300.0))


def test_autocast_inside():
    model, judge = twins(torch.float32)
    batches = [batch(dtype=torch.float32) for _ in range(3)]

    def passes(model):
        for x in batches:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                out = model(x)
            out.float().square().sum().backward()

    with Calls() as calls, torch_ws.hold(model):
        passes(model)
        plain = model(batches[0])  # float32 is made for what asks for it, once
        model(batches[0])
    assert calls.counts == {"forward_many": 1 + REACHED, "backward_many": 1}
    assert torch.equal(plain, judge(batches[0]))
    passes(judge)
    # Equal but for the order of float32 sums; only the two gradients of a layer used twice add up
    # in bfloat16, as those of a weight that autocast casts do.
    error = (model.twice.weight.grad - judge.twice.weight.grad).abs().max()
    assert error <= torch.finfo(torch.bfloat16).eps * judge.twice.weight.grad.abs().max()
    model.twice.weight.grad = judge.twice.weight.grad
    assert_close_gradients(model, judge, tolerance=1e-5)


def test_grad_scaler():
    model, judge = twins(torch.float32)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    reference = torch.optim.SGD(judge.parameters(), lr=0.1)
    batches = [batch(dtype=torch.float32) for _ in range(2)]
    with torch_ws.hold(model):
        for x in batches:
            scaler.scale(loss_of(model, x)).backward()
    scaler.unscale_(optimizer)
    for x in batches:
        loss_of(judge, x).backward()
    assert_close_gradients(model, judge, tolerance=1e-5)
    scaler.step(optimizer)
    reference.step()
    torch.testing.assert_close(model.state_dict(), judge.state_dict())


def test_layers_that_change_in_the_block_go_on_by_themselves():
    """Another formula or another tensor is no error: what it computes is its own, and right."""
    model, judge = twins()
    x = batch()
    new = torch.randn(4, 3, 3, 3, dtype=torch.float64)

    def passes(model):
        loss_of(model, x).backward()
        model.twice.formula = torch_ws.formulas["timm"]
        loss_of(model, x).backward()
        out = torch.func.functional_call(model, {"stem.weight": new.requires_grad_()}, (x,))
        (grad,) = torch.autograd.grad(out.square().sum(), new)
        return grad

    with torch_ws.hold(model):
        ours = passes(model)
    assert torch.equal(ours, passes(judge))
    assert_close_gradients(model, judge)


def test_a_parametrized_layer_goes_on_by_itself():
    model, judge = twins()
    for net in (model, judge):
        nn.utils.parametrizations.weight_norm(net.twice)
    x = batch()
    with torch_ws.hold(model):
        loss_of(model, x).backward()
    loss_of(judge, x).backward()
    assert_close_gradients(model, judge)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_inside(use_reentrant):
    model, judge = twins()
    x = batch()

    def run(model):
        for scale in (1, 2):
            out = checkpoint(model, scale * x.requires_grad_(), use_reentrant=use_reentrant)
            out.square().sum().backward()

    with Calls() as calls, torch_ws.hold(model):
        run(model)
    assert calls.counts == {"forward_many": 1, "backward_many": 1}
    run(judge)
    assert_close_gradients(model, judge)


def test_with_group():
    model, judge = twins()
    handle = torch_ws.group(model)
    x = batch()
    with Calls() as calls, torch_ws.hold(model):
        for _ in range(2):
            loss_of(model, x).backward()
    assert calls.counts == {"forward_many": 1, "backward_many": 1}
    for _ in range(2):
        loss_of(judge, x).backward()
    assert_close_gradients(model, judge)
    with Calls() as calls:
        loss_of(model, x).backward()
    assert calls.counts == {"forward_many": 1, "backward_many": 1}
    handle.remove()


def test_with_the_eval_cache():
    model = network().eval()
    x = batch()
    with torch.no_grad():
        before = model(x)
        with torch_ws.hold(model):
            assert torch.equal(model(x), before)
        assert torch.equal(model(x), before)


def test_memory_is_let_go():
    model = network()
    with torch_ws.hold(model):
        loss_of(model, batch()).backward()
        leaf = weakref.ref(model.stem.standardized_weight())
        assert leaf() is not None
    gc.disable()  # at once, and not when cycles are looked for
    try:
        assert leaf() is None
    finally:
        gc.enable()


def test_gradients_are_taken_over_and_not_copied(monkeypatch):
    addresses = {}
    backward = torch_ws.training.batch.backward

    def recorded(members, grads):
        triples = backward(members, grads)
        for member, (gradient, *_) in zip(members, triples, strict=True):
            addresses[member.layer.weight] = gradient.data_ptr()
        return triples

    monkeypatch.setattr(torch_ws.training.batch, "backward", recorded)
    model = network()
    with torch_ws.hold(model):
        loss_of(model, batch()).backward()
    used = [weight for weight in addresses if weight.grad is not None]
    assert used and all(weight.grad.data_ptr() == addresses[weight] for weight in used)
