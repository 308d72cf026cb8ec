"""Other libraries' checkpoints in the keys and shapes of torch_ws's layers.

Each function takes a state dict and returns one for a model whose layers are torch_ws's:

    state = torch_ws.checkpoints.from_timm(torch.load("nfnet.pt"))
    torch_ws.convert(model, "timm_nfnet", gain=True)
    model.load_state_dict(state)

Only keys and shapes are translated; the formula belongs to the model. The libraries need not be
installed. The result is an OrderedDict if the argument is one, with its ``_metadata``, else a dict;
its tensors share memory with the argument's, the order stays, and keys that are not the library's
are passed on. So the functions can be chained for a model that mixes styles. The argument is not
changed.

Layers whose keys are torch.nn's own need no translation: timm's StdConv2d, BiT's, transformers'
WeightStandardizedConv2d, mmcv's ConvWS2d.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import nn

from .layers.standardized import TRANSPOSED

Tensor = torch.Tensor

ORIGINAL = "parametrizations.weight.original"
# weight_norm's g and v: by torch.nn.utils, and by torch.nn.utils.parametrizations
WEIGHT_NORM = (("weight_g", "weight_v"), (f"{ORIGINAL}0", f"{ORIGINAL}1"))

# The keys by which a library is known, and the function for them
MARKS = {
    "from_timm": ("gain",),
    "from_mmcv": ("weight_gamma", "weight_beta"),
    "from_weight_norm": (*WEIGHT_NORM[0], *WEIGHT_NORM[1]),
    "from_composer": (ORIGINAL,),
}


def from_timm(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm's ScaledStdConv2d and ScaledStdConv2dSame: gains (O, 1, 1, 1) become (O,).

    For a model with formula "timm_nfnet" (the NFNets') or "timm_scaled" (the layer's defaults) and
    ``gain=True``. A gamma is in the formula, not in the checkpoint. StdConv2d's keys stay: "timm"
    or "timm_bit".

    Args:
        state_dict: names to tensors, as ``state_dict()`` or a file has them.

    Returns:
        A state dict for layers of torch_ws; see this module.

    Raises:
        TypeError: not a mapping of names.
        ValueError: names every key that does not fit: a gain of another shape, or, where nothing is
            timm's, the keys of another library. Nothing is changed.
    """
    _check(state_dict)
    changes, bad = {}, []
    for layer, tensors in _layers(state_dict, "weight", "gain").items():
        weight, gain, key = tensors.get("weight"), tensors.get("gain"), f"{layer}gain"
        if weight is None or gain is None or weight.dim() != 4:
            continue  # not a convolution's
        if gain.shape == (len(weight), 1, 1, 1):
            changes[key] = key, gain.reshape(-1)
        elif gain.shape != (len(weight),):  # a gain of shape (O,) is torch_ws's own
            bad.append(_wrong_shape(key, gain, len(weight)))
    return _translated("from_timm", state_dict, changes, bad)


