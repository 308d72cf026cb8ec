"""Standardized weights that layers keep, and what tells that one is not right any more.

A layer standardizes its weight once and keeps the result, until the weight, its gain or its shift
is another tensor or holds other values. Every layer does so where no gradient of them is needed: in
eval mode without gradients, and in train mode too if all three are frozen. The layers of a fused
model (training/fuse.py) do so while they train, and the optimizer's step makes the next result.

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

from ..core.private import is_tracing, local_tensor, needs_reference, storage_users

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

    def renew(self, layer: Standardized, tensors: tuple) -> bool:
        """Knows these tensors as they are now; False if they are others than those known before."""
        for tensor, known in zip(tensors, self.known, strict=True):
            if known is not None and known.tensor() is tensor is not None:
                known.version = version_of(tensor)
        return self.are(layer, tensors)


def version_of(tensor):
    """What any write to the tensor counts up; of a DTensor, also one to its local tensor."""
    local = local_tensor(tensor)
    return tensor._version if local is tensor else tensor._version + local._version


class _Known:
    """One tensor at one moment; of a DTensor, the memory is its local tensor's."""

    __slots__ = ("__weakref__", "address", "sharded", "storage", "stride", "tensor", "version")

    def __init__(self, tensor, freed):
        self.tensor = weakref.ref(tensor)
        self.version = version_of(tensor)
        self.sharded = local_tensor(tensor) is not tensor
        tensor = local_tensor(tensor)
        # `tensor.data = other` leaves identity and version as they are. It is told by the address,
        # which says something only as long as the memory that was there has not been freed.
        self.address = tensor.data_ptr()
        self.storage = weakref.ref(tensor.untyped_storage(), freed)
        self.stride = tensor.stride()
        _everything_known.add(self)

    def holds(self, tensor):
        version = tensor._version
        if self.sharded:
            version, tensor = version_of(tensor), local_tensor(tensor)
        return (
            version == self.version
            and tensor.data_ptr() == self.address
            and self.storage() is not None
            and tensor.stride() == self.stride
        )


def count_step(optimizer, counted=frozenset()):
    """Counts a version of each parameter that a step has written to; `counted`: id() of others."""
    known = {id(one.tensor()) for one in _everything_known}
    stepped = [
        parameter
        for group in optimizer.param_groups
        for parameter in group["params"]
        if id(parameter) in known and parameter.grad is not None and id(parameter) not in counted
    ]
    if stepped:
        torch.autograd.graph.increment_version(stepped)


counts_itself: weakref.WeakSet = weakref.WeakSet()  # optimizers whose steps are counted elsewhere


def _count_step(optimizer, args, kwargs):
    # A compiled step counts the versions of what it writes.
    if not torch.compiler.is_compiling() and optimizer not in counts_itself:
        count_step(optimizer)


register_optimizer_step_post_hook(_count_step)


class Stored:
    """A layer's standardized weight, what it was made from, and its dtype (None: the weight's).

    arguments: the op's that it was made with, for the node of a fused layer (training/serve.py).
    """

    __slots__ = ("arguments", "dtype", "inputs", "result", "version")

    def __init__(self, layer, tensors, dtype, result=None):
        self.arguments: tuple | None = None
        if result is None:
            # A result made in inference mode could not be used outside of it.
            with torch.inference_mode(False), torch.no_grad():
                result = layer._standardize(tensors, dtype)
        self.result = result
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


def keepable(tensors: tuple) -> bool:
    """True if a result made of `tensors` may serve a later pass, as far as this moment tells."""
    return type(tensors[0]) is nn.Parameter and is_moment_to_keep(tensors[0])


def is_moment_to_keep(weight: torch.Tensor) -> bool:
    """True if a result made now is a tensor of its own, and not a part of something recorded."""
    return not (
        torch.compiler.is_compiling()
        or needs_reference()
        or is_tracing()
        # a captured graph would go on reading the result after the weight has changed
        or (weight.is_cuda and torch.cuda.is_current_stream_capturing())
    )


def stored(layer: Standardized, tensors: tuple, dtype: torch.dtype | None) -> Stored | None:
    """What the layer keeps, made anew where that is not right any more; None: it may keep none."""
    entry = layer._cached
    if entry is None or not entry.serves(layer, tensors, dtype):
        if not all(counts_versions(t) for t in tensors if t is not None):
            return None
        layer.__dict__["_cached"] = entry = Stored(layer, tensors, dtype)
    return entry


def store(layer: Standardized, tensors: tuple, dtype: torch.dtype | None, result) -> None:
    """Has the layer keep a result that was made of `tensors` elsewhere, if it may."""
    entry = layer._cached
    if entry is not None and entry.dtype == dtype and entry.inputs.renew(layer, tensors):
        entry.result, entry.version = result, result._version
    elif all(counts_versions(t) for t in tensors if t is not None):
        layer.__dict__["_cached"] = Stored(layer, tensors, dtype, result)
    else:
        layer.__dict__.pop("_cached", None)


def cacheable(layer: Standardized, tensors: tuple) -> bool:
    """True if `layer` needs no gradient of `tensors` in this pass, and will not soon."""
    if not layer.eval_cache:
        return False
    if layer.training or torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return False
    return keepable(tensors)


class EvalCache:
    """The last provider of every layer (training/provider.py): what it kept, where it may keep."""

    idle, permanent = True, False

    def take(self, layer: Standardized, tensors: tuple, dtype: torch.dtype | None):
        """The kept result, or a new one that is kept; None: the layer computes its own."""
        entry = stored(layer, tensors, dtype) if cacheable(layer, tensors) else None
        return None if entry is None else entry.result


def counts_versions(tensor):
    """True if the tensor has its memory for itself, so that its version tells of every write.

    Of the memory of a shard FSDP2 has several tensors, which count together (gather.py).
    """
    tensor = local_tensor(tensor)
    if tensor.is_inference():
        return False
    users = getattr(tensor, "own_users", 1)
    return storage_users(tensor) <= users and not (tensor.is_cpu and tensor.is_shared())
