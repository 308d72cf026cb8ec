"""Turns weight-standardized layers into plain torch.nn ones that hold the standardized weight."""

from __future__ import annotations

import warnings
from typing import overload

import torch
from torch import nn

from .._check import Module, called, check_module, few, naming
from ..core.private import set_padding
from ..layers.standardized import Standardized
from .convert import CONVOLUTIONS, FUSED, FUSED_BEFORE, LINEAR

PLAIN = {ours: plain for plain, ours in {**CONVOLUTIONS, **LINEAR}.items()}


@overload
def fold(model: Standardized) -> nn.Module: ...
@overload
def fold(model: Module) -> Module: ...
def fold(model: nn.Module) -> nn.Module:
    """Makes weight-standardized layers plain torch.nn ones that hold the standardized weight.

    In place, the root included: [`torch_ws.convert`][] undone, but for the weights. The model
    computes the same, to the last bit, without the work of standardization. Names, hooks, dtypes,
    devices, ``training`` and the biases' Parameter objects stay. A weight becomes a new Parameter
    of the same ``requires_grad``, without a gradient; gain and shift are contained in it and gone.
    ``fold(copy.deepcopy(model))`` keeps the original.

    Args:
        model: any module, also a single layer.

    Returns:
        The model itself.

    Warns:
        UserWarning: if other modules of torch_ws remain, which torch.nn has no counterpart of.

    Raises:
        TypeError, ValueError: for a wrong argument, or, by name, a layer without a counterpart in
            torch.nn: of a subclass (also a parametrized layer); sharded; of ``padding="same"`` with
            a stride where the padding depends on the input's size. The model is unchanged.
        RuntimeError: the model is grouped, or inside ``hold``.
    """
    check_module(model)
    for name, module in model.named_modules():
        if "_ws_group" in vars(module):
            raise RuntimeError(f"{called(name, module)}: is grouped: remove() group's handle first")
    layers = {name: m for name, m in model.named_modules() if isinstance(m, Standardized)}
    for name, layer in layers.items():
        with naming(called(name, layer)):
            _check_layer(layer)
    _warn_of_rest(model)

    # a weight -> the new ones, which are several if formulas or gains differ
    made_of: dict[torch.Tensor, list[nn.Parameter]] = {}
    for layer in layers.values():
        _fold(layer, made_of)
    for module in model.modules():
        for cls, attribute in FUSED.items():
            if isinstance(module, cls) and hasattr(module, FUSED_BEFORE):
                setattr(module, attribute, getattr(module, FUSED_BEFORE))
                delattr(module, FUSED_BEFORE)
    return model


def _fold(layer, made_of):
    weight, device_type = layer.weight, layer.weight.device.type
    layer.__dict__.pop("_cached", None)  # a tensor of its own, not the one that eval mode hands out
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast(device_type, enabled=False),
    ):
        result = layer.standardized_weight()
        known = made_of.setdefault(weight, [])
        new = next((other for other in known if torch.equal(other, result)), None)
        if new is None:
            new = nn.Parameter(result, requires_grad=weight.requires_grad)
            known.append(new)
    layer.weight = new
    if _strided_same(layer):
        set_padding(layer, _fixed_padding(layer))
    layer.__class__ = PLAIN[type(layer)]
    del layer.gain, layer.shift
    for name in ("formula", "eval_cache", "_cached", "_provider"):
        layer.__dict__.pop(name, None)


def _check_layer(layer):
    if type(layer) not in PLAIN:
        raise TypeError(
            f"of a subclass, {type(layer).__qualname__}; only torch_ws's own layers can be folded"
        )
    if layer._parameters.get("weight") is None:
        raise ValueError(
            "its weight is not a parameter but made anew for each call, as by weight_norm, "
            "spectral_norm or pruning: remove that first"
        )
    if hasattr(layer.weight, "device_mesh"):
        raise ValueError("its weight is sharded: fold before, or a model loaded from a checkpoint")
    if _strided_same(layer):
        _fixed_padding(layer)
    if layer._is_provided_for():
        raise RuntimeError("is inside hold() or a pass of group(): fold after that")


def _strided_same(layer):
    return getattr(layer, "padding", None) == "same" and any(s != 1 for s in layer.stride)


def _fixed_padding(layer):
    """padding="same" as numbers, where these do not depend on the input's size and are even."""
    sizes = zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)
    totals = []
    for kernel, stride, dilation in sizes:
        total = (kernel - 1) * dilation
        if total > 0 and (stride > 1 or total % 2 == 1):
            raise ValueError(
                'padding="same" with a stride above 1 has no counterpart in torch.nn, where the '
                f"padding cannot depend on the input's size: kernel_size {layer.kernel_size}, "
                f"stride {layer.stride}. Pad outside of the layer, then fold"
            )
        totals.append(total)
    return tuple(total // 2 for total in totals)


def _warn_of_rest(model):
    remaining = [
        called(name, module)
        for name, module in model.named_modules()
        if type(module).__module__.split(".")[0] == __package__.split(".")[0]
        and not isinstance(module, Standardized)
    ]
    if remaining:
        warnings.warn(
            f"fold leaves {few(remaining)}: the model still needs torch_ws. "
            "(torch.nn.utils.parametrize.remove_parametrizations undoes torch_ws.parametrize.)",
            UserWarning,
            stacklevel=3,
        )
