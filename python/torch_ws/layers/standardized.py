"""The base class of the layers with a standardized weight, and the one place where it comes from.

A layer's parameter `weight` stays what it is; what the layer applies is

    standardize(weight, gain, shift, formula=formula)

`Standardized.standardized_weight` is that: computed there, or kept from before where nothing
trains (cache.py), or by a provider that computes it instead (training/provider.py).
"""

from __future__ import annotations

import dataclasses
import functools
import types
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.fx import Proxy
from typing_extensions import Self

from .._check import check_flags
from ..core.private import any_autocast
from ..core.standardize import standardize
from ..formulas import Formula, FormulaName, formulas, resolve, spelled
from .cache import EvalCache, Stored
from .raw_weight import NoBaseLayer, refuse_fusion

if TYPE_CHECKING:
    from ..training.provider import Provider

_EVAL_CACHE = EvalCache()


def autocast_dtype(weight: torch.Tensor) -> torch.dtype | None:
    """What autocast makes of a float32 weight where it is on; None: nothing, its dtype stays."""
    if weight.dtype != torch.float32:
        return None
    device_type = weight.device.type
    if device_type == "meta" or not torch.is_autocast_enabled(device_type):
        return None  # of meta autocast knows nothing
    return torch.get_autocast_dtype(device_type)


def regrouped(weight: torch.Tensor, groups: int) -> torch.Tensor:
    """A transposed convolution's weight with output channels first, and back: its own inverse.

    (groups * inputs, outputs, ...) becomes (groups * outputs, inputs, ...).
    """
    return weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)


TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class Standardized(nn.Module):
    """The base of the layers of torch_ws: a torch.nn layer whose weight is standardized.

    For layers of one's own, before a torch.nn class among the bases; `channels` names the attribute
    that counts the output channels, and forward applies `standardized_weight`.

    Args:
        formula: a name from [`torch_ws.formulas`][] or a [`torch_ws.Formula`][]. The attribute
            `formula` is that Formula, and may be set at any time to either.
        gain: True: a learnable factor a channel, a parameter `gain` of shape (C,), initially 1.
        shift: True: a learnable offset a channel, a parameter `shift` of shape (C,), initially 0.

    They are keyword-only, and torch.nn's arguments come before them. Under autocast a float32
    weight is standardized into autocast's dtype in the same pass. Where no gradient is needed, in
    eval mode or frozen, the result is kept until the parameters change
    ([`torch_ws.eval_cache`][]).

    Raises:
        TypeError, ValueError: as torch.nn's class; for an unknown formula; gain or shift no bool.
    """

    weight: torch.Tensor
    gain: nn.Parameter | None
    shift: nn.Parameter | None
    formula: Formula
    channels: str  # the name of the attribute that counts the output channels
    channel_dim = 0  # of the tensor that _to_rows returns
    eval_cache = True  # whether a result may be kept
    base_layer = NoBaseLayer()

    # Both are set on the instance, past nn.Module.__setattr__, and are no part of a copy.
    _provider: Provider | None = None  # is asked first for the standardized weight
    _cached: Stored | None = None
    _vectors_are_parameters: bool  # gain and shift, and no property of a subclass

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        cls._vectors_are_parameters = not (hasattr(cls, "gain") or hasattr(cls, "shift"))
        if "__init__" not in vars(cls):  # its own copy, so that errors name the class
            init = cls.__init__
            own = types.FunctionType(
                init.__code__, init.__globals__, init.__name__, init.__defaults__, init.__closure__
            )
            own.__kwdefaults__, own.__annotations__ = init.__kwdefaults__, init.__annotations__
            own.__qualname__ = f"{cls.__qualname__}.__init__"
            cls.__init__ = own  # type: ignore[method-assign]  # of the class, on purpose

    def __init__(
        self,
        *args: Any,
        formula: FormulaName | Formula = "paper",
        gain: bool = False,
        shift: bool = False,
        **kwargs: Any,
    ):
        formula = resolve(formula)
        check_flags(gain=gain, shift=shift)
        super().__init__(*args, **kwargs)
        self.formula = formula
        channels = getattr(self, self.channels)
        for name, flag in (("gain", gain), ("shift", shift)):
            vector = nn.Parameter(self.weight.new_empty(channels)) if flag else None
            self.register_parameter(name, vector)
        self._reset_vectors()

    def reset_parameters(self) -> None:
        """torch.nn's initialization of weight and bias; gain 1 and shift 0."""
        super().reset_parameters()  # type: ignore[misc]  # of torch.nn's class, the next base
        self._reset_vectors()

    def _reset_vectors(self):
        for name, value in (("gain", 1.0), ("shift", 0.0)):
            vector = self._parameters.get(name)  # not there yet in torch.nn's own __init__
            if vector is not None:
                nn.init.constant_(vector, value)

    def standardized_weight(self) -> torch.Tensor:
        """The weight that the layer applies, in autocast's dtype where autocast is on.

        Not to be written to: the layer may use the same tensor again.
        """
        tensors = self._tensors()
        if isinstance(tensors[0], Proxy):  # of torch.fx, which records the call
            return self._standardize(tensors, None)
        dtype = autocast_dtype(tensors[0]) if any_autocast() else None
        if self._provider is not None:
            result = self._provider.take(self, tensors, dtype)
            if result is not None:
                return result
        if not (self.training and tensors[0].requires_grad):
            result = _EVAL_CACHE.take(self, tensors, dtype)
            if result is not None:
                return result
        return self._standardize(tensors, dtype)

    def _is_provided_for(self):
        """True during a pass or a block that computes for the layer."""
        return self._provider is not None and not self._provider.idle

    def _tensors(self):
        """(weight, gain, shift), as whatever stands between the parameters and a reader gives them.

        That may be torch.fx's tracer, or a property of a subclass.
        """
        if self._vectors_are_parameters:  # nn.Module.__getattr__ takes as long for one that is None
            parameters = self._parameters
            if parameters.get("gain", self) is None and parameters.get("shift", self) is None:
                return self.weight, None, None
        return self.weight, self.gain, self.shift

    def _standardize(self, tensors, dtype):
        weight, gain, shift = tensors
        formula = self.formula
        if formula.fixed is None and isinstance(weight, Proxy):  # which does not know its size
            formula = formula.for_fan_in(self._fan_in())
        rows = standardize(
            self._to_rows(weight),
            gain,
            shift,
            formula=formula,
            channel_dim=self.channel_dim,
            dtype=dtype,
        )
        return self._from_rows(rows)

    def _to_rows(self, weight):
        """The weight, or its elements in an order in which `channel_dim` counts the channels."""
        return weight

    def _from_rows(self, rows):
        """The inverse of `_to_rows`."""
        return rows

    def _fan_in(self):
        """The elements of a channel, from the parameter itself."""
        weight: torch.Tensor = self._parameters["weight"]  # type: ignore[assignment]  # not None
        return weight.numel() // getattr(self, self.channels) or 1

    def __setattr__(self, name, value):
        if name in ("weight", "gain", "shift"):
            # fully_shard puts a gathered parameter here for each pass: the same object every time,
            # in memory that may be the same, with new values that count no version.
            self.__dict__.pop("_cached", None)
            if name == "weight":
                refuse_fusion(self)
        elif name == "formula":
            value = resolve(value)
        super().__setattr__(name, value)

    def train(self, mode: bool = True) -> Self:
        """torch.nn's; also drops the standardized weight that was kept, unless for training too."""
        if self._provider is None or self._provider.fused is None:
            self.__dict__.pop("_cached", None)
        return super().train(mode)

    def _apply(self, *args, **kwargs):  # .to(), .cuda(), .double()
        self.__dict__.pop("_cached", None)  # let go of the old memory
        move = functools.partial(super()._apply, *args, **kwargs)
        return move() if self._provider is None else self._provider.move(move)

    def __getstate__(self):
        state = self.__dict__.copy()
        for name in ("_provider", "_cached"):
            state.pop(name, None)
        return state

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        metadata = getattr(destination, "_metadata", {})
        if prefix[:-1] in metadata:
            metadata[prefix[:-1]]["formula"] = dataclasses.asdict(self.formula)

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *others):
        self.__dict__.pop("_cached", None)  # PyTorch can swap no tensor that it refers to
        saved = local_metadata.get("formula")
        if saved is not None and saved != dataclasses.asdict(self.formula):
            known = (spelled(f) for f in formulas.values() if dataclasses.asdict(f) == saved)
            warnings.warn(
                f"the state dict was saved by a layer with formula {next(known, saved)}, and is "
                f"loaded into one with {spelled(self.formula)}: it computes another weight from it",
                UserWarning,
                stacklevel=2,
            )
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *others)
        gain, own = state_dict.get(prefix + "gain"), self._parameters.get("gain")
        if gain is not None and own is not None and gain.shape == (len(own), 1, 1, 1):
            others[-1].append(  # PyTorch's error_msgs
                f"{prefix}gain has the shape of timm's: torch_ws.checkpoints.from_timm translates "
                "its state dicts"
            )

    def extra_repr(self) -> str:
        text = f"{super().extra_repr()}, formula={spelled(self.formula)}"
        for name in ("gain", "shift"):
            if getattr(self, name) is not None:
                text += f", {name}=True"
        return text


def eval_cache(enabled: bool, model: nn.Module | None = None) -> None:
    """Turns the cache of standardized weights on or off, for a model or for the whole process.

    Turn it off where weights are written without PyTorch's version counter: through ``.data``, by
    custom kernels on raw pointers, by another process on the GPU, by a replayed CUDA graph. Outputs
    then follow every write, at the price of a standardization a pass.

    Equivalent to ``layer.eval_cache = enabled`` for all layers of `model`, or to
    ``torch_ws.Standardized.eval_cache = enabled``, which a layer's own setting overrides.

    Args:
        enabled: True, which is the default of every layer, or False.
        model: any module; a layer is one too. None: the process.

    Raises:
        TypeError: an argument is of the wrong type.
    """
    check_flags(enabled=enabled)
    if model is None:
        Standardized.eval_cache = enabled
        return
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module or None, got {type(model).__name__}")
    for layer in model.modules():
        if isinstance(layer, Standardized):
            layer.eval_cache = enabled
            layer.__dict__.pop("_cached", None)
