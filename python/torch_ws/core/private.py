"""PyTorch's private names that have been gathered, each with the reason why no public one does."""

from __future__ import annotations

import torch

# The public is_autocast_enabled and is_tracing take several times as long; every call asks both.
any_autocast = torch._C._is_any_autocast_enabled
is_tracing = torch._C._is_tracing


def storage_users(tensor: torch.Tensor) -> int:
    """How many tensors have their elements in the memory of `tensor`, itself included.

    A tensor does not tell whether another one writes to its memory; its storage counts them.
    """
    storage = tensor.untyped_storage()
    return torch._C._storage_Use_Count(storage._cdata) - 1  # without `storage` itself


def in_backward() -> bool:
    """True inside a backward pass, where activation checkpointing calls layers a second time."""
    return torch._C._current_graph_task_id() != -1


def saved_tensors_hooks():
    """The innermost saved-tensor hooks, by which a layer can tell that it is checkpointed."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True)
