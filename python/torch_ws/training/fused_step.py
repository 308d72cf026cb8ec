"""The optimizer's step in a fused model: torch's own, but for the weights that have a kernel.

torch.optim's step gathers a group's parameters, gradients and states before it computes. There the
weights with a kernel are taken out, with the states that torch itself has made for them. After the
step, when gains and shifts are what it has made of them, one call a group updates those weights and
writes their next standardized weights (csrc/update.h).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from ..core.private import called_by_compiled, gather_with, hook_first, storage_users
from ..core.update import raw_update_many
from ..layers.cache import Stored, count_step, counts_itself, counts_versions
from .clipping import clip_by_unit
from .deferred import deferred_of, value_of
from .fused_layer import FusedLayer

DEVICES = ("cpu",)
DTYPES = (torch.float32, torch.float64)
KINDS = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)  # and no subclass, which may differ


COMPILED = "optimizer.step must not be compiled: torch_ws.fuse is to replace a part of it"


@dataclasses.dataclass
class _Update:
    """A weight's part in a step."""

    fused: FusedLayer
    weight: torch.Tensor
    states: list  # torch's, of the weight's size; None: SGD's momentum before its first step
    step: torch.Tensor | None  # Adam's
    grad: torch.Tensor  # of the standardized weight, or of the weight itself
    of_weight: bool
    factor: torch.Tensor | None  # of grad
    gain: torch.Tensor | None  # that grad was computed with


class FusedStep:
    """The step of one optimizer. layers: by weight; clip_of(parameter): AGC's number or None."""

    def __init__(self, optimizer, layers: dict, clip_of: Callable, clip_eps: float):
        self.optimizer = optimizer
        self.layers = layers
        self.clip_of = clip_of
        self.clip_eps = clip_eps
        self.pending: list[tuple[dict, list[_Update]]] = []
        self.own_gather: Callable | None = None
        self.hooks = [optimizer.register_step_pre_hook(self.begin)]
        if type(optimizer) in KINDS:
            self.own_gather = gather_with(optimizer, self.gather)
            self.hooks.append(hook_first(optimizer, self.finish))
            counts_itself.add(optimizer)

    def remove(self):
        for hook in self.hooks:
            hook.remove()
        if self.own_gather is not None:
            gather_with(self.optimizer, None)
            counts_itself.discard(self.optimizer)

    @torch.compiler.disable
    def begin(self, optimizer, args, kwargs):
        """Before the step, and before a closure."""
        if called_by_compiled():  # which reads the memory that deferred gradients do not have
            raise RuntimeError(COMPILED)
        self.pending = []

    @torch.compiler.disable
    def gather(self, group: dict, *lists):
        """torch's gathering of a group, without the weights that have a kernel, which wait."""
        waiting, others = [], []
        for parameter in group["params"]:
            fused = self.layers.get(parameter)
            if fused is not None and parameter.grad is not None:
                fused.reason = reason_of(self.optimizer, group, parameter)
                if fused.reason is None:
                    waiting.append(parameter)
                    continue
                value_of(parameter.grad)  # which takes its own place
            others.append(parameter)
        result = self.own_gather({**group, "params": others}, *lists)
        self._clip(group, others)
        if waiting:
            gathered: tuple = tuple([] for _ in lists)
            self.own_gather({**group, "params": waiting}, *gathered)
            self.pending.append((group, self._updates(waiting, gathered)))
        return result

    def _clip(self, group, parameters):
        scale, _ = _scaler(self.optimizer, group)
        for parameter in parameters:
            clip = self.clip_of(parameter)
            if clip and parameter.grad is not None:
                clip_by_unit(parameter, clip, self.clip_eps, scale)

    def _updates(self, weights, gathered):
        """gathered: torch's lists of the weights' gradients and states."""
        sgd = type(self.optimizer) is torch.optim.SGD
        steps = [None] * len(weights) if sgd else gathered[-1]
        columns = [column for column in (gathered[2:] if sgd else gathered[2:-1]) if column]
        updates = []
        for i, weight in enumerate(weights):
            fused, states = self.layers[weight], [column[i] for column in columns]
            deferred = deferred_of(weight.grad)
            if deferred is None:
                grad, factor, gain = value_of(weight.grad), None, None
            else:
                deferred.weight()  # raises if it was written to
                grad, factor, gain = deferred.grad, deferred.factor, deferred.gain
            of_weight = deferred is None
            updates.append(_Update(fused, weight, states, steps[i], grad, of_weight, factor, gain))
        return updates

    @torch.compiler.disable
    @torch.no_grad()
    def finish(self, optimizer, args, kwargs):
        """After torch's step: the weights that waited, and what is stored of their layers."""
        pending, self.pending = self.pending, []
        updated: dict = {}  # weight -> its layer and the layer's next standardized weight
        for group, updates in pending:
            scale, found_inf = _scaler(optimizer, group)
            if found_inf is None or not found_inf.item():
                updated.update(self._update(group, updates, scale))
        count_step(optimizer, updated)
        for layer, dtype, out in updated.values():
            layer.__dict__["_cached"] = Stored.renewed(layer, layer._tensors(), dtype, out)

    def _update(self, group, updates, scale):
        """One call for the weights of a group."""
        adam = type(self.optimizer) is not torch.optim.SGD
        outs, states, grads, flags, after = [], [], [], [], []
        for update in updates:
            layer, weight = update.fused.layer, update.weight
            entry = layer._cached
            dtype = None if entry is None else entry.dtype
            out = None if entry is None else entry.result
            if out is None or storage_users(out) > 1 or out.stride() != weight.stride():
                out = torch.empty_like(weight, dtype=dtype)
            grad = update.grad
            if grad.dtype not in (weight.dtype, out.dtype):
                grad = grad.to(weight.dtype)
            is_first = any(state is None for state in update.states)
            update.states = [_fitting(state, weight) for state in update.states]
            after.append((layer, dtype, out, layer._tensors()))
            outs.append(out)
            states += update.states
            grads.append(grad)
            flags.append(is_first + 2 * update.of_weight)
        arguments = [update.fused.arguments(update.weight) for update in updates]
        raw_update_many(
            outs,
            [update.weight for update in updates],
            states,
            grads,
            [update.gain for update in updates],
            [tensors[1] for *_, tensors in after],
            [tensors[2] for *_, tensors in after],
            [update.factor for update in updates],
            [channel_dim for channel_dim, *_ in arguments],
            [float(number) for _, *numbers in arguments for number in numbers],
            [*_rule(self.optimizer, group), self.clip_eps],
            flags,
            [float(self.clip_of(update.weight) or 0) for update in updates],
            [update.step.float() + 1 for update in updates] if adam else [],
            None,
            scale,
            None,
        )
        for update in updates:
            state = self.optimizer.state[update.weight] if update.states else {}
            state.update(zip(_STATES[adam], update.states, strict=False))
            if adam:
                update.step.add_(1)
            deferred = deferred_of(update.weight.grad)
            if deferred is not None:
                deferred.used = True
        return {
            update.weight: (layer, dtype, out)
            for update, (layer, dtype, out, _) in zip(updates, after, strict=True)
        }


