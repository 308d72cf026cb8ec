"""All standardized weights of a forward pass in one call, and their gradients in one a bucket.

The root's forward computes the results, the layers take them, and at its end they are let go of,
while their memory waits for the next pass (buffers.py). A bucket becomes a node of the autograd
graph when the first of its layers asks, and not before: autograd runs the latest node that is
ready, so the bucket's gradients come as soon as its layers have run backward, and
DistributedDataParallel can send them while earlier layers still work.

The forward is wrapped in a subclass, as PyTorch's fully_shard does, and not in hooks: torch.compile
runs the hooks of the outermost module outside of the graph.
"""

from __future__ import annotations

import threading
import warnings
import weakref

import torch
from torch import nn

from .._check import check_module
from ..core.private import in_backward, needs_reference, original_of, saved_tensors_hooks
from ..layers.cache import cacheable
from ..layers.standardized import Standardized, autocast_dtype
from .batch import Member, attach, batches, buckets, forward, has_kernel, standardized_layers
from .buffers import Buffers
from .provider import Provider
from .subclass import subclass_of

_grouped: weakref.WeakSet = weakref.WeakSet()  # the models


def group(model: nn.Module, bucket_mb: float | None = None) -> Group:
    """Standardizes all weights of each forward pass of `model` in one call.

    Results and gradients are those of the layers one by one, to the last bit. (Of a layer with
    several uses in a pass the gradients are summed before standardization's backward, not after.)
    A layer computes its own result where the group's would not do. Layers may be added, replaced,
    moved and frozen at any time.

    Args:
        model: any module with torch_ws layers, before or after wrapping in
            DistributedDataParallel.
        bucket_mb: None: one node of the autograd graph, whose backward runs when the gradients of
            all results are there. A number: one for each so many MiB of weights, in the order of
            first use, so that gradients appear while the backward pass goes on.

    Returns:
        A handle whose ``remove()`` undoes it, and whose repr tells how many layers the group has
        and how many passes it has served.

    Warns:
        UserWarning: once, when a layer trains outside of any pass of its group, because something
            else than the model's forward was called.

    Raises:
        TypeError: `model` is not a module, or `bucket_mb` not a number.
        ValueError: `bucket_mb` is not positive, or `model` has a `forward` of its own beside its
            class's.
        RuntimeError: a part of the model belongs to a group already, or is fused.
    """
    check_module(model)
    if bucket_mb is not None:
        if isinstance(bucket_mb, bool) or not isinstance(bucket_mb, (int, float)):
            raise TypeError(f"bucket_mb must be a number or None, got {type(bucket_mb).__name__}")
        if not bucket_mb > 0:
            raise ValueError(f"bucket_mb must be positive, got {bucket_mb}")
    while (original := original_of(model)) is not None:
        model = original
    if "forward" in model.__dict__:
        raise ValueError(
            f"model must not have its forward replaced on the instance; {type(model).__name__} has"
        )
    modules = set(model.modules())
    for layer in modules:
        if isinstance(layer, Standardized) and layer._provider and layer._provider.fused:
            raise RuntimeError(
                "model is fused (torch_ws.fuse): its steps make the standardized weights that group"
                " would; call remove() of that handle first"
            )
    for other in _grouped:
        if not modules.isdisjoint(other.modules()):
            raise RuntimeError(
                f"{type(model).__name__} and {type(other).__name__}, which is grouped already, "
                "have modules in common: group the outermost module, once"
            )
    return Group(model, bucket_mb)


class Group(Provider):
    """What `group` returns. Between passes also its layers' Provider, an idle one."""

    idle, permanent = True, False

    def __init__(self, model: nn.Module, bucket_mb: float | None):
        self._model = weakref.ref(model)
        self._limit = None if bucket_mb is None else bucket_mb * 2**20
        self._used: dict | None = None  # the layers that the last pass used, first use first
        self._running: set = set()  # passes, of several threads or one within another
        self._memory = Buffers()
        self._passes = 0
        self._compiled = False
        self._warned = False
        self._class = type(model)
        self._subclass = subclass_of(type(model))
        for layer in standardized_layers(model):
            # Compiled code guards what a layer has: the same before its first pass as after it.
            if not layer._is_provided_for():
                layer.__dict__["_provider"] = self
        model.__dict__["_ws_group"] = self
        model.__class__ = self._subclass
        _grouped.add(model)

    def remove(self) -> None:
        """Ungroups the model: its layers go on one by one."""
        model = self._model()
        if model is None or model.__dict__.pop("_ws_group", None) is None:
            return
        if type(model) is self._subclass:  # else somebody has made a subclass of it
            model.__class__ = self._class
        _grouped.discard(model)
        self._memory.keep(())
        for layer in standardized_layers(model):
            if layer._provider is self:
                layer.__dict__.pop("_provider")

    def __repr__(self):
        model = self._model()
        if model is None or model.__dict__.get("_ws_group") is not self:
            return "Group(removed)"
        layers = len(standardized_layers(model))
        served = "compiled" if self._compiled else f"{self._passes} passes served"
        return f"Group({self._class.__name__}: {layers} layers, {served})"

    def begin(self, model: nn.Module) -> _Pass | None:
        """Computes the results of a forward pass; None where there is nothing to compute."""
        members = _members(model)
        if members:
            return _Pass(self, members, self._used, self._limit)
        if not torch.compiler.is_compiling():
            self._memory.keep(())
        return None

    def end(self, ended: _Pass) -> None:
        """Learns from a pass that has come to its end."""
        if torch.compiler.is_compiling():
            self._compiled = True
        else:
            self._used = ended.used
            self._passes += 1

    def take(self, layer, tensors, dtype):
        """None: outside of a pass the layer computes its own result. Warns once if it trains."""
        if (
            not (self._warned or torch.compiler.is_compiling() or self._running)
            and self._model() is not None
            and layer.training
            and torch.is_grad_enabled()
            and isinstance(tensors[0], nn.Parameter)  # not a replica's
            and any(t is not None and t.requires_grad for t in tensors)
            and not in_backward()  # where checkpointing repeats a pass
        ):
            self._warned = True
            model = self._class.__name__
            warnings.warn(
                f"torch_ws.group({model}) is not active: {layer} trains outside of a forward pass "
                f"of {model}, and standardizes its weight by itself. Call {model} itself instead "
                "of a part or another method of it, or group the module that is called",
                UserWarning,
                stacklevel=2,
            )
        return None


