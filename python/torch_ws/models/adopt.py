"""Makes another library's weight-standardizing layers torch_ws's, in a live model, in place.

convert() leaves these layers alone, because a subclass of nn.Conv2d may compute anything. What the
layers in _adoptable.py compute is known. Everything is planned and checked before anything is
changed: an adoption that fails leaves the model as it was.
"""

from __future__ import annotations

import logging
import warnings

from torch.nn.utils import parametrize, remove_weight_norm

from .._check import Module, called, check, check_module, check_weight, few, naming
from ..core.private import loading_hooks
from .adoptable import ATTRIBUTES, TENSORS, hooks, recognized, resembles
from .convert import channel_rows, disable_fused
from .convertible import inside_attention, refuse_wrapped

logger = logging.getLogger(__name__)


def adopt(model: Module) -> Module:
    """Makes another library's weight-standardizing layers torch_ws's, in place.

    Known are the layers of timm, transformers (BiT), mmcv, big_transfer and composer, and torch's
    weight_norm. The model computes the same up to rounding: each layer gets the formula with its
    own eps and factor, its gain and its padding. The Parameter objects of weights (weight_norm's v)
    and biases stay, names, hooks, dtypes, devices and ``training`` too. Gains and shifts become new
    Parameters of shape (C,), so make the optimizer afterwards. The state_dict's keys are then
    torch_ws's; [`torch_ws.checkpoints`][] translates files that have the library's.

    Args:
        model: any module, also a single layer.

    Returns:
        The model itself. What became of each layer is logged at level INFO.

    Warns:
        UserWarning: if nothing was known; or, by name, of what resembles a known layer and may
            compute something else, which stays as it is.

    Raises:
        TypeError: not a module.
        ValueError: by name, a layer whose weight or gain [`torch_ws.standardize`][] refuses; or
            one that would get a new gain and is in DistributedDataParallel or sharded already. The
            model is unchanged.
    """
    check_module(model)
    attention = inside_attention(model)  # attention reads its layers' weights itself
    plan, left_alone = [], []
    for name, layer in model.named_modules():
        if not resembles(layer):
            continue
        step = None if layer in attention else recognized(name, layer)
        if step is None:
            logger.info("%s: left alone", called(name, layer))
            left_alone.append(called(name, layer))
        else:
            _check(step)
            plan.append(step)
    refuse_wrapped(model, [step for step in plan if step.gain is not None])
    text = "adopt did nothing: the model has no weight-standardizing layers that it knows"
    if left_alone:
        text = f"adopt left alone {few(left_alone)}: torch_ws may have no layer that is the same"
    if left_alone or not plan:
        warnings.warn(text, UserWarning, stacklevel=2)

    for step in plan:
        logger.info("%s: adopted", called(step.name, step.layer))
        _carry_out(step)
    disable_fused(model)
    return model


def _check(step):
    with naming(called(step.name, step.layer)):
        check_weight(step.weight)
        rows = channel_rows(step.layer, step.weight.detach().to("meta"))
        gain, shift = (v if v is None else v.detach().to("meta") for v in (step.gain, step.shift))
        check(rows, gain, shift, 0, *step.formula.arguments(rows.shape[1] or 1))


def _carry_out(step):
    layer = step.layer
    if parametrize.is_parametrized(layer):
        # torch cannot leave one of two originals; what it leaves is replaced below
        leave = not layer.parametrizations.weight.is_tensor
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=leave)
        loading = loading_hooks(layer)  # weight_norm's there, for its older keys
        for key in [k for k, hook in loading.items() if _is_weight_norms(hook)]:
            del loading[key]
    elif hooks(layer):
        remove_weight_norm(layer)
    else:
        for name in ATTRIBUTES:
            layer.__dict__.pop(name, None)
            layer._modules.pop(name, None)
        for name in TENSORS:
            layer._parameters.pop(name, None)
            layer._buffers.pop(name, None)
    parameters = {
        "weight": step.weight,
        "bias": layer._parameters.pop("bias"),  # after the weight again, as in torch.nn
        "gain": step.gain,
        "shift": step.shift,
    }
    del layer.weight  # under weight_norm it is no parameter
    layer.__class__ = step.cls
    layer.formula = step.formula
    for name, parameter in parameters.items():
        layer.register_parameter(name, parameter)
    if step.same:
        layer.padding = "same"


def _is_weight_norms(hook):
    return "weight_norm.<locals>" in getattr(hook, "__qualname__", "")
