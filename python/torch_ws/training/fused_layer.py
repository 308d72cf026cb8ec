"""A fused model's layer in a pass: it serves a weight that is stored, and defers its gradient."""

from __future__ import annotations

import threading
from collections.abc import Collection
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..core.autograd import Standardize
from ..core.private import accumulates, direct_apply, gradient_hooks, in_transform
from ..core.standardize import fan_in_of
from ..core.update import raw_norms_many
from ..layers.cache import keepable, stored
from .deferred import Deferred
from .provider import Provider
from .standardized_grad import StandardizedGrad, deferred_of

if TYPE_CHECKING:
    from ..layers.standardized import Standardized


class Serve(Standardize):
    """Standardize's node where the result has been computed before.

    Called by `serve` with ``(weight, gain, shift, entry, layer)``: what is stored of the layer.
    """

    @staticmethod
    def forward(ctx, weight, gain, shift, entry, layer):  # type: ignore[override]
        ctx.save_for_backward(weight, gain)
        ctx.arguments = entry.arguments
        ctx.layer = layer
        return entry.result.detach()  # with a version counter in common, and memory

    @staticmethod
    def backward(ctx, grad):
        layer = ctx.layer
        leaf = ctx.next_functions[0][0]  # None: the weight needs no gradient
        if (
            leaf is None
            or layer.reason is not None
            or torch.is_grad_enabled()
            or in_transform()
            or torch.compiler.is_compiling()
            or type(grad) is not torch.Tensor
            or not accumulates(leaf)
            # under checkpointing, what has been saved is another tensor
            or (parameter := leaf.variable) is not layer.weight
        ):
            return *Standardize.backward(ctx, grad), None
        weight, gain = ctx.saved_tensors
        arguments = ctx.arguments[:-1]
        squared = grad_gain = grad_shift = None
        _, gain_needs, shift_needs, *_ = ctx.needs_input_grad
        if gain_needs or shift_needs:
            numbers = list(map(float, arguments[1:]))
            rows, grad_gain, grad_shift = raw_norms_many(
                [grad], [weight], [gain], [arguments[0]], numbers, True
            )
            squared = rows.sum()
        deferred = Deferred(layer, parameter, gain, arguments, grad, squared)
        return (
            layer.accumulate(parameter, deferred),
            grad_gain if gain_needs else None,
            grad_shift if shift_needs else None,
            None,
            None,
        )


serve = direct_apply(Serve)  # after needs_reference(), which keepable() asks


class FusedLayer(Provider):
    """One layer of a fused model, and its Provider.

    reason: why the optimizer's step has no kernel for it, which then leaves an ordinary gradient;
    None: it has one.
    """

    idle = permanent = keeps = True

    def __init__(self, name: str, layer: Standardized, weight: nn.Parameter, reason: str | None):
        self.name = name
        self.layer = layer
        self.weight = weight
        self.reason = reason
        self.peers: Collection[FusedLayer] = ()  # all of the model's
        self._lock = threading.Lock()

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
                entry.arguments = (*self.arguments(weight), None)
            return serve(weight, gain, shift, entry, self)
        return entry.result.detach()  # others' reading counts as a user of the memory

    def accumulate(self, parameter: nn.Parameter, deferred: Deferred) -> StandardizedGrad | None:
        """Adds a gradient to the parameter's .grad; returns what the graph is to do that with.

        That is None where nobody would notice: the graph takes a Python call a step for it, between
        convolutions that leave no cache to Python. Tensor hooks do, and streams of a GPU.
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
        self.compute_grad()
        deferred = deferred_of(self.layer.weight.grad)
        if deferred is None:
            return move()
        self.layer.weight.grad = None
        result = move()
        weight = self.layer.weight
        weight.grad = StandardizedGrad(deferred, weight)  # lost before, and lost now
        return result
