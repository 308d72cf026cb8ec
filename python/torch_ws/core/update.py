"""The update of many weights at once: a step of the optimizer between two standardizations.

`raw_update_many` takes the gradients of the standardized weights, does what torch.optim's SGD, Adam
or AdamW do with those of the weights, in place, and writes the next standardized weights, reading
each weight once. `raw_norms_many` gives the norms of the weights' gradients alone.
"""

from __future__ import annotations

import math

import torch
from torch.autograd.graph import increment_version

from .._check import (
    allocate_again,
    check,
    check_memory,
    explain_backward,
    naming,
)
from .autograd import library
from .check_many import check_all_backward, check_lists, check_one_device, options_of
from .private import direct

_norms_many = direct(torch.ops.ws.norms_many)
_update_many = direct(torch.ops.ws.update_many)


def raw_norms_many(grads, weights, gains, channel_dims, formulas, affine):
    """ws::norms_many, and in words what was wrong.

    The sum of the squares of each row of what ws::backward_many gives for the weights, (rows,)
    each, in the weights' dtypes; with `affine`, then the gradients of all gains and of all shifts.
    """
    try:
        return _norms_many(grads, weights, gains, channel_dims, formulas, affine)
    except RuntimeError:
        check_all_backward(grads, weights, gains, channel_dims, formulas, explain_backward)
        allocate_again(weights, grads=grads)
        raise


def raw_update_many(
    outs,
    weights,
    states,
    grads,
    gains,
    new_gains,
    new_shifts,
    factors,
    channel_dims,
    formulas,
    rule,
    flags,
    clips,
    steps,
    lr=None,
    grad_scale=None,
    found_inf=None,
):
    """ws::update_many, and in words what was wrong. Nothing is written then.

    Counts a version of what the op writes: outs, weights, states.

    Args:
        outs: written: the standardized weights after the step, with new_gains and new_shifts. In a
            dtype that `standardize` has for the weight's.
        weights: float32 or, on the CPU, float64; updated in place.
        states: each weight's in a row, updated in place: SGD's momentum_buffer, without momentum
            none; Adam's exp_avg and exp_avg_sq, with amsgrad also max_exp_avg_sq.
        grads: of the standardized weights, which were made with `gains`. In the out's dtype or the
            weight's.
        factors: None, or a float32 tensor of 1 number by which the gradient is multiplied.
        rule: (adam, lr, weight_decay, momentum or beta1, dampening or beta2, eps, nesterov,
            decoupled, maximize, clip_eps).
        flags: 1 where SGD has no momentum yet, 2 where grad is the gradient of the weight itself.
        clips: of adaptive gradient clipping by rows; 0: none.
        steps: for Adam a float32 tensor of 1 number each: the number of this step, from 1. On the
            weights' device, or on the CPU, where it is read at once.
        lr, grad_scale, found_inf: None, or a float32 tensor of 1 number: in place of the rule's lr;
            divides the gradients; if it is not 0, nothing is written.

    Tensors are on the weights' device, where numbers are read when the kernel runs: the host waits
    for none, and a CUDA graph has them as they are at each replay.
    """
    arguments = [outs, weights, states, grads, gains, new_gains, new_shifts, factors, channel_dims]
    arguments += [formulas, rule, flags, clips, steps, lr, grad_scale, found_inf]
    try:
        with torch.no_grad():
            _update_many(*arguments)
    except RuntimeError:
        _check_all_update(*arguments)
        for name, tensors in {
            "outs": outs,
            "weights": weights,
            "states": states,
            "grads": grads,
            "gains": gains,
            "new_gains": new_gains,
            "new_shifts": new_shifts,
            "numbers": [*factors, *steps, lr, grad_scale, found_inf],
        }.items():
            check_memory(**{f"{name}[{i}]": tensor for i, tensor in enumerate(tensors)})
        allocate_again(weights, grads=grads)
        raise
    increment_version([*outs, *weights, *states])


