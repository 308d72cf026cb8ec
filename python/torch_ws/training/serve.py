"""The autograd node of a fused model: stored weights go out, and gradients come in to be deferred.

A node serves several layers that a pass uses after each other, as far as the last pass tells. Its
backward runs when the last of its gradients is there, and does for all of them in a row what
between convolutions, which leave Python no cache, would take several times as long. It is made when
the first of its layers asks, and not before: autograd runs the latest node that is ready.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import torch

from ..core.autograd import gradients_of
from ..core.private import (
    accumulates,
    direct_apply,
    gradient_hooks,
    in_compiled_backward,
    in_transform,
    wants_small_nodes,
)
from ..core.update import raw_norms_many
from .batch import buckets
from .deferred import Deferred

if TYPE_CHECKING:
    from ..layers.cache import Stored
    from .fused_layer import FusedLayer


class _Part:
    """One layer's part in a node. It keeps no layer alive, which may keep the node's result."""

    __slots__ = ("arguments", "entry", "fused", "tensors", "versions")

    def __init__(self, fused: FusedLayer, entry: Stored, tensors: tuple):
        self.fused = fused.reference
        self.entry = entry
        self.tensors = tensors  # (weight, gain, shift)
        self.versions = _versions(tensors)
        self.arguments: tuple = entry.arguments  # type: ignore[assignment]  # the op's

    def check(self):
        if self.versions != _versions(self.tensors):
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an "
                f"inplace operation: weight or gain of shape {tuple(self.tensors[0].shape)}, "
                "after the forward pass of a layer (torch_ws.fuse)"
            )

    def defers(self, leaf, grad):
        """True if the gradient that has come in is one for .grad of the layer's own weight."""
        fused = self.fused()
        return (
            leaf is not None  # the weight needs a gradient
            and fused is not None
            and fused.reason is None
            and type(grad) is torch.Tensor
            and accumulates(leaf)
            and leaf.variable is fused.weight
        )


def _versions(tensors):
    weight, gain, _ = tensors
    return weight._version, None if gain is None else gain._version


class Serve(torch.autograd.Function):
    """Standardization's node where the results have been computed before.

    Called by `serve` with the parts, then all weights, all gains and all shifts. It saves no tensor
    by save_for_backward, since it may be a part of several graphs, of which each is freed.
    """

    @staticmethod
    def forward(ctx, parts, *tensors):
        ctx.set_materialize_grads(False)
        ctx.parts = parts
        # with a version counter in common, and memory
        return tuple([part.entry.result.detach() for part in parts])

    @staticmethod
    def backward(ctx, *grads):
        parts, count = ctx.parts, len(ctx.parts)
        needs = ctx.needs_input_grad[1:]
        ordinary = in_compiled_backward() or torch.is_grad_enabled() or in_transform()
        leaves = ctx.next_functions
        results: list = [None] * (3 * count)
        found = []  # the deferred ones: (place, part, grad)
        for i, (part, grad) in enumerate(zip(parts, grads, strict=True)):
            if grad is None:
                continue
            part.check()
            if not ordinary and part.defers(leaves[i][0], grad):
                found.append((i, part, grad))
                continue
            weight, gain, _ = part.tensors
            needed = needs[i], needs[count + i], needs[2 * count + i]
            grads_of = gradients_of(needed, grad, weight, gain, (*part.arguments, None))
            results[i], results[count + i], results[2 * count + i] = grads_of
        affine = [one for one in found if needs[count + one[0]] or needs[2 * count + one[0]]]
        squared = _affine(affine, needs, results) if affine else {}
        for i, part, grad in found:
            fused, (weight, gain, _) = part.fused(), part.tensors
            deferred = Deferred(fused, weight, gain, part.arguments, grad, squared.get(i))
            results[i] = fused.accumulate(weight, deferred)
        return None, *results


# Of the weights of a node: its gradients wait for each other, in memory beside those of earlier
# passes, and out of cache.
BUCKET = 8 * 2**20

serve = direct_apply(Serve)  # after needs_reference(), which keepable() asks


def _affine(some, needs, results):
    """Puts the gradients of gains and shifts into results; returns |J(w) g_hat|^2 by place."""
    count = len(results) // 3
    rows, *vectors = _in_thirds(
        raw_norms_many(
            [grad for _, _, grad in some],
            [part.tensors[0] for _, part, _ in some],
            [part.tensors[1] for _, part, _ in some],
            [part.arguments[0] for _, part, _ in some],
            [float(number) for _, part, _ in some for number in part.arguments[1:]],
            True,
        )
    )
    for k, column in enumerate(vectors, 1):
        for (i, _, _), vector in zip(some, column, strict=True):
            results[k * count + i] = vector if needs[k * count + i] else None
    return {i: squares.sum() for (i, _, _), squares in zip(some, rows, strict=True)}


def _in_thirds(flat):
    third = len(flat) // 3
    return flat[:third], flat[third : 2 * third], flat[2 * third :]


def _results(parts):
    """Those of a new node."""
    columns = zip(*(part.tensors for part in parts), strict=True)
    return serve(parts, *(tensor for column in columns for tensor in column))


class Serving:
    """What is ready to be given to a fused model's layers, each of which takes its own once.

    It is right as long as it was made of what is stored of the layer: steps, which renew that,
    clear what is ready.
    """

    def __init__(self):
        self._ready: dict[FusedLayer | None, tuple[_Part, torch.Tensor]] = {}
        self._used: dict[FusedLayer, None] = {}  # in this pass, first use first
        self._bucket_of: dict[FusedLayer, list[FusedLayer]] = {}  # by what the last pass used
        self._lock = threading.RLock()  # a dispatch mode may call a layer within

    def clear(self) -> None:
        """Lets go of what nobody took, and so of the memory of the standardized weights."""
        self._ready.clear()

    def take(self, fused: FusedLayer, entry: Stored, tensors: tuple):
        """The layer's stored weight, as a result of a node."""
        if wants_small_nodes():
            return _results([_Part(fused, entry, tensors)])[0]
        with self._lock:
            part, result = self._ready.pop(fused, (None, None))
            if part is None or part.entry is not entry:  # or what is stored has been made anew
                result = self._make(fused, entry, tensors)
            self._used[fused] = None
        return result

    def _make(self, fused, entry, tensors):
        if fused in self._used:  # a second time: a new pass
            used, self._used = list(self._used), {}
            for bucket in buckets([one.weight for one in used], BUCKET):
                self._bucket_of.update(dict.fromkeys(used[bucket], used[bucket]))
        parts = [_Part(fused, entry, tensors)]
        if not any(gradient_hooks(tensors[0])):  # they are called when the gradient is there
            parts += self._others(fused, entry, tensors[0].device)
        result, *others = _results(parts)
        for part, other in zip(parts[1:], others, strict=True):
            self._ready[part.fused()] = part, other
        return result

    def _others(self, first, entry, device):
        """Those of the same bucket that are to come, and whose stored weight is right as it is."""
        parts = []
        for fused in self._bucket_of.get(first, ()):
            layer = fused.layer
            tensors, own = layer._tensors(), layer._cached
            weight = tensors[0]
            if (
                fused is not first
                and fused not in self._used
                and own is not None
                and own.arguments is not None
                and weight.requires_grad
                and weight.device == device
                and not any(gradient_hooks(weight))
                and own.serves(layer, tensors, entry.dtype)
            ):
                parts.append(_Part(fused, own, tensors))
        return parts
