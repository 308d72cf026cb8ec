"""Turns a model's convolutions and linear layers into weight-standardized ones, in place.

A layer is converted by changing its class: its Parameter objects, hooks and attributes are not
touched, so optimizers, checkpoints and whatever else refers to them go on working. Everything is
planned and checked before anything is changed: a conversion that fails leaves the model as it was.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import nn

from .._check import Module, called, check, check_flags, check_module, check_weight, few, naming
from ..formulas import Formula, FormulaName, resolve
from ..layers import modules
from ..layers.standardized import TRANSPOSED, Standardized, regrouped
from ..reference import denominator
from .convertible import (
    check_layer,
    inside_attention,
    own_class,
    refuse_other,
    refuse_wrapped,
    skipped,
    standardization,
)

CONVOLUTIONS: dict[type[nn.Module], type[Standardized]] = {
    nn.Conv1d: modules.WSConv1d,
    nn.Conv2d: modules.WSConv2d,
    nn.Conv3d: modules.WSConv3d,
    nn.ConvTranspose1d: modules.WSConvTranspose1d,
    nn.ConvTranspose2d: modules.WSConvTranspose2d,
    nn.ConvTranspose3d: modules.WSConvTranspose3d,
}
LINEAR: dict[type[nn.Module], type[Standardized]] = {nn.Linear: modules.WSLinear}

# In inference torch.nn computes these from their layers' weights, past the layers' forwards, where
# the attribute allows it. It is off while standardized layers are inside; fold() puts it back.
FUSED: dict[type[nn.Module], str] = {
    nn.TransformerEncoderLayer: "activation_relu_or_gelu",
    nn.TransformerEncoder: "use_nested_tensor",
}
FUSED_BEFORE = "_fused_before_conversion"

NORMALIZATIONS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    *(nn.GroupNorm, nn.LayerNorm, nn.RMSNorm),
)

logger = logging.getLogger(__name__)


def convert(
    model: Module,
    formula: FormulaName | Formula = "paper",
    *,
    linear: bool = False,
    skip: Iterable[str | type] | Callable[[str, nn.Module], bool] = (),
    gain: bool = False,
    shift: bool = False,
    preserve: bool = False,
) -> Module:
    """Makes a model's convolutions weight-standardized ones, in place.

    Equivalent to replacing every ``nn.Conv2d`` by a [`torch_ws.WSConv2d`][] that has the same
    Parameter objects, and so on for 1-d, 3-d and transposed convolutions, the root included. Names,
    state_dict keys, hooks, dtypes, devices, memory formats, ``training`` and ``requires_grad``
    stay, and an optimizer made before keeps its state.

    Args:
        model: any module, also a single layer.
        formula: a name from [`torch_ws.formulas`][] or a [`torch_ws.Formula`][].
        linear: convert ``nn.Linear`` too.
        skip: what to leave alone: names as in ``model.named_modules()`` and types, each with all
            that is below it; or a function of a layer's name and the layer.
        gain: give each layer a learnable factor a channel, a new parameter `gain` of shape (C,),
            initially 1. It requires a gradient if the weight does.
        shift: likewise a learnable offset a channel, initially 0.
        preserve: the model computes what it did before, up to rounding: for each channel gain
            is set to d / scale and shift to the mean (see [`torch_ws.formulas`][]), computed in
            float64. Both become parameters; shift only if asked for where the formula does not
            center.

    Returns:
        The model itself. What became of each layer is logged at level INFO.

    Warns:
        UserWarning: of layers left alone, which are subclasses of torch.nn's classes and the
            projections inside ``nn.MultiheadAttention``; if there is nothing to convert; of layers
            without a gain after the model's last normalization; of layers with one element a
            channel, whose standardized weight is 0.

    Raises:
        TypeError, ValueError: for a wrong argument, or, by name, a layer that cannot be converted:
            lazy and not initialized; parametrized, pruned, or under ``weight_norm``; with a weight
            that [`torch_ws.standardize`][] refuses; already in DistributedDataParallel or sharded
            if it would get new parameters; weight-standardized already in another way than is asked
            for. The model is unchanged.
    """
    check_module(model)
    formula = resolve(formula)
    check_flags(linear=linear, gain=gain, shift=shift, preserve=preserve)
    classes = {**CONVOLUTIONS, **LINEAR} if linear else CONVOLUTIONS
    to_skip = skipped(model, skip, tuple(classes))
    attention = inside_attention(model)
    plan, left_alone, standardizing = [], [], {}
    for name, layer in model.named_modules():
        if not isinstance(layer, tuple(classes)):
            continue
        if layer in to_skip:
            logger.info("%s: skipped", called(name, layer))
        elif standardization(layer) is not None:
            standardizing[name] = layer
        elif own_class(layer) not in classes or layer in attention:
            logger.info("%s: left alone", called(name, layer))
            left_alone.append(called(name, layer))
        else:
            plan.append(_plan(name, layer, classes, formula, gain, shift, preserve))
    refuse_other(standardizing, formula, gain, shift, preserve)
    if gain or shift or preserve:
        refuse_wrapped(model, plan)
    _warn(model, plan, left_alone, formula, linear)

    for step in plan:
        logger.info("%s: converted", called(step.name, step.layer))
        step.layer.__class__ = step.cls
        step.layer.formula = formula
        step.layer.register_parameter("gain", step.gain)
        step.layer.register_parameter("shift", step.shift)
    disable_fused(model)
    return model


class _Step(NamedTuple):
    name: str
    layer: nn.Module
    cls: type
    gain: nn.Parameter | None
    shift: nn.Parameter | None


def _plan(name, layer, classes, formula, gain, shift, preserve):
    with naming(called(name, layer)):
        check_layer(layer)
        vectors = _new_parameters(layer, formula, gain, shift, preserve)
    return _Step(name, layer, classes[type(layer)], *vectors)


def channel_rows(layer, weight):
    """The weight as one row an output channel."""
    if isinstance(layer, TRANSPOSED):
        weight = regrouped(weight, layer.groups)
    return weight.flatten(1)


def _warn(model, plan, left_alone, formula, linear):
    """Before anything is changed: a warning may be an error."""

    def say(text):
        warnings.warn(text, UserWarning, stacklevel=4)

    if left_alone:
        say(
            f"convert left alone {few(left_alone)}: only torch.nn's own classes are converted, "
            "and not inside nn.MultiheadAttention. Put them in skip if that is meant. "
            "torch_ws.adopt knows layers of timm, mmcv and others; torch_ws.parametrize takes any "
            "tensor."
        )
    if not plan and all(standardization(module) is None for module in model.modules()):
        layers = "convolutions or linear layers" if linear else "convolutions (see linear=True)"
        say(f"convert did nothing: the model has no {layers} to convert")
    single = [
        step.name
        for step in plan
        if step.shift is None
        and formula.center
        and step.layer.weight.numel() == getattr(step.layer, step.cls.channels)
    ]
    if single:
        say(
            f"the standardized weight of {few(single)} is 0: its channels have one element each. "
            "Put them in skip."
        )
    last = [name for name in _after_normalizations(model, plan) if name not in single]
    if last:
        say(
            f"no normalization follows {few(last)}: standardization takes the scale off the "
            "output, and nothing later would have. Put them in skip, or give them a gain "
            "(gain=True)."
        )


def _after_normalizations(model, plan):
    """The converted layers without a gain registered after the model's last normalization."""
    names: list[str] = []
    steps = {step.layer: step for step in plan}
    for module in model.modules():
        named_so = "norm" in type(module).__name__.lower() and not any(module.children())
        if isinstance(module, NORMALIZATIONS) or named_so:
            names = []
        elif module in steps and steps[module].gain is None:
            names.append(steps[module].name)
    return names


