"""PyTorch's private names mean what the package uses them for."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.autograd.graph import saved_tensors_hooks
from torch.fx.experimental.proxy_tensor import make_fx
from torch_ws.core import private


def test_what_torch_compile_leaves():
    model = nn.ReLU()
    assert private.original_of(model) is None and not private.is_compiled(model)
    made = torch.compile(model)
    assert private.original_of(made) is model and private.is_compiled(made)
    model.compile()
    assert private.original_of(model) is None and private.is_compiled(model)


def test_compiled_autograd():
    found = []
    x = torch.ones(1, requires_grad=True)
    with torch._dynamo.compiled_autograd._enable(lambda graph: graph):
        assert private.wants_small_nodes() and not private.in_compiled_backward()
        x.register_post_accumulate_grad_hook(lambda x: found.append(private.in_compiled_backward()))
        x.sum().backward()
    assert found == [True]
    assert not private.wants_small_nodes() and not private.in_compiled_backward()


class Local(torch.Tensor):
    """Counts how often FSDP2 asks what to gather."""

    __torch_function__ = private.no_torch_function
    asked = 0

    def fsdp_pre_all_gather(self, mesh, outer_size, outer_stride, module, mp_policy):
        Local.asked += 1
        return (self.as_subclass(torch.Tensor),), None

    def fsdp_post_all_gather(self, gathered, metadata, param_dtype, *, out=None):
        return None if out is not None else (gathered[0], ())


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no distributed")
def test_sharded_parameters():
    """Group of one process: the records of a sharded layer, and an extension of its all-gather."""
    from torch.distributed.fsdp import FSDPModule, fully_shard
    from torch.distributed.tensor import DTensor

    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        mesh = torch.distributed.init_device_mesh("cpu", (1,))
        model = fully_shard(nn.Sequential(nn.Linear(3, 2, bias=False)), mesh=mesh)
        [record] = private.sharded_parameters(model)
        assert isinstance(model, FSDPModule) and record.layer is model[0]
        assert (record.name, record.shared_with) == ("weight", [])
        assert record.parameter is model[0].weight and isinstance(record.parameter, DTensor)
        assert record.placement.dim == 0
        assert not (record.tensor_parallel or record.offloaded or record.resharded_to_some)
        weight = private.local_tensor(record.parameter).clone()
        record.make_local(Local)
        x = torch.randn(4, 3)
        torch.testing.assert_close(model(x), x @ weight.t())
        assert Local.asked == 1 and type(private.local_tensor(record.parameter)) is Local
        other = torch.zeros(2, 3)
        assert private.with_local_tensor(record.parameter, other) is record.parameter
        assert private.local_tensor(record.parameter) is other
        assert private.local_tensor(x) is x and private.with_local_tensor(x, other) is other
    finally:
        torch.distributed.destroy_process_group()


def test_after_backward():
    seen = []
    x = torch.ones(2, requires_grad=True)
    x.register_hook(lambda _: private.after_backward(lambda: seen.append(x.grad is not None)))
    x.sum().backward()
    assert seen == [True]


def test_storage_users_counts_tensors():
    one = torch.empty(4)
    assert private.storage_users(one) == 1
    view, detached = one[:2], one.detach()
    assert private.storage_users(one) == private.storage_users(view) == 3
    del view, detached
    assert private.storage_users(one) == 1


def test_storage_users_counts_who_holds_the_storage():
    """Without a tensor; one object stands for all who have it in Python."""
    one = torch.empty(4)
    storage = one.untyped_storage()
    assert private.storage_users(one) == 2
    array = one.detach().numpy()
    assert private.storage_users(one) == 3
    del storage, array
    assert private.storage_users(one) == 1


def test_references():
    """Whoever else has the tensor or its memory makes a difference, until it is gone."""
    alone = private.references([torch.zeros(3)], 0)
    held = [torch.zeros(3)]
    assert private.references(held, 0) == alone
    another = held[0]
    assert private.references(held, 0) != alone
    del another
    view = held[0][:2]
    assert private.references(held, 0) != alone
    del view
    leaf = torch.ones(3, requires_grad=True)
    graph = leaf * held[0]  # which has the tensor in C++
    assert private.references(held, 0) != alone
    del graph
    assert private.references(held, 0) == alone


class Asks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        Asks.answers.append(private.accumulates(ctx.next_functions[0][0]))
        return 2 * grad


def test_accumulates():
    """backward leaves a gradient in .grad; torch.autograd.grad gives it to its caller."""
    x = torch.ones(2, requires_grad=True)
    Asks.answers = []
    Asks.apply(x).sum().backward()
    Asks.apply(x).sum().backward(inputs=[x])
    torch.autograd.grad(Asks.apply(x).sum(), x)
    assert Asks.answers == [True, True, False]


@pytest.mark.parametrize("cls", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_an_optimizer_gathers_as_it_is_told(cls):
    """A step updates what the gathering gives it, and asks for every group."""
    stepped, left = (nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = cls([{"params": [stepped, left]}, {"params": []}], lr=0.1)
    asked = []

    def gather(group, *lists):
        asked.append(len(group["params"]))
        return own({**group, "params": group["params"][:1]}, *lists)

    own = private.gather_with(optimizer, gather)
    for parameter in (stepped, left):
        parameter.grad = torch.ones(2)
    optimizer.step()
    assert asked == [2, 0]
    assert (stepped < 1).all() and (left == 1).all()
    private.gather_with(optimizer, None)
    optimizer.step()
    assert asked == [2, 0] and (left < 1).all()


def test_hook_first():
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))])
    order = []
    optimizer.register_step_post_hook(lambda *_: order.append("early"))
    handle = private.hook_first(optimizer, lambda *_: order.append("first"))
    optimizer.step()
    handle.remove()
    optimizer.step()
    assert order == ["first", "early", "early"]


def test_in_dispatch_mode():
    """A mode of one's own, and those that trace."""
    assert not private.in_dispatch_mode()
    with torch.utils._python_dispatch.TorchDispatchMode():
        assert private.in_dispatch_mode()
    seen = []
    make_fx(lambda x: (seen.append(private.in_dispatch_mode()), x + 1)[1])(torch.ones(1))
    with FakeTensorMode():
        seen.append(private.in_dispatch_mode())
    assert seen == [True, True] and not private.in_dispatch_mode()


def test_in_backward():
    seen = []
    x = torch.ones(2, requires_grad=True)
    x.register_hook(lambda _: seen.append(private.in_backward()))
    x.sum().backward()
    assert seen == [True] and not private.in_backward()


def test_saved_tensors_hooks_tell_one_from_another():
    outside = private.saved_tensors_hooks()
    with saved_tensors_hooks(lambda t: t, lambda t: t):
        inside = private.saved_tensors_hooks()
    assert inside != outside and private.saved_tensors_hooks() == outside


def test_transforms_and_forward_mode_need_the_reference():
    seen = []

    def noted(x):
        seen.append((private.in_transform(), private.needs_reference()))
        return x.sin()

    x = torch.ones(2)
    noted(x)
    torch.vmap(noted)(x)
    with forward_ad.dual_level():
        noted(x)
    assert seen == [(False, False), (True, True), (False, True)]


def test_padding_is_set_in_both_places():
    expected = nn.Conv2d(1, 1, 3, padding=(2, 1), padding_mode="circular")
    layer = nn.Conv2d(1, 1, 3, padding_mode="circular")
    private.set_padding(layer, (2, 1))
    layer.load_state_dict(expected.state_dict())
    x = torch.randn(1, 1, 5, 5)
    torch.testing.assert_close(layer(x), expected(x), rtol=0, atol=0)
