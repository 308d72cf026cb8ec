"""Drop-in layers: torch.nn's convolutions and linear layer with a standardized weight.

Each takes its torch.nn counterpart's arguments, keeps its state_dict keys and differs in one line
of its forward: it applies `standardized_weight()` (standardized.py) in place of `weight`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import nn
from torch.types import Device

from ..core.private import output_padding
from ..formulas import Formula, FormulaName
from .raw_weight import refuse_scaled
from .standardized import Standardized, regrouped


@torch.fx.wrap  # one node of a traced graph: sizes decide in it
def _pad_same(input, kernel_size, stride, dilation, padding_mode):
    """So many elements more that ceil(size / stride) outputs result; the odd one at the end."""
    padding: list[int] = []
    sizes = input.shape[-len(stride) :]
    for size, kernel, step, dilate in zip(sizes, kernel_size, stride, dilation, strict=True):
        outputs = (size + step - 1) // step
        total = max((outputs - 1) * step + (kernel - 1) * dilate + 1 - size, 0)
        padding = [total // 2, total - total // 2, *padding]  # F.pad: the last dimension first
    return F.pad(input, padding, mode="constant" if padding_mode == "zeros" else padding_mode)


class _Conv(Standardized):
    """A convolution. ``padding="same"`` also with a stride above 1, as TensorFlow pads."""

    channels = "out_channels"
    convolve: Callable[..., torch.Tensor]  # F.conv1d, F.conv2d or F.conv3d
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: str | int | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        formula: FormulaName | Formula = "paper",
        gain: bool = False,
        shift: bool = False,
    ):
        strides = tuple(stride) if isinstance(stride, Iterable) else stride
        step = 1 if padding == "same" else strides  # torch.nn refuses "same" with another
        sizes = in_channels, out_channels, kernel_size, step, padding, dilation
        options: dict = {"formula": formula, "gain": gain, "shift": shift}
        super().__init__(*sizes, groups, bias, padding_mode, device, dtype, **options)
        if padding == "same":
            if not isinstance(strides, tuple):
                strides = (strides,) * len(self.kernel_size)
            self.stride = strides

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """torch.nn's, with the standardized weight."""
        weight = self.standardized_weight()
        if self.padding == "same" and any(s != 1 for s in self.stride):
            input = _pad_same(
                input, self.kernel_size, self.stride, self.dilation, self.padding_mode
            )
            return self.convolve(
                input, weight, self.bias, self.stride, 0, self.dilation, self.groups
            )
        return self._conv_forward(input, weight, self.bias)

    def _conv_forward(self, input, weight, bias):
        refuse_scaled(self)
        return super()._conv_forward(input, weight, bias)  # type: ignore[misc]  # the next base's


class _ConvTranspose(Standardized):
    """A transposed convolution: its weight is (in_channels, out_channels / groups, ...)."""

    channels = "out_channels"
    convolve: Callable[..., torch.Tensor]  # F.conv_transpose1d, 2d or 3d
    kernel_size: tuple[int, ...]
    groups: int

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] = 0,
        output_padding: int | tuple[int, ...] = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int | tuple[int, ...] = 1,
        padding_mode: str = "zeros",
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        formula: FormulaName | Formula = "paper",
        gain: bool = False,
        shift: bool = False,
    ):
        sizes = in_channels, out_channels, kernel_size, stride, padding, output_padding
        options: dict = {"formula": formula, "gain": gain, "shift": shift}
        super().__init__(*sizes, groups, bias, dilation, padding_mode, device, dtype, **options)

    @property
    def channel_dim(self) -> int:  # type: ignore[override]  # groups decide
        return 1 if self.groups == 1 else 0

    def _to_rows(self, weight):
        return weight if self.groups == 1 else regrouped(weight, self.groups)

    _from_rows = _to_rows

    def forward(self, input: torch.Tensor, output_size: list[int] | None = None) -> torch.Tensor:
        """torch.nn's, with the standardized weight."""
        size = self.kernel_size
        added = output_padding(
            self, input, output_size, self.stride, self.padding, size, len(size), self.dilation
        )
        weight, bias = self.standardized_weight(), self.bias
        return self.convolve(
            input, weight, bias, self.stride, self.padding, added, self.groups, self.dilation
        )


