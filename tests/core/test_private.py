"""PyTorch's private names: that they exist, and mean what they are used for."""

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch_ws.core import private


def test_storage_users_counts_tensors():
    one = torch.empty(4)
    assert private.storage_users(one) == 1
    view, detached = one[:2], one.detach()
    assert private.storage_users(one) == private.storage_users(view) == 3
    del view, detached
    assert private.storage_users(one) == 1


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