def _check_rule(rule):
    if len(rule) != 10:
        raise ValueError(f"rule must have 10 numbers, got {len(rule)}")
    for number in rule:
        if not math.isfinite(number):
            raise ValueError(f"rule must have finite numbers, got {rule}")
    names = {0: "adam", 6: "nesterov", 7: "decoupled", 8: "maximize"}
    for place, name in names.items():
        if rule[place] not in (0, 1):
            raise ValueError(f"rule's {name} must be 0 or 1, got {rule[place]}")


def _check_like(name, tensor, weight, dtypes):
    if tensor.shape != weight.shape or tensor.device != weight.device:
        raise ValueError(
            f"{name} must have the weight's shape {tuple(weight.shape)} and device "
            f"{weight.device}; got {tuple(tensor.shape)} on {tensor.device}"
        )
    if tensor.dtype not in dtypes:
        raise ValueError(
            f"{name} must have dtype {' or '.join(map(str, dtypes))}, got {tensor.dtype}"
        )


def _check_number(name, number, weight):
    if number is None:
        return
    if number.numel() != 1 or number.dtype != torch.float32 or number.device != weight.device:
        raise ValueError(
            f"{name} must be a float32 tensor of one number on {weight.device}, got "
            f"{number.dtype} of shape {tuple(number.shape)} on {number.device}"
        )


def _check_all_update(
    outs,
    weights,
    states,
    grads,
    gains,
    new_gains,
    new_shifts,
    factors,
    channel_dims,
    formulas,
    rule,
    flags,
    clips,
    steps,
    lr=None,
    grad_scale=None,
    found_inf=None,
):
    _check_rule(rule)
    lists = {"outs": outs, "grads": grads, "gains": gains, "new_gains": new_gains}
    lists |= {"new_shifts": new_shifts, "factors": factors, "channel_dims": channel_dims}
    lists |= {"flags": flags, "clips": clips}
    check_lists(weights, formulas, **lists, **({"steps": steps} if rule[0] else {}))
    each = {2, 3} if rule[0] else {int(rule[3] != 0)}
    if len(states) not in {count * len(weights) for count in each} or not (rule[0] or not steps):
        raise ValueError(
            f"the rule has {' or '.join(map(str, sorted(each)))} states a weight and "
            f"{'a' if rule[0] else 'no'} step; got {len(states)} states and {len(steps)} steps "
            f"for {len(weights)} weights"
        )
    per_weight = len(states) // (len(weights) or 1)
    for i, weight in enumerate(weights):
        with naming(f"weights[{i}]"):
            check(weight, gains[i], None, channel_dims[i], *options_of(formulas, i), outs[i].dtype)
            check(weight, new_gains[i], new_shifts[i], channel_dims[i], *options_of(formulas, i))
            check_one_device(weights, i)
            if weight.dtype not in (torch.float32, torch.float64):
                raise ValueError(f"weight must be float32 or float64, got {weight.dtype}")
            own = {f"states[{k}]": states[k] for k in range(i * per_weight, (i + 1) * per_weight)}
            for name, tensor in own.items():
                _check_like(name, tensor, weight, [weight.dtype])
            _check_like("out", outs[i], weight, [outs[i].dtype])
            allowed = dict.fromkeys([outs[i].dtype, weight.dtype])
            _check_like("grad", grads[i], weight, list(allowed))
            numbers = {"factor": factors[i], "lr": lr, "grad_scale": grad_scale}
            numbers |= {"found_inf": found_inf}
            for name, number in numbers.items():
                _check_number(name, number, weight)
            if rule[0]:
                _check_number("step", steps[i], steps[i] if steps[i].is_cpu else weight)
            if flags[i] not in range(4):
                raise ValueError(f"flags must be 0 to 3, got {flags[i]}")
            if not (math.isfinite(clips[i]) and clips[i] >= 0):
                raise ValueError(f"clips must be finite and not negative, got {clips[i]}")


def _fake_norms_many(grads, weights, gains, channel_dims, formulas, affine):
    check_all_backward(grads, weights, gains, channel_dims, formulas)
    return [
        weight.new_empty((weight.shape[dim],))
        for _ in range(3 if affine else 1)
        for weight, dim in zip(weights, channel_dims, strict=True)
    ]


torch.library.register_fake("ws::norms_many", _fake_norms_many, lib=library)
torch.library.register_fake("ws::update_many", _check_all_update, lib=library)
