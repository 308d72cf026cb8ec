"""`fuse` for the weights that FSDP2 gathers standardized (gather.py).

All that a step does to a row of a weight needs that row alone. So each rank steps the rows that it
has, without communication, and writes what it will send when they are gathered next. Gains and
shifts are applied after the gathering, and are ordinary parameters of torch's step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..core.private import local_tensor
from ..core.standardize import standardize
from ..layers.cache import Stored, counts_versions, is_moment_to_keep, stored
from ..layers.standardized import Standardized
from ..training.deferred import Deferred
from ..training.fused_layer import FusedLayer
from ..training.standardized_grad import StandardizedGrad, deferred_of


class _Shard:
    """What the step and the store ask of a layer, for this rank's rows of its weight."""

    channel_dim = 0
    _cached: Stored | None = None

    def __init__(self, layer: Standardized, weight: nn.Parameter):
        self.layer = layer
        self.weight = weight

    @property
    def formula(self):
        return self.layer.formula

    def _tensors(self):
        return self.weight, None, None

    def _standardize(self, tensors, dtype):
        return standardize(local_tensor(tensors[0]).detach(), formula=self.formula, dtype=dtype)


class FusedRows(FusedLayer):
    """This rank's rows of one layer's weight, a DTensor, in a fused model."""

    def __init__(self, name, layer: Standardized, weight: nn.Parameter, reason: str | None):
        super().__init__(name, _Shard(layer, weight), weight, reason)  # type: ignore[arg-type]
        self._module = layer
        self._hooks: list = []

    def attach(self):
        layer = self._module
        provider: Any = layer._provider  # which gathers the weight
        provider.fused = self
        # The local tensors of a state dict have the memory, and count versions for themselves.
        # What is loaded may be swapped with the parameter, if nothing refers to that.
        self._hooks = [
            layer.register_state_dict_pre_hook(self._forget),
            layer.register_load_state_dict_pre_hook(self._forget),
        ]

    def detach(self):
        provider = self._module._provider
        if provider is not None and provider.fused is self:
            provider.fused = None
        for hook in self._hooks:
            hook.remove()

    def _forget(self, *_):
        self.layer.__dict__.pop("_cached", None)

    def standardized(self, dtype: torch.dtype | None) -> torch.Tensor | None:
        """The rows standardized, as they are stored; None: nothing may be stored."""
        if not (self._module.eval_cache and counts_versions(self.weight)):
            self._forget()
            return None
        if not is_moment_to_keep(self.weight):
            return None
        entry = stored(self.layer, self.layer._tensors(), dtype)
        return None if entry is None else entry.result

    def defers(self) -> bool:
        """True if the step is to make the gradient."""
        return self.reason is None and self._module.eval_cache

    def deferred(self, grad: torch.Tensor) -> StandardizedGrad:
        """The gradient of the rows, where `grad` is that of the standardized ones."""
        deferred = Deferred(self, self.weight, None, self.arguments(self.weight), grad)
        return StandardizedGrad(deferred, grad)

    def move(self, move):
        self._forget()  # PyTorch swaps DTensors, and none that something refers to
        self.compute_grad()
        deferred = deferred_of(self.weight.grad)
        if deferred is not None:
            deferred.weight()  # raises: it is lost
        return move()
