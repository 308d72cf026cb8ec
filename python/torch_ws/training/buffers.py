"""The memory of a group's results, which its next pass writes to again.

Freed memory may go back to the system, from where it comes page by page. What has another user is
never written: a graph whose backward is to come, whoever keeps a weight, another process.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from ..core.many import raw_forward_into, scalars_of
from ..core.private import in_dispatch_mode, storage_users
from ..layers.standardized import Standardized
from .batch import Member, columns, forward

Tensor = torch.Tensor


class Buffers:
    """For each layer of the last pass a tensor in its result's memory, which nobody else gets.

    Another tensor there tells of a user, be it a graph, whose references Python does not see.
    Threads share the buffers: each is taken by one operation on the dictionary.
    """

    def __init__(self):
        self._kept: dict[Standardized, tuple[tuple, Tensor]] = {}

    def forward(self, batch: Sequence[Member]) -> list[Tensor]:
        """The standardized rows without a graph, in kept memory where it fits and is free.

        Not on CUDA, where PyTorch's allocator keeps memory, for each stream and captured graph;
        nor in a trace, which would have the memory for a constant.
        """
        if not batch[0].tensors[0].is_cpu or in_dispatch_mode():
            for member in batch:
                self._kept.pop(member.layer, None)
            return forward(batch)
        rows, gains, shifts, channel_dims, formulas = columns(batch)
        outs = []
        for member, row in zip(batch, rows, strict=True):
            kind = row.shape, row.stride(), member.dtype or row.dtype
            entry = self._kept.pop(member.layer, None)
            if entry is None or entry[0] != kind or not _is_free(entry[1]):
                entry = kind, torch.empty_like(row, dtype=kind[2])
            outs.append(entry[1].detach())  # before another thread can see the buffer
            self._kept[member.layer] = entry
        scalars = scalars_of(rows, formulas, channel_dims)
        raw_forward_into(outs, rows, gains, shifts, channel_dims, scalars)
        return outs

    def keep(self, layers: Collection[Standardized]) -> None:
        """Lets go of all memory but that of these layers."""
        for layer in [layer for layer in list(self._kept) if layer not in layers]:
            self._kept.pop(layer, None)


def _is_free(buffer):
    return (
        type(buffer) is Tensor  # and none that only stands for one
        and storage_users(buffer) == 1
        and not buffer.is_shared()
        and buffer.untyped_storage().nbytes() == buffer.nbytes  # as it was made
    )
