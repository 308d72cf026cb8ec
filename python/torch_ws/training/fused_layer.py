"""A fused model's layer in a pass: it serves a weight that is stored, and defers its gradient."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Collection
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..core.private import gradient_hooks
from ..core.standardize import fan_in_of
from ..layers.cache import keepable, stored
from .deferred import Deferred
from .provider import Provider
from .serve import Serving
from .standardized_grad import StandardizedGrad, deferred_of

if TYPE_CHECKING:
    from ..layers.standardized import Standardized


class FusedLayer(Provider):
    """One layer of a fused model, and its Provider.

    reason: why the optimizer's step has no kernel for it, which then leaves an ordinary gradient;
    None: it has one.
    """

    idle = permanent = True

    def __init__(self, name: str, layer: Standardized, weight: nn.Parameter, reason: str | None):
        self.name = name
        self.layer = layer
        self.weight = weight
        self.reason = reason
        self.fused = self
        self.peers: Collection[FusedLayer] = ()  # all of the model's
        self.serving: Serving  # the model's
        self.reference = weakref.ref(self)
        self._lock = threading.Lock()

    def attach(self) -> None:
        """From now on the layer's weights are stored, and their gradients deferred."""
        self.layer.__dict__["_provider"] = self

    def detach(self) -> None:
        """Undoes `attach`."""
        if self.layer._provider is self:
            self.layer.__dict__.pop("_provider")

    def arguments(self, weight) -> tuple:
        """The op's: (channel_dim, eps, eps_mode, correction, center, scale)."""
        formula, channel_dim = self.layer.formula, self.layer.channel_dim
        return channel_dim, *(formula.fixed or formula.arguments(fan_in_of(weight, channel_dim)))

    def take(self, layer, tensors, dtype):
        """The stored weight, as the result of a node where gradients are needed."""
        keeps = layer.eval_cache and keepable(tensors)  # eval_cache(False): follow every write
        entry = stored(layer, tensors, dtype) if keeps else None
        if entry is None:
            return None
        weight, gain, shift = tensors
        if torch.is_grad_enabled() and (
            weight.requires_grad
            or (gain is not None and gain.requires_grad)
            or (shift is not None and shift.requires_grad)
        ):
            if entry.arguments is None:
                entry.arguments = self.arguments(weight)
            return self.serving.take(self, entry, tensors)
        return entry.result.detach()  # others' reading counts as a user of the memory

    def accumulate(self, parameter: nn.Parameter, deferred: Deferred) -> StandardizedGrad | None:
        """Adds a gradient to the parameter's .grad; returns what the graph is to do that with.

        That is None where nobody would notice: the graph would call the dispatcher twice for it, in
        Python. A parameter's hooks do notice, and the streams of a GPU, which the graph orders.
        """
        if parameter.is_cpu and not any(gradient_hooks(parameter)):
            with self._lock:  # threads may run backward passes of one model
                if parameter.grad is None:
                    parameter.grad = StandardizedGrad(deferred, parameter)
                    return None
                before = deferred_of(parameter.grad)
                if before is not None and before.matches(deferred):
                    before.add(deferred)
                    return None
        return StandardizedGrad(deferred, parameter)

    def pending(self) -> list[Deferred]:
        """The model's gradients that are not computed, and can be."""
        found = [deferred_of(fused.weight.grad) for fused in self.peers]
        return [deferred for deferred in found if deferred is not None and not deferred.is_lost()]

    def compute_grad(self):
        """Puts an ordinary gradient in the place of a deferred one, if it can still be computed."""
        deferred = deferred_of(self.weight.grad)
        if deferred is not None and not deferred.is_lost():
            deferred.compute()

    def move(self, move):
        self.serving.clear()
        self.compute_grad()
        deferred = deferred_of(self.layer.weight.grad)
        if deferred is None:
            return move()
        self.layer.weight.grad = None
        result = move()
        weight = self.layer.weight
        weight.grad = StandardizedGrad(deferred, weight)  # lost before, and lost now
        return result