def _new_parameters(layer, formula, gain, shift, preserve):
    """The gain and the shift that the layer gets, each None where it gets none."""
    weight = layer.weight.detach()
    check_weight(weight)
    rows = channel_rows(layer, weight.to("meta"))
    arguments = formula.arguments(rows.shape[1] or 1)
    check(rows, None, None, 0, *arguments)
    gains = torch.ones(len(rows)) if gain or preserve else None
    shifts = torch.zeros(len(rows)) if shift or (preserve and formula.center) else None
    if preserve and weight.numel() > 0:
        gains, means = _preserving(channel_rows(layer, weight), *arguments)
        shifts = means if formula.center else shifts

    def parameter(vector):
        if vector is None:
            return None
        vector = vector.to(dtype=weight.dtype, device=weight.device)
        return nn.Parameter(vector, requires_grad=layer.weight.requires_grad)

    return parameter(gains), parameter(shifts)


def _preserving(rows, eps, eps_mode, correction, center, scale):
    """gain and shift with ``gain * w_hat + shift == w``: d / scale and the mean, in float64."""
    if rows.is_meta:
        raise ValueError("preserve needs the weight's values, and it is on the meta device")
    if scale == 0:
        raise ValueError("preserve needs a formula with another scale than 0")
    rows = rows.double()
    mean = rows[:, 0] + (rows - rows[:, :1]).mean(1)  # exact for a constant channel
    centered = rows - mean[:, None] if center else rows
    var = centered.square().sum(1) / (rows.shape[1] - correction)
    return denominator(var, eps, eps_mode) / scale, mean


def disable_fused(model):
    for module in model.modules():
        for cls, attribute in FUSED.items():
            if (
                isinstance(module, cls)
                and not hasattr(module, FUSED_BEFORE)
                and any(isinstance(below, Standardized) for below in module.modules())
            ):
                setattr(module, FUSED_BEFORE, getattr(module, attribute))
                setattr(module, attribute, False)
