"""Many layers' weights in one call, forward and backward: what group.py and hold.py share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import nn

from ..core.autograd import differentiable_backward
from ..core.many import apply_many, raw_backward_many, scalars_of, standardize_many
from ..core.private import is_traceable_wrapper_subclass
from ..formulas import Formula
from ..layers.standardized import Standardized

Tensor = torch.Tensor


def standardized_layers(model: nn.Module) -> list[Standardized]:
    """The model's layers whose weights can be computed together with others'.

    Not those whose weight is no parameter but computed anew at every access
    (torch.nn.utils.parametrize), nor a part of one (DTensor), nor those with a permanent provider.
    """
    found, seen = [], set()
    pending: list[nn.Module | None] = [model]
    while pending:  # model.modules(), in a third of its time
        module = pending.pop()
        if module is None or module in seen:
            continue
        seen.add(module)
        if (
            isinstance(module, Standardized)
            and module._parameters.get("weight") is not None
            and not is_traceable_wrapper_subclass(module._parameters["weight"])
            and not (module._provider is not None and module._provider.permanent)
        ):
            found.append(module)
        pending.extend(list(module._modules.values())[::-1])
    return found


def has_kernel(tensor: Tensor) -> bool:
    """False also for what only stands for a tensor, as torch.fx's tracer gives it."""
    return isinstance(tensor, Tensor) and tensor.device.type in ("cpu", "cuda", "meta")


class Member(NamedTuple):
    """One layer whose weight is computed together with others'."""

    layer: Standardized
    tensors: tuple  # its (weight, gain, shift)
    dtype: torch.dtype | None  # of the result; None: the weight's own
    formula: Formula


def batches(members: Iterable[Member]) -> list[list[Member]]:
    """The members whose weights one call can take: on one device, with results of one dtype."""
    by_kind: dict = {}
    for member in members:
        kind = member.tensors[0].device, member.dtype
        by_kind.setdefault(kind, []).append(member)
    return list(by_kind.values())


def buckets(weights: Sequence[Tensor], limit: float | None) -> list[slice]:
    """Slices of as many weights as have at most `limit` bytes, but of one at least."""
    starts, filled = [0], 0
    for i, weight in enumerate(weights):
        size = weight.numel() * weight.element_size()
        if limit is not None and i > starts[-1] and filled + size > limit:
            starts.append(i)
            filled = 0
        filled += size
    ends = [*starts[1:], len(weights)]
    return [slice(start, end) for start, end in zip(starts, ends, strict=True)]


def forward(batch: Sequence[Member]) -> list[Tensor]:
    """The standardized rows; with a graph if gradients are enabled."""
    rows, gains, shifts, channel_dims, formulas = columns(batch)
    return standardize_many(
        rows, gains, shifts, formula=formulas, channel_dim=channel_dims, dtype=batch[0].dtype
    )


def attach(batch: Sequence[Member], outs: Sequence[Tensor]) -> list[Tensor]:
    """`outs`, computed earlier without a graph, as the results of one node of the graph."""
    rows, gains, shifts, channel_dims, formulas = columns(batch)
    scalars = scalars_of(rows, formulas, channel_dims)
    return list(apply_many((channel_dims, scalars, batch[0].dtype, outs), *rows, *gains, *shifts))


def backward(batch: Sequence[Member], grads: Sequence[Tensor]) -> list[tuple[Tensor | None, ...]]:
    """From the gradients of the layers' weights those of each one's (weight, gain, shift).

    None where a tensor needs none. Call it without gradients enabled.
    """
    with torch.enable_grad():  # the reference's derivatives begin at the rows
        rows, gains, _, channel_dims, formulas = columns(batch)
    scalars = scalars_of(rows, formulas, channel_dims)
    needed = [[t is not None and t.requires_grad for t in member.tensors] for member in batch]
    grads = [member.layer._to_rows(grad) for member, grad in zip(batch, grads, strict=True)]
    if has_kernel(rows[0]):
        affine = any(gain or shift for _, gain, shift in needed)
        flat = raw_backward_many(grads, rows, gains, channel_dims, scalars, affine)
        found = [flat[i :: len(batch)] for i in range(len(batch))]
    else:
        found = []
        for i, grad in enumerate(grads):
            arguments = (channel_dims[i], *scalars[5 * i : 5 * i + 5], None)
            found.append(differentiable_backward(needed[i], grad, rows[i], gains[i], arguments))
    results: list[tuple[Tensor | None, ...]] = []
    for member, need, tensors in zip(batch, needed, found, strict=True):
        weight, gain, shift = (
            t if n else None for t, n in zip((*tensors, None, None), need, strict=False)
        )
        results.append((None if weight is None else member.layer._from_rows(weight), gain, shift))
    return results


def columns(batch: Sequence[Member]) -> tuple[list, ...]:
    """The arguments of [`torch_ws.standardize_many`][], a list each."""
    return (
        [member.layer._to_rows(member.tensors[0]) for member in batch],
        [member.tensors[1] for member in batch],
        [member.tensors[2] for member in batch],
        [member.layer.channel_dim for member in batch],
        [member.formula for member in batch],
    )
