"""The layers of other libraries that adopt() knows, and how each is read.

By qualified names, so nothing is imported. A class that merely derives from one of these may
compute anything and is not known.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import nn
from torch.nn.utils import parametrize

from ..core.private import WEIGHT_NORM, forward_pre_hooks
from ..formulas import Formula, formulas
from ..layers.modules import WSConv2d
from ..layers.standardized import TRANSPOSED
from .convert import CONVOLUTIONS, LINEAR


def _timm(layer):
    # Until 0.4.9 a method made the weight, with eps added to std unless use_layernorm was set.
    std = hasattr(layer, "get_weight") and not getattr(layer, "use_layernorm", False)
    options = {"eps": layer.eps, "eps_mode": "std" if std else "var"}
    gain = getattr(layer, "gain", None)
    if gain is not None:
        options |= {"scale": "fan_in", "gamma": _timm_gamma(layer)}
    return Formula(**options), gain, None, getattr(layer, "same_pad", False)


def _timm_gamma(layer):
    """The factor that the layer was made with: it keeps scale = gamma * fan_in**-0.5."""
    fan_in = layer.weight[0].numel()
    exact = layer.scale * math.sqrt(fan_in)
    short = float(f"{exact:.15g}")  # 1.0, where the roots' roundings make it 0.9999999999999999
    return short if short * fan_in**-0.5 == layer.scale else exact


TIMM = ("StdConv2d", "StdConv2dSame", "ScaledStdConv2d", "ScaledStdConv2dSame")
# A subclass of nn.Conv2d -> what reads its formula, gain, shift, and if it pads as TensorFlow
LAYERS = {
    **{f"timm.layers.std_conv.{name}": _timm for name in TIMM},
    **{f"timm.models.layers.std_conv.{name}": _timm for name in TIMM},  # before timm 0.9
    "transformers.models.bit.modeling_bit.WeightStandardizedConv2d": (
        lambda layer: (Formula(eps=layer.eps, eps_mode="var"), None, None, layer.pad is not None)
    ),
    "mmcv.cnn.bricks.conv_ws.ConvWS2d": (
        lambda layer: (Formula(eps=layer.eps, correction=1), None, None, False)
    ),
    "mmcv.cnn.bricks.conv_ws.ConvAWS2d": (
        lambda layer: (formulas["mmcv_aws"], layer.weight_gamma, layer.weight_beta, False)
    ),
    "bit_pytorch.models.StdConv2d": lambda layer: (formulas["bit"], None, None, False),
}
# What such a layer has beside torch.nn's attributes
ATTRIBUTES = ("eps", "scale", "gain_init", "use_layernorm", "same_pad", "pad")
TENSORS = ("gain", "weight_gamma", "weight_beta")

# On layers of torch.nn: parametrizations, and weight_norm's forward pre-hook
COMPOSER = "composer.algorithms.weight_standardization.weight_standardization.WeightStandardizer"
WEIGHT_NORM_HOOK = "torch.nn.utils.weight_norm.WeightNorm"


class Step(NamedTuple):
    """What a layer becomes."""

    name: str
    layer: nn.Module
    cls: type
    formula: Formula
    weight: nn.Parameter
    gain: nn.Parameter | None = None
    shift: nn.Parameter | None = None
    same: bool = False  # padding


def resembles(layer) -> bool:
    """True if the layer has anything of what is known here."""
    if any(_name(cls) in LAYERS for cls in type(layer).__mro__) or hooks(layer):
        return True
    lists = layer.parametrizations.values() if parametrize.is_parametrized(layer) else ()
    return any(_name(type(one)) in (COMPOSER, WEIGHT_NORM) for many in lists for one in many)


def recognized(name: str, layer: nn.Module) -> Step | None:
    """What a layer that resembles a known one becomes; None if it may compute something else."""
    if "bias" not in layer._parameters:  # itself made anew for each call
        return None
    subclass = any(_name(cls) in LAYERS for cls in type(layer).__mro__)
    return (_subclass if subclass else _of_torch_nn)(name, layer)


def hooks(layer: nn.Module) -> dict:
    """weight_norm's hooks on the layer by their keys."""
    every = forward_pre_hooks(layer).items()
    return {key: hook for key, hook in every if _name(type(hook)) == WEIGHT_NORM_HOOK}


def _name(cls):
    return f"{cls.__module__}.{cls.__qualname__}"


def _vector(tensor):
    """A gain or shift of any shape as a Parameter (C,); without a gradient if it was a buffer."""
    if tensor is None:
        return None
    return nn.Parameter(tensor.detach().flatten().clone(), requires_grad=tensor.requires_grad)


def _subclass(name, layer):
    read, weight = LAYERS.get(_name(type(layer))), layer._parameters.get("weight")
    if read is None or weight is None:
        return None
    formula, gain, shift, same = read(layer)
    if layer.padding_mode != "zeros" or (same and any(layer.padding)):
        return None
    return Step(name, layer, WSConv2d, formula, weight, _vector(gain), _vector(shift), same)


def _of_torch_nn(name, layer):
    cls = {**CONVOLUTIONS, **LINEAR}.get(parametrize.type_before_parametrizations(layer))
    lists = layer.parametrizations if parametrize.is_parametrized(layer) else {}
    made_by = [*hooks(layer).values(), *(one for many in lists.values() for one in many)]
    if cls is None or len(made_by) != 1:
        return None
    [one] = made_by
    if "weight" not in (lists or [one.name]):
        return None
    transposed = isinstance(layer, TRANSPOSED)
    if _name(type(one)) == COMPOSER:
        step = Step(name, layer, cls, formulas["bit"], lists["weight"].original)
        return None if transposed else step
    if one.dim != (1 if transposed else 0) or (transposed and layer.groups > 1):
        return None  # the norms are not those of the output channels
    held = lists["weight"] if lists else layer
    names = ("original0", "original1") if lists else ("weight_g", "weight_v")
    gain, weight = (getattr(held, name) for name in names)
    return Step(name, layer, cls, formulas["weight_norm"], weight, _vector(gain))