def _members(model) -> dict[Standardized, Member]:
    """The layers that a pass can compute for."""
    if not torch.compiler.is_compiling() and (
        torch.is_inference_mode_enabled() or needs_reference() or torch.jit.is_tracing()
    ):
        return {}
    members = {}
    for layer in standardized_layers(model):
        tensors = layer._tensors()
        held = layer._is_provided_for() and not isinstance(layer._provider, _Pass)
        if has_kernel(tensors[0]) and not held and not cacheable(layer, tensors):
            members[layer] = Member(layer, tensors, autocast_dtype(tensors[0]), layer.formula)
    return members


class _Pass(Provider):
    """One forward pass of the model, and its layers' Provider."""

    idle = permanent = False

    def __init__(self, group: Group, members: dict, used: dict | None, limit: float | None):
        self.group = group
        self.members = members
        self.used: dict = {}
        self.thread = self.saved_hooks = None
        if not torch.compiler.is_compiling():
            self.thread = threading.get_ident()
            self.saved_hooks = saved_tensors_hooks()
        # A checkpointed pass must save the same tensors when it is repeated, whatever was learned.
        order = members if used is None or self.saved_hooks is not None else used
        self.places: dict = {}  # layer -> the results of its batch, and its place there
        for batch in batches([members[layer] for layer in order if layer in members]):
            results = _Results(batch, limit, group._memory)
            for i, member in enumerate(batch):
                self.places[member.layer] = results, i
        for layer in members:
            layer.__dict__["_provider"] = self
        if self.thread is not None:
            group._memory.keep(self.places)
            group._running.add(self)

    def take(self, layer, tensors, dtype):
        """The layer's result from its batch; None: the layer computes its own."""
        member = self.members.get(layer)
        if member is None or member.dtype != dtype or not _same(member.tensors, tensors):
            return None
        results, i = self.places.get(layer, (None, None))
        if not torch.compiler.is_compiling():
            if (
                self.thread != threading.get_ident()
                or needs_reference()
                # Checkpointing computes a layer again after the pass: alone, saving other tensors.
                or self.saved_hooks != saved_tensors_hooks()
            ):
                return None
            self.used[layer] = None
            if results is not None and not results.unchanged(i):
                return None
        return None if results is None else results.result(i)

    def close(self):
        for layer in self.members:
            if layer._provider is self:
                layer.__dict__["_provider"] = self.group
        self.places = {}
        self.group._running.discard(self)


class _Results:
    """A batch's results. Those of a bucket, a slice of the batch, share a node of the graph."""

    def __init__(self, batch: list[Member], limit: float | None, memory: Buffers):
        self.batch = batch
        slices = buckets([member.tensors[0] for member in batch], limit)
        self.bucket_of = [bucket for bucket in slices for _ in range(bucket.start, bucket.stop)]
        self.unattached: set = set()  # where the buckets begin that have no node yet
        if torch.compiler.is_compiling():  # which orders the graph itself, and follows all writes
            self.outs = [out for bucket in slices for out in forward(batch[bucket])]
        else:
            with torch.no_grad():
                self.outs = memory.forward(batch)
            self.unattached.update(bucket.start for bucket in self.bucket_of)
            self.versions = [_versions(member) for member in batch]

    def unchanged(self, i):
        member = self.batch[i]
        return member.layer.formula == member.formula and self.versions[i] == _versions(member)

    def result(self, i):
        bucket = self.bucket_of[i]
        if torch.is_grad_enabled() and bucket.start in self.unattached:
            self.outs[bucket] = attach(self.batch[bucket], self.outs[bucket])
            self.unattached.remove(bucket.start)
        out = self.batch[i].layer._from_rows(self.outs[i])
        return out if torch.is_grad_enabled() else out.detach()


def _same(old, new):
    return old[0] is new[0] and old[1] is new[1] and old[2] is new[2]


def _versions(member):
    return [t._version for t in member.tensors if t is not None]
