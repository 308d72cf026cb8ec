"""What a layer is to convert(): skipped, standardizing already, a plain one, or to be refused."""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Iterable

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from .._check import called, few
from ..formulas import resolve, spelled
from ..layers.parametrize import WeightStandardization
from ..layers.standardized import Standardized


def skipped(model, skip, classes):
    """The modules that `skip` names, with all that is below them."""
    names: defaultdict[nn.Module, list[str]] = defaultdict(list)  # a module may have several
    for name, module in model.named_modules(remove_duplicate=False):
        names[module].append(name)
    if callable(skip) and not isinstance(skip, type):
        layers = [module for module in names if isinstance(module, classes)]
        return {layer for layer in layers if any(skip(name, layer) for name in names[layer])}
    if isinstance(skip, (str, type)):
        skip = (skip,)
    if not isinstance(skip, Iterable):
        raise TypeError(
            "skip must be an iterable of names and types, or a function of a name and a module; "
            f"got {type(skip).__name__}"
        )
    by_name = {name: module for module, all_names in names.items() for name in all_names}
    found: list[nn.Module] = []
    for entry in skip:
        if isinstance(entry, type):
            found += [module for module in names if isinstance(module, entry)]
        elif not isinstance(entry, str):
            raise TypeError(f"skip must hold names and types, got {type(entry).__name__}")
        elif entry in by_name:
            found.append(by_name[entry])
        else:
            hint = near_matches(entry, by_name)
            raise ValueError(f"skip: the model has no module named {entry!r}{hint}")
    return {below for module in found for below in module.modules()}


def near_matches(name, names):
    """For the end of an error about a name that is not among the modules' names."""
    near = difflib.get_close_matches(name, names, cutoff=0.5)
    return f"; near matches: {', '.join(map(repr, near))}" if near else ""


def standardization(layer):
    """What standardizes the layer's weight and has the formula, gain and shift; else None.

    That is the layer itself if it is of our classes, or what torch_ws.parametrize put there.
    """
    if isinstance(layer, Standardized):
        return layer
    made_by = layer.parametrizations.weight if parametrize.is_parametrized(layer, "weight") else ()
    return next((one for one in made_by if isinstance(one, WeightStandardization)), None)


def refuse_other(standardizing, formula, gain, shift, preserve):
    """Raises where layers that standardize already have something else than is asked for."""
    differing = []
    for name, layer in standardizing.items():
        held = standardization(layer)
        lacks = (gain and held.gain is None) or (shift and held.shift is None)
        if resolve(held.formula) != formula or lacks or preserve:
            has = _options(held.formula, gain=held.gain is not None, shift=held.shift is not None)
            differing.append(f"{called(name, layer)} with {has}")
    if differing:
        asked = _options(formula, gain=gain, shift=shift, preserve=preserve)
        raise ValueError(
            f"convert was asked for {asked}, but {few(differing)} standardize already, and convert "
            "changes plain layers only. Another formula is assigned to each of them: "
            "layer.formula = torch_ws.formulas[...]. To convert the other layers, put "
            "torch_ws.Standardized, or their names, in skip"
        )


def _options(formula, **flags):
    """Arguments as a call has them, without those that are False."""
    text = f"formula={spelled(formula)}"
    return text + "".join(f", {name}=True" for name, flag in flags.items() if flag)


def own_class(layer):
    """The layer's class as its author knows it: before parametrization, after lazy set-up."""
    return getattr(layer, "cls_to_become", None) or parametrize.type_before_parametrizations(layer)


def inside_attention(model):
    """The layers whose weights nn.MultiheadAttention reads past their forwards."""
    attention = (module for module in model.modules() if isinstance(module, nn.MultiheadAttention))
    return {child for module in attention for child in module.children()}


def check_layer(layer):
    """Raises for a layer whose weight is not an ordinary parameter of its own."""
    if parametrize.is_parametrized(layer):
        raise ValueError(
            f"is parametrized ({', '.join(layer.parametrizations)}): skip it, or first call "
            "torch.nn.utils.parametrize.remove_parametrizations; torch_ws.adopt takes over "
            "weight_norm's and composer's layers"
        )
    weight = layer._parameters.get("weight")
    if weight is None:
        raise ValueError(
            "its weight is not a parameter but made anew for each call, as by weight_norm, "
            "spectral_norm or pruning: skip it, or first remove that; torch_ws.adopt takes over "
            "weight_norm's layers"
        )
    if is_lazy(weight):
        raise ValueError("is not initialized: skip it, or first run the model once")
    for name in ("formula", "gain", "shift"):
        if hasattr(layer, name):
            raise ValueError(f"has an attribute {name!r} of its own: skip it, or rename that")


def refuse_wrapped(model, plan):
    """Whatever synchronizes the parameters' gradients has counted them already."""
    wrapped = any(isinstance(module, DistributedDataParallel) for module in model.modules())
    for step in plan:
        if wrapped or hasattr(step.layer.weight, "device_mesh"):
            state = "in DistributedDataParallel" if wrapped else "sharded"
            raise ValueError(
                f"{called(step.name, step.layer)}: is {state} already, and a new gain or shift "
                "would not be: wrap or shard the model after this"
            )