# The names of the states of a weight's size in torch's state dicts, of SGD and of Adam.
_STATES = (("momentum_buffer",), ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"))


def _fitting(state, weight):
    """A state in the weight's layout: a loaded one has the checkpoint's."""
    if state is None:
        return torch.zeros_like(weight)
    if state.stride() == weight.stride() and state.dtype == weight.dtype:
        return state
    return torch.empty_like(weight).copy_(state)


def _rule(optimizer, group) -> list[float]:
    """The options of a group as ws::update_many takes them."""
    lr, decay, maximize = float(group["lr"]), group["weight_decay"], group["maximize"]
    if type(optimizer) is torch.optim.SGD:
        numbers = 0, lr, decay, group["momentum"], group["dampening"], 0, group["nesterov"], 0
    else:
        decoupled = group["decoupled_weight_decay"]
        numbers = 1, lr, decay, *group["betas"], group["eps"], 0, decoupled
    return [float(number) for number in (*numbers, maximize)]


def _scaler(optimizer, group):
    """(grad_scale, found_inf) that GradScaler has left to a step with ``fused=True``."""
    if not group["fused"]:
        return None, None
    return getattr(optimizer, "grad_scale", None), getattr(optimizer, "found_inf", None)


def reason_of(optimizer, group: dict, weight: torch.Tensor) -> str | None:
    """Why a step has no kernel for the weight; None: it has one."""
    if type(optimizer) not in KINDS:
        return f"no kernel for {type(optimizer).__name__}: SGD, Adam and AdamW have one"
    if group["differentiable"]:
        return "no kernel for differentiable=True"
    others = (group.get(name, 0) for name in ("weight_decay", "momentum", "dampening", "eps"))
    if any(isinstance(number, torch.Tensor) for number in (*group.get("betas", ()), *others)):
        return "no kernel for options as tensors, but for lr"
    if weight.device.type not in DEVICES:
        return f"no kernel for device {weight.device.type}"
    if weight.dtype not in DTYPES:
        return f"no kernel for dtype {str(weight.dtype).removeprefix('torch.')}"
    if (
        type(weight.grad) is not torch.Tensor
        and deferred_of(weight.grad) is None
        and weight.grad is not None
    ):
        return f"its gradient is a {type(weight.grad).__name__}"
    if not counts_versions(weight):
        return "its memory is shared with other tensors or processes"
    return None
