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
from ..layers.cache import count_step, counts_itself, store
from .clipping import clip_by_unit
from .deferred import Deferred
from .fused_layer import FusedLayer
from .standardized_grad import deferred_of, value_of

DEVICES = ("cpu",)
DTYPES = (torch.float32, torch.float64)
KINDS = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)  # and no subclass, which may differ
COMPILED = "optimizer.step must not be compiled: torch_ws.fuse is to replace a part of it"


@dataclasses.dataclass
class _Update:
    """A weight's part in a step."""

    fused: FusedLayer
    states: list  # torch's, of the weight's size; None: SGD's momentum before its first step
    step: torch.Tensor | None  # Adam's
    grad: torch.Tensor  # of the standardized weight if it is deferred, else of the weight itself
    deferred: Deferred | None = None


class FusedStep:
    """The step of one optimizer.

    layers: by id() of their weights, whose own hash takes a microsecond; clips: AGC's numbers by
    id() of the parameters that have one.
    """

    def __init__(self, optimizer, layers: dict[int, FusedLayer], clips: dict, clip_eps: float):
        self.optimizer = optimizer
        self.layers = layers
        self.clips = clips
        self.clip_eps = clip_eps
        self.pending: list[tuple[dict, list[_Update]]] = []
        self.own_gather: Callable = lambda *_: None
        eager = torch.compiler.disable  # here, since its first use takes seconds to import
        self.hooks = [optimizer.register_step_pre_hook(eager(self.begin))]
        if type(optimizer) in KINDS:
            self.own_gather = gather_with(optimizer, eager(self.gather))
            self.hooks.append(hook_first(optimizer, eager(self.finish)))
            counts_itself.add(optimizer)

    def remove(self):
        for hook in self.hooks:
            hook.remove()
        if type(self.optimizer) in KINDS:
            gather_with(self.optimizer, None)
            counts_itself.discard(self.optimizer)

    def begin(self, optimizer, args, kwargs):
        """Before the step, and before a closure."""
        if called_by_compiled():  # which reads the memory that deferred gradients do not have
            raise RuntimeError(COMPILED)
        self.pending = []

    def gather(self, group: dict, *lists):
        """torch's gathering of a group, without the weights that have a kernel, which wait."""
        waiting, others = [], []
        why = reason_of_group(self.optimizer, group)
        for parameter in group["params"]:
            fused = self.layers.get(id(parameter))
            if fused is not None:
                fused.reason = why or reason_of_weight(parameter)
                grad = parameter.grad
                if grad is not None and fused.reason is None:
                    waiting.append((fused, grad))
                    continue
                if deferred_of(grad) is not None:
                    value_of(grad)  # which takes its own place
            others.append(parameter)
        result = self.own_gather({**group, "params": others}, *lists)
        self._clip(group, others)
        if waiting:
            gathered: tuple = tuple([] for _ in lists)
            weights = [fused.weight for fused, _ in waiting]
            self.own_gather({**group, "params": weights}, *gathered)
            self.pending.append((group, self._updates(waiting, gathered)))
        return result

    def _clip(self, group, parameters):
        if self.clips:
            scale, _ = _scaler(self.optimizer, group)
            for parameter in parameters:
                clip = self.clips.get(id(parameter))
                if clip is not None and parameter.grad is not None:
                    clip_by_unit(parameter, clip, self.clip_eps, scale)

    def _updates(self, waiting, gathered):
        """gathered: torch's lists of the weights' gradients and states."""
        sgd = type(self.optimizer) is torch.optim.SGD
        steps = [None] * len(waiting) if sgd else gathered[-1]
        columns = [column for column in (gathered[2:] if sgd else gathered[2:-1]) if column]
        updates = []
        for i, (fused, grad) in enumerate(waiting):
            states = [column[i] for column in columns]
            deferred = deferred_of(grad)
            if deferred is not None and deferred.arguments != fused.arguments(fused.weight):
                deferred.compute()  # by the formula that the layer had then
                deferred = None
            if deferred is None:
                update = _Update(fused, states, steps[i], value_of(grad))
            else:
                deferred.weight()  # raises if it was written to
                update = _Update(fused, states, steps[i], deferred.grad, deferred)
            updates.append(update)
        return updates

    @torch.no_grad()
    def finish(self, optimizer, args, kwargs):
        """After torch's step: the weights that waited, and what is stored of their layers."""
        pending, self.pending = self.pending, []
        made = []
        for group, updates in pending:
            scale, found_inf = _scaler(optimizer, group)
            if found_inf is None or not found_inf.item():
                made += self._update(group, updates, scale)
        count_step(optimizer, {id(fused.weight) for fused, *_ in made})
        for fused, tensors, dtype, out in made:
            if tensors[0] is fused.weight:  # else the layer has been given another one
                store(fused.layer, tensors, dtype, out)

    def _update(self, group, updates, scale):
        """One call for the weights of a group: layer, its tensors, and what it has made of them."""
        adam = type(self.optimizer) is not torch.optim.SGD
        made, outs, states, grads, channel_dims, numbers, flags = [], [], [], [], [], [], []
        for update in updates:
            layer, weight = update.fused.layer, update.fused.weight
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
            channel_dim, *formula = update.fused.arguments(weight)
            made.append((update.fused, layer._tensors(), dtype, out))
            outs.append(out)
            states += update.states
            grads.append(grad)
            channel_dims.append(channel_dim)
            numbers += formula
            flags.append(is_first + 2 * (update.deferred is None))
        raw_update_many(
            outs,
            [update.fused.weight for update in updates],
            states,
            grads,
            [update.deferred and update.deferred.gain for update in updates],
            [tensors[1] for _, tensors, *_ in made],
            [tensors[2] for _, tensors, *_ in made],
            [update.deferred and update.deferred.factor for update in updates],
            channel_dims,
            list(map(float, numbers)),
            [*_rule(self.optimizer, group), self.clip_eps],
            flags,
            [float(self.clips.get(id(update.fused.weight), 0)) for update in updates],
            [update.step.float() + 1 for update in updates] if adam else [],
            None,
            scale,
            None,
        )
        for update in updates:
            for name, state in zip(_STATES[adam], update.states, strict=False):
                self.optimizer.state[update.fused.weight][name] = state
            if adam:
                update.step.add_(1)
            if update.deferred is not None:
                update.deferred.used = True
        return made


# The names of the states of a weight's size in torch's state dicts, of SGD and of Adam.
_STATES = (("momentum_buffer",), ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"))


def _fitting(state, weight):
    """A state in the weight's layout: a loaded one has the checkpoint's."""
    if state is None:
        return torch.empty_like(weight)
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


def reason_of_group(optimizer, group: dict) -> str | None:
    """Why a step has no kernel for any weight of a group; None: it has one."""
    if type(optimizer) not in KINDS:
        return f"no kernel for {type(optimizer).__name__}: SGD, Adam and AdamW have one"
    if group["differentiable"]:
        return "no kernel for differentiable=True"
    others = (group.get(name, 0) for name in ("weight_decay", "momentum", "dampening", "eps"))
    if any(isinstance(number, torch.Tensor) for number in (*group.get("betas", ()), *others)):
        return "no kernel for options as tensors, but for lr"
    return None


def reason_of_weight(weight: torch.Tensor) -> str | None:
    """Why a step has no kernel for the weight; None: it has one."""
    if weight.device.type not in DEVICES:
        return f"no kernel for device {weight.device.type}"
    if weight.dtype not in DTYPES:
        return f"no kernel for dtype {str(weight.dtype).removeprefix('torch.')}"
    return None