class WSConv1d(_Conv, nn.Conv1d):
    """Applies a 1-d convolution with a standardized weight.

    Equivalent to ``F.conv1d(x, torch_ws.standardize(weight, gain, shift, formula=formula), bias)``
    with stride, padding, dilation and groups. Input (N, C_in, L) or (C_in, L), as torch.nn.Conv1d,
    whose arguments it takes. For formula, gain, shift and errors see `Standardized`.
    """

    convolve = staticmethod(F.conv1d)


class WSConv2d(_Conv, nn.Conv2d):
    """Applies a 2-d convolution with a standardized weight.

    Equivalent to ``F.conv2d(x, torch_ws.standardize(weight, gain, shift, formula=formula), bias)``
    with stride, padding, dilation and groups. Input (N, C_in, H, W) or (C_in, H, W), as
    torch.nn.Conv2d, whose arguments it takes; ``padding="same"`` with any stride. For formula,
    gain, shift and errors see `Standardized`.
    """

    convolve = staticmethod(F.conv2d)


class WSConv3d(_Conv, nn.Conv3d):
    """Applies a 3-d convolution with a standardized weight.

    Equivalent to ``F.conv3d(x, torch_ws.standardize(weight, gain, shift, formula=formula), bias)``
    with stride, padding, dilation and groups. Input (N, C_in, D, H, W) or (C_in, D, H, W), as
    torch.nn.Conv3d, whose arguments it takes. For formula, gain, shift and errors see
    `Standardized`.
    """

    convolve = staticmethod(F.conv3d)


class WSConvTranspose1d(_ConvTranspose, nn.ConvTranspose1d):
    """Applies a 1-d transposed convolution whose output channels are standardized.

    Equivalent, without groups, to ``F.conv_transpose1d(x, w, bias)`` with
    ``w = torch_ws.standardize(weight, gain, shift, formula=formula, channel_dim=1)``. Input
    (N, C_in, L) or (C_in, L), as torch.nn.ConvTranspose1d, whose arguments it takes. For formula,
    gain, shift and errors see `Standardized`.
    """

    convolve = staticmethod(F.conv_transpose1d)


class WSConvTranspose2d(_ConvTranspose, nn.ConvTranspose2d):
    """Applies a 2-d transposed convolution whose output channels are standardized.

    Equivalent, without groups, to ``F.conv_transpose2d(x, w, bias)`` with
    ``w = torch_ws.standardize(weight, gain, shift, formula=formula, channel_dim=1)``. Input
    (N, C_in, H, W) or (C_in, H, W), as torch.nn.ConvTranspose2d, whose arguments it takes. For
    formula, gain, shift and errors see `Standardized`.
    """

    convolve = staticmethod(F.conv_transpose2d)


class WSConvTranspose3d(_ConvTranspose, nn.ConvTranspose3d):
    """Applies a 3-d transposed convolution whose output channels are standardized.

    Equivalent, without groups, to ``F.conv_transpose3d(x, w, bias)`` with
    ``w = torch_ws.standardize(weight, gain, shift, formula=formula, channel_dim=1)``. Input
    (N, C_in, D, H, W) or (C_in, D, H, W), as torch.nn.ConvTranspose3d, whose arguments it takes.
    For formula, gain, shift and errors see `Standardized`.
    """

    convolve = staticmethod(F.conv_transpose3d)


class WSLinear(Standardized, nn.Linear):
    """Applies a linear layer with a standardized weight.

    Equivalent to ``F.linear(x, torch_ws.standardize(weight, gain, shift, formula=formula), bias)``.
    Input (..., in_features), as torch.nn.Linear, whose arguments it takes. For formula, gain, shift
    and errors see `Standardized`.
    """

    channels = "out_features"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        formula: FormulaName | Formula = "paper",
        gain: bool = False,
        shift: bool = False,
    ):
        options: dict = {"formula": formula, "gain": gain, "shift": shift}
        super().__init__(in_features, out_features, bias, device, dtype, **options)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """torch.nn's, with the standardized weight."""
        return F.linear(input, self.standardized_weight(), self.bias)
