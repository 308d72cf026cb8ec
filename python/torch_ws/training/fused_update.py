"""One call for the weights that a step of the optimizer updates: those of a group on one device.

The rule is the optimizer's, the states are torch's own (csrc/update.h has the arithmetic). What a
GPU holds stays there: learning rate, grad_scale, found_inf and step go to the kernel by pointer, so
that nothing waits for the GPU and a CUDA graph can have the step in it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import torch

from ..core.private import foreach_add, foreach_add_, local_tensor, storage_users
from ..core.update import raw_update_many
from .deferred import Deferred
from .fused_layer import FusedLayer

# The names of the states of a weight's size in torch's state dicts, of SGD and of Adam.
_STATES = (("momentum_buffer",), ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"))


@dataclasses.dataclass
class Update:
    """A weight's part in a step."""

    fused: FusedLayer
    states: list  # torch's, of the weight's size; None: SGD's momentum before its first step
    step: torch.Tensor | None  # Adam's
    grad: torch.Tensor  # of the standardized weight if it is deferred, else of the weight itself
    deferred: Deferred | None = None


def by_device(updates: Iterable[Update]) -> list[list[Update]]:
    """The updates of the weights on each device."""
    found: dict = {}
    for one in updates:
        found.setdefault(one.fused.weight.device, []).append(one)
    return list(found.values())


def update(optimizer, group: dict, updates: list[Update], clips: dict, clip_eps: float) -> list:
    """Updates weights and states; returns (fused, the layer's tensors, dtype, out) of each.

    Nothing, where GradScaler's found_inf is known to say so: a GPU's is known to the GPU alone.
    """
    adam = type(optimizer) is not torch.optim.SGD
    device = updates[0].fused.weight.device
    is_first = [any(state is None for state in one.states) for one in updates]
    grad_scale, found_inf = scaler_of(optimizer, group, device)
    # The first momentum is the gradient itself, which later ones have to know of.
    if found_inf is not None and (found_inf.is_cpu or any(is_first)) and found_inf.item():
        return []
    states: list[torch.Tensor] = []
    made, outs, grads, channel_dims, numbers, flags = [], [], [], [], [], []
    for one, first in zip(updates, is_first, strict=True):
        layer, weight = one.fused.layer, local_tensor(one.fused.weight)
        entry = layer._cached
        dtype = None if entry is None else entry.dtype
        out = None if entry is None else entry.result
        if out is None or storage_users(out) > 1 or out.stride() != weight.stride():
            if found_inf is None or found_inf.is_cpu:
                out = torch.empty_like(weight, dtype=dtype)
            else:  # the kernel may write nothing
                out = layer._standardize(layer._tensors(), dtype)
        grad = one.grad
        if grad.dtype not in (weight.dtype, out.dtype):
            grad = grad.to(weight.dtype)
        one.states = [_fitting(state, one.fused.weight) for state in one.states]
        channel_dim, *formula = one.fused.arguments(weight)
        made.append((one.fused, layer._tensors(), dtype, out))
        outs.append(out)
        states += map(local_tensor, one.states)
        grads.append(grad)
        channel_dims.append(channel_dim)
        numbers += formula
        flags.append(first + 2 * (one.deferred is None))
    lr = group["lr"]
    lr = lr.detach() if isinstance(lr, torch.Tensor) and not lr.is_cpu else None
    raw_update_many(
        outs,
        [local_tensor(one.fused.weight) for one in updates],
        states,
        grads,
        [one.deferred and one.deferred.gain for one in updates],
        [tensors[1] for _, tensors, *_ in made],
        [tensors[2] for _, tensors, *_ in made],
        [one.deferred and one.deferred.factor for one in updates],
        channel_dims,
        list(map(float, numbers)),
        [*_rule(optimizer, group, lr is None), clip_eps],
        flags,
        [float(clips.get(id(one.fused.weight), 0)) for one in updates],
        _next_steps(updates) if adam else [],
        _number_on(device, lr),
        grad_scale,
        found_inf,
    )
    for one in updates:
        for name, state in zip(_STATES[adam], one.states, strict=False):
            optimizer.state[one.fused.weight][name] = state
        if one.deferred is not None:
            one.deferred.used = True
    if adam:
        steps: list = [one.step for one in updates]
        foreach_add_(steps, 1)
        if found_inf is not None and not found_inf.is_cpu:
            foreach_add_(steps, [-found_inf.reshape(())] * len(steps))
    return made


def are_placed_alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    """True if a rank has the same part of both, of DTensors; of others always."""
    return getattr(one, "placements", None) == getattr(other, "placements", None)


def _fitting(state, weight):
    """A state in the weight's layout: a loaded one has the checkpoint's."""
    if state is None:
        return torch.empty_like(weight)
    fits = state.dtype == weight.dtype and are_placed_alike(state, weight)
    if fits and local_tensor(state).stride() == local_tensor(weight).stride():
        return state
    return torch.empty_like(weight).copy_(state)


def _next_steps(updates):
    """The number of this step for each weight, on the device of torch's, which may be the CPU."""
    return [step.float() for step in foreach_add([one.step for one in updates], 1)]


def _number_on(device, number):
    return None if number is None else number.to(device, torch.float32)


def _rule(optimizer, group, with_lr) -> list[float]:
    """The options of a group as ws::update_many takes them; with_lr: else it gets a pointer."""
    lr = float(group["lr"]) if with_lr else 0.0
    decay, maximize = group["weight_decay"], group["maximize"]
    if type(optimizer) is torch.optim.SGD:
        numbers = 0, lr, decay, group["momentum"], group["dampening"], 0, group["nesterov"], 0
    else:
        decoupled = group["decoupled_weight_decay"]
        numbers = 1, lr, decay, *group["betas"], group["eps"], 0, decoupled
    return [float(number) for number in (*numbers, maximize)]


def scaler_of(optimizer, group: dict, device: torch.device):
    """(grad_scale, found_inf) that GradScaler has left to a step with ``fused=True``."""
    if not group["fused"]:
        return None, None
    numbers = (getattr(optimizer, name, None) for name in ("grad_scale", "found_inf"))
    return tuple(_number_on(device, number) for number in numbers)
