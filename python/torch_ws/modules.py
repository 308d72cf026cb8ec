"""Drop-in layers: torch.nn's convolutions and linear layer with a standardized weight.

Each takes its torch.nn counterpart's arguments, keeps its state_dict keys and differs in one line
of its forward. The parameter `weight` stays what it is; what the layer applies is

    standardize(weight, gain, shift, formula=formula)

:meth:`Standardized.standardized_weight` is the one place where it comes from: computed there, or
kept from before in eval mode (cache.py), or by a provider that computes it for many layers at once
(group.py, hold.py).
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from torch import nn

from ._check import refuse_fusion, resolve
from .cache import cacheable, cached
from .formulas import Formula, formulas
from .functional import standardize


def autocast_dtype(weight: torch.Tensor) -> torch.dtype | None:
    """What autocast makes of a float32 weight where it is on; None: nothing, its dtype stays."""
    device_type = weight.device.type
    if weight.dtype != torch.float32 or device_type == "meta":  # for which autocast has no answer
        return None
    if not torch.is_autocast_enabled(device_type):
        return None
    return torch.get_autocast_dtype(device_type)


def regrouped(weight: torch.Tensor, groups: int) -> torch.Tensor:
    """A transposed convolution's weight with output channels first, and back: its own inverse.

    (groups * inputs, outputs, ...) becomes (groups * outputs, inputs, ...).
    """
    return weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)


class _NoBaseLayer:
    """An attribute that a layer does not have; peft looks for it on its way to a layer's weight.

    Its adapters add to `weight.data` when they are merged, which PyTorch shows to nobody: the sum
    would be standardized. Each finds the layer by `get_base_layer`, which asks the layer for
    another one within it, so a method `merge` of the same package that asks is refused.
    """

    def __get__(self, layer, owner=None):
        if layer is not None and not torch.compiler.is_compiling():
            frame = sys._getframe(1)
            package = frame.f_globals.get("__name__", "").partition(".")[0]
            if frame.f_code.co_name == "get_base_layer":
                while frame and frame.f_globals.get("__name__", "").partition(".")[0] == package:
                    if frame.f_code.co_name == "merge":
                        raise RuntimeError(
                            f"{package} would merge an adapter into the weight that "
                            f"{type(layer).__name__} standardizes after it, and the result would "
                            "be another: call torch_ws.fold on the model first, then merge"
                        )
                    frame = frame.f_back
        raise AttributeError(f"{type(layer).__name__!r} object has no attribute 'base_layer'")


class Standardized(nn.Module):
    """What the layers share. Before a torch.nn class among the bases.

    Args (keyword-only, after torch.nn's):
        formula: a name from :data:`torch_ws.formulas` or a :class:`torch_ws.Formula`.
        gain: True: a learnable factor a channel, a parameter `gain` of shape (C,), initially 1.
        shift: True: a learnable offset a channel, a parameter `shift` of shape (C,), initially 0.

    Under autocast a float32 weight is standardized into autocast's dtype in the same pass.

    In eval mode and without gradients the standardized weight is computed once and kept until the
    parameters change; ``train()`` and ``eval()`` drop it. Writes through ``.data`` are not noticed.

    Raises:
        ValueError, TypeError: as torch.nn's class, and for an unknown formula.
    """

    channels: str  # the name of the attribute that counts the output channels
    channel_dim = 0  # of the tensor that _to_rows returns

    base_layer = _NoBaseLayer()

    # Both are set on the instance, past nn.Module.__setattr__, and are no part of a copy.
    _provider = None  # computes for many layers at once, during a pass or a block
    _cached = None

    def __init__(
        self,
        *args,
        formula: str | Formula = "paper",
        gain: bool = False,
        shift: bool = False,
        **kwargs,
    ):
        formula = resolve(formula)
        super().__init__(*args, **kwargs)
        self.formula = formula
        shape = (getattr(self, self.channels),)
        options = {"device": self.weight.device, "dtype": self.weight.dtype}
        gain = nn.Parameter(torch.ones(shape, **options)) if gain else None
        shift = nn.Parameter(torch.zeros(shape, **options)) if shift else None
        self.register_parameter("gain", gain)
        self.register_parameter("shift", shift)

    def standardized_weight(self) -> torch.Tensor:
        """The weight that the layer applies, in autocast's dtype where autocast is on.

        Not to be written to: in eval mode the layer may use the same tensor again.
        """
        tensors = self._tensors()
        dtype = autocast_dtype(tensors[0])
        if self._provider is not None:
            result = self._provider.take(self, tensors, dtype)
            if result is not None:
                return result
        if not self.training and cacheable(self, tensors):
            return cached(self, tensors, dtype)
        return self._standardize(tensors, dtype)

    def _tensors(self):
        """(weight, gain, shift); past nn.Module.__getattr__, which takes a microsecond for them."""
        parameters = self._parameters
        if "weight" in parameters and "gain" in parameters and "shift" in parameters:
            return parameters["weight"], parameters["gain"], parameters["shift"]
        return self.weight, self.gain, self.shift

    def _standardize(self, tensors, dtype):
        weight, gain, shift = tensors
        rows = standardize(
            self._to_rows(weight),
            gain,
            shift,
            formula=self.formula,
            channel_dim=self.channel_dim,
            dtype=dtype,
        )
        return self._from_rows(rows)

    def _to_rows(self, weight):
        """The weight, or its elements in an order in which `channel_dim` counts the channels."""
        return weight

    def _from_rows(self, rows):
        """The inverse of :meth:`_to_rows`."""
        return rows

    def __setattr__(self, name, value):
        if name in ("weight", "gain", "shift"):
            # fully_shard puts a gathered parameter here for each pass: the same object every time,
            # in memory that may be the same, with new values that count no version.
            self.__dict__.pop("_cached", None)
            if name == "weight" and not torch.compiler.is_compiling():
                refuse_fusion(self, sys._getframe(1).f_code.co_name)
        super().__setattr__(name, value)

    def train(self, mode: bool = True):
        """torch.nn's; also drops the standardized weight that eval mode keeps."""
        self.__dict__.pop("_cached", None)
        return super().train(mode)

    def _apply(self, *args, **kwargs):  # .to(), .cuda(), .double(): let go of the old memory
        self.__dict__.pop("_cached", None)
        return super()._apply(*args, **kwargs)

    def __getstate__(self):
        state = self.__dict__.copy()
        for name in ("_provider", "_cached"):
            state.pop(name, None)
        return state

    def extra_repr(self) -> str:
        names = [name for name, formula in formulas.items() if formula == self.formula]
        text = (
            f"{super().extra_repr()}, formula={names[0]!r}"
            if names
            else (f"{super().extra_repr()}, formula={self.formula}")
        )
        for name in ("gain", "shift"):
            if getattr(self, name) is not None:
                text += f", {name}=True"
        return text


class _Conv(Standardized):
    """A convolution. ``padding="same"`` also with a stride above 1, as TensorFlow pads."""

    channels = "out_channels"
    convolve: object  # F.conv1d, F.conv2d or F.conv3d

    def __init__(
        self, in_channels, out_channels, kernel_size, stride=1, padding=0, *args, **kwargs
    ):
        strides = stride if isinstance(stride, tuple) else (stride,)
        strided_same = padding == "same" and any(s != 1 for s in strides)
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            0 if strided_same else padding,  # torch.nn refuses "same" here
            *args,
            **kwargs,
        )
        if strided_same:
            self.padding = padding

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        weight = self.standardized_weight()
        if self.padding == "same" and any(s != 1 for s in self.stride):
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            input = F.pad(input, self._same_padding(input), mode=mode)
            return self.convolve(
                input, weight, self.bias, self.stride, 0, self.dilation, self.groups
            )
        return super()._conv_forward(input, weight, self.bias)

    def _conv_forward(self, input, weight, bias):
        """torch.nn's, for others than the layer itself: mmcv's fusion in evaluation ends here.

        Its weight is the layer's, not standardized, times batch normalization's scale.
        """
        if not torch.compiler.is_compiling():
            function = sys._getframe(1).f_code.co_name
            if "conv_bn" in function:
                raise RuntimeError(
                    f"{function} would apply the weight of {type(self).__name__} without "
                    "standardizing it: call torch_ws.fold on the model first"
                )
        return super()._conv_forward(input, weight, bias)

    def _same_padding(self, input):
        """So many elements that ceil(size / stride) outputs result; the odd one at the end."""
        padding = []
        sizes = input.shape[-len(self.stride) :]
        for size, kernel, stride, dilation in zip(
            sizes, self.kernel_size, self.stride, self.dilation, strict=True
        ):
            outputs = (size + stride - 1) // stride
            total = max((outputs - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
            padding = [total // 2, total - total // 2, *padding]  # F.pad: the last dimension first
        return padding


class _ConvTranspose(Standardized):
    """A transposed convolution: its weight is (in_channels, out_channels / groups, ...)."""

    channels = "out_channels"
    convolve: object  # F.conv_transpose1d, 2d or 3d

    @property
    def channel_dim(self):
        return 1 if self.groups == 1 else 0

    def _to_rows(self, weight):
        return weight if self.groups == 1 else regrouped(weight, self.groups)

    _from_rows = _to_rows

    def forward(self, input: torch.Tensor, output_size: list[int] | None = None) -> torch.Tensor:
        output_padding = self._output_padding(
            input,
            output_size,
            self.stride,
            self.padding,
            self.kernel_size,
            len(self.kernel_size),
            self.dilation,
        )
        return self.convolve(
            input,
            self.standardized_weight(),
            self.bias,
            self.stride,
            self.padding,
            output_padding,
            self.groups,
            self.dilation,
        )


class WSConv1d(_Conv, nn.Conv1d):
    """torch.nn.Conv1d with a standardized weight; see :class:`Standardized`."""

    convolve = staticmethod(F.conv1d)


class WSConv2d(_Conv, nn.Conv2d):
    """torch.nn.Conv2d with a standardized weight; see :class:`Standardized`."""

    convolve = staticmethod(F.conv2d)


class WSConv3d(_Conv, nn.Conv3d):
    """torch.nn.Conv3d with a standardized weight; see :class:`Standardized`."""

    convolve = staticmethod(F.conv3d)


class WSConvTranspose1d(_ConvTranspose, nn.ConvTranspose1d):
    """torch.nn.ConvTranspose1d with a standardized weight; see :class:`Standardized`."""

    convolve = staticmethod(F.conv_transpose1d)


class WSConvTranspose2d(_ConvTranspose, nn.ConvTranspose2d):
    """torch.nn.ConvTranspose2d with a standardized weight; see :class:`Standardized`."""

    convolve = staticmethod(F.conv_transpose2d)


class WSConvTranspose3d(_ConvTranspose, nn.ConvTranspose3d):
    """torch.nn.ConvTranspose3d with a standardized weight; see :class:`Standardized`."""

    convolve = staticmethod(F.conv_transpose3d)


class WSLinear(Standardized, nn.Linear):
    """torch.nn.Linear with a standardized weight; see :class:`Standardized`."""

    channels = "out_features"

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.linear(input, self.standardized_weight(), self.bias)
