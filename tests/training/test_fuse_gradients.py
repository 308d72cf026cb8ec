"""What weight.grad is in a fused model: to everybody who looks, the gradient of the weight."""

import copy
import gc
import io
import pickle

import numpy as np
import pytest
import torch
import torch_ws
from fused import FUSED, Computed, assert_same, fused_pair, make, train
from small_network import Calls, batch, loss_of, twins
from torch_ws.training.standardized_grad import StandardizedGrad, deferred_of


def saved(grad):
    file = io.BytesIO()
    torch.save(grad, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# Readers that compute the gradient, each by another way into PyTorch
READERS = {
    "clone": lambda g: g.clone(),
    "data": lambda g: g.data + 0,
    "detach": lambda g: g.detach() * 1,
    "arithmetic": lambda g: 2 * g + g / 3,
    "view": lambda g: g.view(-1)[1:5],
    "index": lambda g: g[0].flatten()[:2],
    "reduction": lambda g: g.abs().max(),
    "norm 1": lambda g: g.norm(1),
    "norm a row": lambda g: torch.linalg.vector_norm(g, dim=1),
    "mask": lambda g: g.mul(g > 0),
    "copy_": lambda g: torch.zeros_like(g).copy_(g),
    "out": lambda g: torch.add(g, 1, out=torch.empty(g.shape, dtype=g.dtype)),
    "cat": lambda g: torch.cat([g, g]),
    "foreach": lambda g: torch._foreach_add([g, g], 1)[1],
    "to": lambda g: g.to(torch.float32),
    "numpy": lambda g: torch.from_numpy(g.numpy().copy()),
    "asarray": lambda g: torch.from_numpy(np.asarray(g).copy()),
    "dlpack": lambda g: torch.from_dlpack(g).clone(),
    "tolist": lambda g: torch.tensor(g.tolist(), dtype=torch.float64),
    "item": lambda g: torch.tensor(g.flatten()[3].item()),
    "deepcopy": copy.deepcopy,
    "pickle": lambda g: pickle.loads(pickle.dumps(g)),
    "save": saved,
    "storage": lambda g: torch.tensor(g.untyped_storage().nbytes()),
    "address": lambda g: torch.tensor(float(g.data_ptr() != 0)),
    "repr": lambda g: torch.tensor(list(repr(g).encode())),
    "vmap": lambda g: torch.func.vmap(lambda row: row.sum())(g),
}


def gradients_of(way):
    """The gradients of a fused network and of its judge, after one backward pass."""
    model, _, _, judge, _ = fused_pair("SGD")
    x = batch()
    for net in (model, judge):
        loss_of(net, x).backward()
    return model.down.weight, judge.down.weight


@pytest.mark.parametrize("way", READERS)
def test_readers_find_the_gradient(way):
    weight, plain = gradients_of(way)
    assert type(weight.grad) is StandardizedGrad
    assert weight.grad.dtype == plain.grad.dtype and weight.grad.shape == plain.grad.shape
    assert weight.grad.stride() == plain.grad.stride() and not weight.grad.is_sparse
    found, expected = READERS[way](weight.grad), READERS[way](plain.grad)
    assert type(found) is torch.Tensor
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    assert type(weight.grad) is torch.Tensor  # computed once, for good
    assert torch.equal(weight.grad, plain.grad)


# What acts on what is stored, and leaves it so
LINEAR = {
    "mul_": lambda g: g.mul_(0.5),
    "mul_ by a tensor": lambda g: g.mul_(torch.tensor(0.25, dtype=torch.float64)),
    "div_": lambda g: g.div_(3),
    "operators": lambda p: p.__imul__(2).__itruediv__(3),
    "foreach": lambda g: torch._foreach_mul_([g, torch.ones(2)], 0.3),
    "foreach by a tensor": lambda g: torch._foreach_div_([g], torch.tensor(0.3).double()),
}


@pytest.mark.parametrize("way", LINEAR)
def test_linear_operations_leave_it_deferred(way, monkeypatch):
    weight, plain = gradients_of(way)
    alias = weight.grad.detach()
    computed = Computed(monkeypatch)
    LINEAR[way](weight.grad)
    LINEAR[way](plain.grad)
    assert computed.counts == {} and deferred_of(weight.grad) is not None
    torch.testing.assert_close(weight.grad + 0, plain.grad, rtol=1e-12, atol=0)
    torch.testing.assert_close(alias + 0, plain.grad, rtol=1e-12, atol=0)  # the same memory


@pytest.mark.parametrize("norm", ["norm", "vector_norm", "foreach"])
def test_norms_store_no_gradient(norm, monkeypatch):
    ways = {
        "norm": lambda g: g.norm(),
        "vector_norm": lambda g: torch.linalg.vector_norm(g.mul_(-0.5)),
        "foreach": lambda g: torch._foreach_norm([torch.ones(2), g])[1],
    }
    weight, plain = gradients_of(norm)
    computed = Computed(monkeypatch)
    found = ways[norm](weight.grad)
    assert computed.counts == {"norms": 1} and deferred_of(weight.grad) is not None
    torch.testing.assert_close(found, ways[norm](plain.grad), rtol=1e-12, atol=0)


# In place, and not linear: the gradient is computed, and changed
WRITERS = {
    "add_": lambda g: g.add_(1),
    "clamp_": lambda g: g.clamp_(-0.1, 0.1),
    "mul_ by a mask": lambda g: g.mul_(g > 0),
    "copy_": lambda g: g.copy_(torch.ones_like(g)),
    "fill_": lambda g: g.fill_(3),
    "set an item": lambda g: g.__setitem__(0, 7.0),
    "view": lambda g: g.view(-1).add_(2),
    "zero_": lambda g: g.zero_(),
    "round": lambda g: g.div_(0.01, rounding_mode="floor"),
    "foreach": lambda g: torch._foreach_add_([g], 1),
    "lerp_": lambda g: torch.zeros_like(g).lerp_(g, 0.3),
}


@pytest.mark.parametrize("way", WRITERS)
def test_writers_change_the_gradient(way):
    weight, plain = gradients_of(way)
    WRITERS[way](weight.grad)
    WRITERS[way](plain.grad)
    torch.testing.assert_close(weight.grad + 0, plain.grad, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("way", [*WRITERS, "index", "norm 1"])
@pytest.mark.parametrize("name", ["SGD, momentum", "AdamW"])
def test_steps_and_sums_after_it_was_computed(name, way):
    """The kernel takes an ordinary gradient too, and the next backward pass adds to it."""
    model, optimizer, _, judge, plain = fused_pair(name)
    read = {**WRITERS, **READERS}[way]
    for i in range(3):
        x = batch()
        for net, opt in ((model, optimizer), (judge, plain)):
            loss_of(net, x).backward()
            for layer in FUSED:
                read(getattr(net, layer).weight.grad)
            if i == 1:
                loss_of(net, 2 * x).backward()
            with Calls() as calls:
                opt.step()
            assert calls.counts == ({"update_many": 1} if net is model else {})
            opt.zero_grad()
        assert_same(model, judge)


def test_autograd_grad_gives_ordinary_gradients():
    model, _, _, judge, _ = fused_pair("SGD")
    x = batch()
    results = [
        torch.autograd.grad(loss_of(net, x), [net.stem.weight, net.stem.gain, net.down.weight])
        for net in (model, judge)
    ]
    for ours, other in zip(*results, strict=True):
        assert type(ours) is torch.Tensor
        torch.testing.assert_close(ours, other, rtol=1e-12, atol=0)


def test_hooks_see_the_gradient():
    model, _, _, judge, _ = fused_pair("SGD")
    seen = []
    for net in (model, judge):
        net.twice.weight.register_hook(lambda grad: seen.append(grad.sum().item()))
        net.down.weight.register_post_accumulate_grad_hook(
            lambda parameter: seen.append(parameter.grad.sum().item())
        )
        loss_of(net, torch.ones(2, 3, 6, 6, dtype=torch.float64)).backward()
    assert seen[:2] == pytest.approx(seen[2:], rel=1e-12) and len(seen) == 4


@pytest.mark.parametrize("cls", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop])
def test_another_optimizer_steps_the_ordinary_gradient(cls):
    """One that was not given to fuse; AdamW decays weights before it reads gradients."""
    model, _, _, judge, _ = fused_pair("SGD")
    others = [cls(net.parameters(), lr=0.01) for net in (model, judge)]
    for _ in range(3):
        x = batch()
        train(model, others[0], [x])
        train(judge, others[1], [x])
        assert_same(model, judge)


def test_gradients_moved_by_hand():
    """As one that a framework keeps aside, and puts back."""
    model, optimizer, _, judge, plain = fused_pair("SGD")
    for net, opt in ((model, optimizer), (judge, plain)):
        loss_of(net, torch.ones(2, 3, 6, 6, dtype=torch.float64)).backward()
        aside = {p: p.grad for p in net.parameters()}
        opt.zero_grad()
        loss_of(net, torch.ones(1, 3, 6, 6, dtype=torch.float64)).backward()
        for p, grad in aside.items():
            p.grad = grad
        opt.step()
    assert_same(model, judge)


USED = "used up by the optimizer's step"
WRITTEN = "was written to or freed"


def test_the_step_uses_it_up():
    model, optimizer, _, _, _ = fused_pair("SGD")
    loss_of(model, batch()).backward()
    optimizer.step()
    weight = model.down.weight
    for read in (lambda: weight.grad + 1, lambda: weight.grad.norm(), lambda: weight.grad.mul_(2)):
        with pytest.raises(RuntimeError, match=USED):
            read()
    with pytest.raises(RuntimeError, match=USED):  # not added to what is not there
        loss_of(model, batch()).backward()
    with pytest.raises(RuntimeError, match=USED):
        optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    assert torch.equal(weight.grad + 0, torch.zeros_like(weight))
    loss_of(model, batch()).backward()
    optimizer.step()


def test_a_weight_that_was_written_to():
    """Nobody knows any more by which weight it was the gradient."""
    for write in (
        lambda layer: torch.nn.init.normal_(layer.weight),
        lambda layer: setattr(layer.weight, "data", layer.weight.data.clone()),
    ):
        model, optimizer, _, _, _ = fused_pair("SGD")
        loss_of(model, batch()).backward()
        write(model.stem)
        changed = copy.deepcopy(model.state_dict())
        for use in (lambda m=model: m.stem.weight.grad + 1, optimizer.step):
            with pytest.raises(RuntimeError, match=WRITTEN):
                use()
        for name, value in model.state_dict().items():  # no weight was stepped
            assert torch.equal(value, changed[name]), name


def test_a_gain_that_is_stepped_before_its_weight():
    """By another optimizer, or between two backward passes."""
    model, judge = twins()
    for net in (model, judge):
        weights = torch.optim.SGD([p for p in net.parameters() if p.dim() > 1], lr=0.01)
        vectors = torch.optim.SGD([p for p in net.parameters() if p.dim() <= 1], lr=0.5)
        if net is model:
            torch_ws.fuse(net, weights)
        for size in (1, 2, 3):
            x = torch.ones(size, 3, 6, 6, dtype=torch.float64)
            loss_of(net, x).backward()
            vectors.step()
            loss_of(net, x).backward()
            vectors.step()
            weights.step()
            net.zero_grad()
    assert_same(model, judge)


def test_sums_leave_memory_of_others_alone():
    """A gradient that lies in NumPy's memory, which nobody else refers to in PyTorch."""
    model, _, _, judge, _ = fused_pair("SGD")
    array = np.linspace(0, 1, 108).reshape(4, 3, 3, 3)
    before = array.copy()
    for net in (model, judge):
        for _ in range(2):
            net.stem.standardized_weight().backward(torch.from_numpy(array))
    assert (array == before).all()
    torch.testing.assert_close(
        model.stem.weight.grad + 0, judge.stem.weight.grad, rtol=1e-12, atol=1e-14
    )


def test_it_does_not_keep_the_weight():
    model, _, _, _, _ = fused_pair("SGD")
    loss_of(model, batch()).backward()
    grad = model.down.weight.grad
    del model, _
    gc.collect()
    with pytest.raises(RuntimeError, match=WRITTEN):
        grad + 1


def test_a_model_moved_between_backward_and_step():
    model, judge = twins(torch.float32)
    sides = [(net, make("SGD", net)) for net in (model, judge)]
    torch_ws.fuse(*sides[0])
    x = batch()
    for net, optimizer in sides:
        loss_of(net, x.float()).backward()
        net.double()
        loss_of(net, x).backward()
        optimizer.step()
    assert_same(model, judge, 1e-6)