def from_mmcv(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """mmcv's ConvAWS2d: buffers weight_gamma and weight_beta (O, 1, 1, 1) become gain and shift.

    For a model with formula "mmcv_aws", ``gain=True`` and ``shift=True``; ``requires_grad_(False)``
    on both keeps them constant as mmcv does. ConvWS2d's keys stay: "qiao".

    Args:
        state_dict: as in `from_timm`.

    Returns:
        A state dict for layers of torch_ws; see this module.

    Raises:
        TypeError, ValueError: as `from_timm`. Also refused by name: one of the two without
            the other or the weight; DetectoRS's SAConv2d, which is more than a standardized
            convolution; a gamma with a mean not above 0, which mmcv replaces on loading.
    """
    _check(state_dict)
    changes, bad = {}, []
    for layer, tensors in _layers(state_dict, *MARKS["from_mmcv"]).items():
        weight = state_dict.get(f"{layer}weight")
        if len(tensors) < 2 or weight is None:
            bad.append(f"{layer}{next(iter(tensors))} without weight, weight_gamma and weight_beta")
            continue
        if f"{layer}weight_diff" in state_dict:
            bad.append(f"{layer}weight_diff is SAConv2d's, which torch_ws has no layer for")
            continue
        for name, ours in (("weight_gamma", "gain"), ("weight_beta", "shift")):
            key, tensor = f"{layer}{name}", tensors[name]
            if tensor.shape != (len(weight), 1, 1, 1):
                bad.append(_wrong_shape(key, tensor, len(weight)))
            elif ours == "gain" and not (tensor.is_meta or tensor.float().mean() > 0):
                bad.append(
                    f"{key} has a mean not above 0, which mmcv takes for absent: leave it and "
                    "weight_beta out and use convert(preserve=True)"
                )
            else:
                changes[key] = f"{layer}{ours}", tensor.reshape(-1)
    return _translated("from_mmcv", state_dict, changes, bad)


def from_composer(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Composer's weight standardization: parametrizations.weight.original becomes weight.

    For a model with formula "bit". Convolutions (weights of 3 to 5 dimensions) whose
    parametrization has no tensors of its own are translated; from another such parametrization
    they cannot be told.

    Args:
        state_dict: as in `from_timm`.

    Returns:
        A state dict for layers of torch_ws; see this module.

    Raises:
        TypeError, ValueError: as `from_timm`.
    """
    _check(state_dict)
    changes = {}
    for layer, tensors in _layers(state_dict, ORIGINAL).items():
        own = f"{layer}parametrizations.weight."
        alone = sum(key.startswith(own) for key in state_dict) == 1
        if alone and 3 <= tensors[ORIGINAL].dim() <= 5:
            changes[f"{layer}{ORIGINAL}"] = f"{layer}weight", tensors[ORIGINAL]
    return _translated("from_composer", state_dict, changes, [])


def from_weight_norm(
    state_dict: Mapping[str, Tensor], model: nn.Module | None = None
) -> dict[str, Tensor]:
    """torch's weight_norm, both styles: v becomes weight, and g (O, 1, ...) gain (O,).

    Translates ``weight_g`` and ``weight_v`` as well as ``parametrizations.weight.original0`` and
    ``original1``, for a model with formula "weight_norm" and ``gain=True``. The norms must be those
    of the output channels: ``dim=0``, for transposed convolutions ``dim=1`` without groups. Where
    the shapes do not show which they are, `model` does.

    Args:
        state_dict: as in `from_timm`.
        model: the model that is to load it, converted or not. Its layers say which are transposed.

    Returns:
        A state dict for layers of torch_ws; see this module.

    Raises:
        TypeError, ValueError: as `from_timm`. Also refused by name: g without v, v without g;
            norms that are not the output channels'; a layer that `model` does not have.
    """
    _check(state_dict)
    if not isinstance(model, (nn.Module, type(None))):
        raise TypeError(f"model must be a torch.nn.Module or None, got {type(model).__name__}")
    modules = None if model is None else dict(model.named_modules())
    changes, bad = {}, []
    for names in WEIGHT_NORM:
        for layer, tensors in _layers(state_dict, *names).items():
            if len(tensors) < 2:
                bad.append(f"{layer}{next(iter(tensors))} without {' and '.join(names)}")
                continue
            g, v = (tensors[name] for name in names)
            why = _not_per_output_channel(g, v, state_dict.get(f"{layer}bias"), layer, modules)
            if why:
                bad.append(f"{layer}{names[0]} {tuple(g.shape)} {why}")
                continue
            changes[f"{layer}{names[0]}"] = f"{layer}gain", g.reshape(-1)
            changes[f"{layer}{names[1]}"] = f"{layer}weight", v
    return _translated("from_weight_norm", state_dict, changes, bad)


def _not_per_output_channel(g, v, bias, layer, modules):
    """Why g are not the norms of v's output channels, as far as anything shows it."""
    sizes = v.shape[:2] if v.dim() >= 2 and g.dim() == v.dim() else ()
    found = [dim for dim, n in enumerate(sizes) if g.numel() == n == g.shape[dim]]
    if not found:
        return f"is not one norm a channel of a weight {tuple(v.shape)}"
    per_input = "has the norms of the input channels; torch_ws's are of the output channels"
    if modules is None:
        # dim=1 is the outputs' of a transposed convolution, and there a bias has as many values
        fits = found[0] == 0 or v.dim() >= 3
        fits = fits and (bias is None or bias.numel() == v.shape[found[0]])
        return None if fits else per_input
    module = modules.get(layer[:-1])
    if module is None:
        return "belongs to a layer that the model does not have"
    if not isinstance(module, TRANSPOSED):
        return None if 0 in found else per_input
    if module.groups > 1:
        return "is a grouped transposed convolution's, in which no dim is the output channels"
    return None if 1 in found else per_input


def _check(state_dict):
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"state_dict must be a mapping, got {type(state_dict).__name__}")
    for key, tensor in state_dict.items():
        if not isinstance(key, str):
            raise TypeError(f"state_dict must have names as keys, got {type(key).__name__}")
        if isinstance(tensor, Mapping):
            raise ValueError(f"state_dict must hold tensors; {key!r} is a mapping: pass that?")


def _layers(state_dict, *names):
    """A layer's name with its dot -> those of its tensors that are called one of `names`."""
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state_dict.items():
        for name in names:
            if key == name or key.endswith(f".{name}"):
                layers.setdefault(key.removesuffix(name), {})[name] = tensor
    return layers


def _wrong_shape(key, tensor, channels):
    return f"{key} has shape {tuple(tensor.shape)}, not ({channels}, 1, 1, 1)"


def _translated(function, state_dict, changes, bad):
    """The state dict with `changes`, key -> (new key, tensor), or an error that names all `bad`."""
    for key, (new, _) in changes.items():
        if new != key and new in state_dict:
            bad.append(f"{key} would become {new}, which is there already")
    if not changes and not bad:
        bad = _of_others(function, state_dict)
    if bad:
        raise ValueError(f"{function}: {'; '.join(bad)}")
    items = (changes.get(key, (key, tensor)) for key, tensor in state_dict.items())
    if not isinstance(state_dict, OrderedDict):
        return dict(items)
    result = OrderedDict(items)
    if hasattr(state_dict, "_metadata"):
        result._metadata = copy.copy(state_dict._metadata)  # type: ignore[attr-defined]  # torch's
    return result


def _of_others(function, state_dict):
    """What another function than the one that was called would translate."""
    bad = []
    for other, names in MARKS.items():
        if other == function:
            continue
        keys = [
            f"{layer}{name}"
            for layer, tensors in _layers(state_dict, *names).items()
            for name, tensor in tensors.items()
            if name != "gain" or tensor.dim() == 4  # with one dimension it is ours
        ]
        if keys:
            bad.append(f"nothing to translate, but {', '.join(keys)}, which is for {other}")
    return bad
