"""Many layers' weights in one call, forward and backward: what group.py and hold.py share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..core.autograd import differentiable_backward
from ..core.many import apply_many, raw_backward_many, scalars_of, standardize_many
from ..layers.standardized import Standardized

Tensor = torch.Tensor


def standardized_layers(model: nn.Module) -> list[Standardized]:
    """The model's layers whose weights can be computed together with others'.

    Not those whose weight is no parameter but computed anew at every access
    (torch.nn.utils.parametrize), nor a part of one (DTensor): they go on by themselves.
    """
    found, seen, pending = [], set(), [model]
    while pending:  # model.modules(), in a third of its time
        module = pending.pop()
        if module is None or module in seen:
            continue
        seen.add(module)
        if (
            isinstance(module, Standardized)
            and module._parameters.get("weight") is not None
            and not is_traceable_wrapper_subclass(module._parameters["weight"])
        ):
            found.append(module)
        pending.extend(list(module._modules.values())[::-1])
    return found


def has_kernel(tensor: Tensor) -> bool:
    """False also for what only stands for a tensor, as torch.fx's tracer gives it."""
    return isinstance(tensor, Tensor) and tensor.device.type in ("cpu", "cuda", "meta")


class Launch:
    """Layers standardized by one call: their weights are on one device, the results of one dtype.

    dtype: the results'; None: each weight's own.
    """

    def __init__(self, members: Sequence[tuple[Standardized, tuple]], dtype: torch.dtype | None):
        self.layers = [layer for layer, _ in members]
        self.tensors = [tensors for _, tensors in members]
        self.dtype = dtype
        self.rows = [layer._to_rows(tensors[0]) for layer, tensors in members]
        self.gains = [gain for _, gain, _ in self.tensors]
        self.shifts = [shift for _, _, shift in self.tensors]
        self.channel_dims = [layer.channel_dim for layer in self.layers]
        self.formulas = [layer.formula for layer in self.layers]

    def forward(self) -> list[Tensor]:
        """The standardized rows; with a graph if gradients are enabled."""
        return standardize_many(
            self.rows,
            self.gains,
            self.shifts,
            formula=self.formulas,
            channel_dim=self.channel_dims,
            dtype=self.dtype,
        )

    def attach(self, outs: Sequence[Tensor]) -> list[Tensor]:
        """`outs`, computed earlier without a graph, as the results of one node of the graph."""
        arguments = (self.channel_dims, self._scalars(), self.dtype, outs)
        return list(apply_many(arguments, *self.rows, *self.gains, *self.shifts))

    def backward(self, grads: Sequence[Tensor]) -> list[tuple[Tensor | None, ...]]:
        """From the gradients of the layers' weights those of each one's (weight, gain, shift).

        None where a tensor needs none. Call it without gradients enabled.
        """
        count = len(self.layers)
        needed = [[t is not None and t.requires_grad for t in ts] for ts in self.tensors]
        grads = [layer._to_rows(grad) for layer, grad in zip(self.layers, grads, strict=True)]
        scalars = self._scalars()
        if has_kernel(self.rows[0]):
            affine = any(gain or shift for _, gain, shift in needed)
            flat = raw_backward_many(
                grads, self.rows, self.gains, self.channel_dims, scalars, affine
            )
            found = [flat[i::count] for i in range(count)]
        else:
            found = []
            for i, grad in enumerate(grads):
                arguments = (self.channel_dims[i], *scalars[5 * i : 5 * i + 5], None)
                found.append(
                    differentiable_backward(needed[i], grad, self.rows[i], self.gains[i], arguments)
                )
        results = []
        for layer, need, tensors in zip(self.layers, needed, found, strict=True):
            weight, gain, shift = (
                t if n else None for t, n in zip((*tensors, None, None), need, strict=False)
            )
            results.append((None if weight is None else layer._from_rows(weight), gain, shift))
        return results

    def _scalars(self):
        return scalars_of(self.rows, self.formulas, self.channel_dims)


def launches(
    members: Iterable[tuple[Standardized, tuple, torch.dtype | None]],
) -> list[Launch]:
    """The fewest launches for `members`, each a layer, its (weight, gain, shift) and a dtype."""
    by_kind: dict = {}
    for layer, tensors, dtype in members:
        by_kind.setdefault((tensors[0].device, dtype), []).append((layer, tensors))
    return [Launch(some, dtype) for (_, dtype), some in by_kind.items()]
