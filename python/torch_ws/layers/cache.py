"""What a standardized weight was made from, and the cache of it for passes that train nothing.

A layer standardizes its weight once and keeps the result, until the weight, its gain or its shift
is another tensor or holds other values, where no gradient of them is needed: in eval mode without
gradients, and in train mode too if all three are frozen.

What tells is PyTorch's version counter. So nothing is kept of memory that others write to without
counting there: that of several tensors (parameters as views of one flat vector) or of several
processes. Optimizers with ``fused=True`` count no version either; their steps are counted here.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from ..core.private import is_tracing, needs_reference, storage_users

if TYPE_CHECKING:
    from .standardized import Standardized

_everything_known: weakref.WeakSet = weakref.WeakSet()


class Inputs:
    """A layer's formula and tensors at one moment; tells whether they are still what they were.

    By identity, version counter and memory, so `load_state_dict`, an optimizer's step, a replaced
    parameter and `.to()` are all noticed. Writes through `tensor.data`, a raw pointer or a replayed
    CUDA graph are not: PyTorch counts no version for them.

    Keeps neither the tensors nor their memory alive. `freed` is called when one of these ends.
    """

    __slots__ = ("formula", "known")

    def __init__(self, layer: Standardized, tensors: tuple, freed=None):
        self.formula = layer.formula
        self.known = [None if t is None else _Known(t, freed) for t in tensors]

    def are(self, layer: Standardized, tensors: tuple) -> bool:
        """True if `layer` would now, from `tensors`, compute the same."""
        if layer.formula is not self.formula and layer.formula != self.formula:
            return False
        for tensor, known in zip(tensors, self.known, strict=True):
            if tensor is None or known is None:
                if tensor is not known:
                    return False
            elif tensor is not known.tensor() or not known.holds(tensor):
                return False
        return True

    def unchanged(self) -> bool:
        """True if nothing was written to the tensors since, and they all still exist."""
        for known in self.known:
            if known is not None:
                tensor = known.tensor()
                if tensor is None or not known.holds(tensor):
                    return False
        return True


class _Known:
    """One tensor at one moment."""

    __slots__ = ("__weakref__", "address", "storage", "stride", "tensor", "version")

    def __init__(self, tensor, freed):
        self.tensor = weakref.ref(tensor)
        self.version = tensor._version
        # `tensor.data = other` leaves identity and version as they are. It is told by the address,
        # which says something only as long as the memory that was there has not been freed.
        self.address = tensor.data_ptr()
        self.storage = weakref.ref(tensor.untyped_storage(), freed)
        self.stride = tensor.stride()
        _everything_known.add(self)

    def holds(self, tensor):
        return (
            tensor._version == self.version
            and tensor.data_ptr() == self.address
            and self.storage() is not None
            and tensor.stride() == self.stride
        )


def _count_step(optimizer, args, kwargs):
    if torch.compiler.is_compiling():  # whose result counts the versions of what it writes
        return
    known = {id(one.tensor()) for one in _everything_known}
    stepped = [
        parameter
        for group in optimizer.param_groups
        for parameter in group["params"]
        if id(parameter) in known and parameter.grad is not None
    ]
    if stepped:
        torch.autograd.graph.increment_version(stepped)


register_optimizer_step_post_hook(_count_step)


class _Entry:
    __slots__ = ("dtype", "inputs", "result", "version")

    def __init__(self, layer, tensors, dtype):
        # A result made in inference mode could not be used outside of it.
        with torch.inference_mode(False), torch.no_grad():
            self.result = layer._standardize(tensors, dtype)
        self.version = self.result._version
        self.dtype = dtype
        owner = weakref.ref(layer)

        def forget(_):  # the result is as large as the weight that is gone
            layer = owner()
            if layer is not None:
                layer.__dict__.pop("_cached", None)

        self.inputs = Inputs(layer, tensors, forget)

    def serves(self, layer, tensors, dtype):
        return (
            dtype == self.dtype
            and self.result._version == self.version  # nobody wrote to what we handed out
            and self.inputs.are(layer, tensors)
        )


def cacheable(layer: Standardized, tensors: tuple) -> bool:
    """True if `layer` needs no gradient of `tensors` in this pass, and will not soon."""
    weight = tensors[0]
    if type(weight) is not nn.Parameter or torch.compiler.is_compiling() or not layer.eval_cache:
        return False
    if layer.training or torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return False
    return not (
        needs_reference()
        or is_tracing()
        # a captured graph would go on reading the result after the weight has changed
        or (weight.is_cuda and torch.cuda.is_current_stream_capturing())
    )


class EvalCache:
    """The last provider of every layer (training/provider.py): what it kept, where it may keep."""

    idle, permanent = True, False

    def take(self, layer: Standardized, tensors: tuple, dtype: torch.dtype | None):
        """The kept result, or a new one that is kept; None: the layer computes its own."""
        if not cacheable(layer, tensors):
            return None
        entry = layer._cached
        if entry is not None and entry.serves(layer, tensors, dtype):
            return entry.result
        if not all(_counts_versions(t) for t in tensors if t is not None):
            return None
        layer.__dict__["_cached"] = entry = _Entry(layer, tensors, dtype)
        return entry.result


def _counts_versions(tensor):
    """True if the tensor has its memory for itself, so that its version tells of every write."""
    if tensor.is_inference():
        return False
    return storage_users(tensor) == 1 and not (tensor.is_cpu and tensor.is_shared())
