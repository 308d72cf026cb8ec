"""The optimizer's step in a fused model: torch's own, but for the weights that have a kernel.

torch.optim's step gathers a group's parameters, gradients and states before it computes. There the
weights with a kernel are taken out, with the states that torch itself has made for them. After the
step, when gains and shifts are what it has made of them, one call a group updates those weights and
writes their next standardized weights (fused_update.py).
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..core.load import CUDA_REASON
from ..core.private import called_by_compiled, gather_with, hook_first
from ..layers.cache import count_step, counts_itself, store
from .clipping import clip_by_unit
from .fused_layer import FusedLayer
from .fused_update import Update, are_placed_alike, by_device, scaler_of, update
from .standardized_grad import deferred_of, value_of

# The weights' dtypes that have a kernel, by device.
DTYPES: dict[str, tuple[torch.dtype, ...]] = {"cpu": (torch.float32, torch.float64)}
if CUDA_REASON is None:
    DTYPES["cuda"] = (torch.float32,)  # docs/design.md: float64 spills registers
KINDS = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)  # and no subclass, which may differ
COMPILED = "optimizer.step must not be compiled: torch_ws.fuse is to replace a part of it"


class FusedStep:
    """The step of one optimizer.

    layers: by id() of their weights, whose own hash takes a microsecond; clips: AGC's numbers by
    id() of the parameters that have one.
    """

    def __init__(self, optimizer, layers: dict[int, FusedLayer], clips: dict, clip_eps, serving):
        self.optimizer = optimizer
        self.layers = layers
        self.clips = clips
        self.clip_eps = clip_eps
        self.serving = serving
        self.pending: list[tuple[dict, list[Update]]] = []
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
                fits = grad is not None and are_placed_alike(grad, parameter)
                if fits and fused.reason is None:
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
        for parameter in parameters if self.clips else ():
            clip = self.clips.get(id(parameter))
            if clip is not None and parameter.grad is not None:
                scale, _ = scaler_of(self.optimizer, group, parameter.device)
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
                update = Update(fused, states, steps[i], value_of(grad))
            else:
                deferred.weight()  # raises if it was written to
                update = Update(fused, states, steps[i], deferred.grad, deferred)
            updates.append(update)
        return updates

    @torch.no_grad()
    def finish(self, optimizer, args, kwargs):
        """After torch's step: the weights that waited, and what is stored of their layers."""
        pending, self.pending = self.pending, []
        self.serving.clear()
        made = [
            result
            for group, updates in pending
            for some in by_device(updates)
            for result in update(optimizer, group, some, self.clips, self.clip_eps)
        ]
        count_step(optimizer, {id(fused.weight) for fused, *_ in made})
        for fused, tensors, dtype, out in made:
            if tensors[0] is fused.weight:  # else the layer has been given another one
                store(fused.layer, tensors, dtype, out)


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
    device = weight.device.type
    if device not in DTYPES:
        return f"no kernel for device {device}"
    if weight.dtype not in DTYPES[device]:
        return f"no kernel for dtype {str(weight.dtype).removeprefix('torch.')} on {device}"
    return None
