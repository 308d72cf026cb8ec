"""Batch-Channel Normalization: a batch normalization, then a normalization of groups of channels.

The first step is a child module, `bn`, that PyTorch's own tools find: SyncBatchNorm's conversion,
update_bn of averaged weights, and whoever freezes batch normalizations. The second is PyTorch's
kernel for group normalization; its affine map has one weight a group, expanded for that kernel.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.fx import Proxy
from torch.types import Device

from .._check import check_eps, check_flags, check_float, check_input, check_positive
from .estimated_batch_norm import EstimatedBatchNorm, recorded
from .standardized import autocast_dtype

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


class BatchChannelNorm(nn.Module):
    """What the 1-d, 2-d and 3-d classes share.

    Equivalent to, with G = num_groups:

        x = self.bn(x)  # BatchNorm; estimated=True: EstimatedBatchNorm
        z = F.group_norm(x, G, eps=eps).unflatten(1, (G, -1))
        y = (z * weight.view(G, 1, 1, 1) + bias.view(G, 1, 1, 1)).flatten(1, 2)  # of an image

    Args:
        num_channels: C.
        num_groups: G, a divisor of C.
        eps: added to the variances of both steps.
        momentum: of the batch normalization, as in torch.nn, None for a cumulative average;
            estimated: the rate at the start, see [`torch_ws.EstimatedBatchNorm`][].
        affine: whether both steps have learnable parameters: ``bn.weight`` and ``bn.bias`` of shape
            (C,), `weight` and `bias` of shape (G,).
        track_running_stats: of the batch normalization, as in torch.nn.
        device, dtype: of all parameters and buffers.
        channel_affine: `weight` and `bias` have shape (C,) instead, as in ``nn.GroupNorm``.
        estimated: the first step normalizes by running estimates, in training too: for batches
            of one or two.

    State: `weight`, `bias`, and the keys of ``nn.BatchNorm`` under ``bn.``; estimated, also
    ``bn.rate``. The authors' checkpoints load.

    Shapes: the output has the input's shape, dtype and memory format; under autocast PyTorch's
    group normalization may choose float32. Empty batches are allowed.

    Raises:
        TypeError, ValueError: for a wrong argument; ValueError for an input of another number of
            dimensions or channels, and from torch.nn in training for one value a channel, unless
            estimated.

    Source: BCNorm in the authors' README, github.com/joe-siyuan-qiao/Batch-Channel-Normalization;
    Qiao et al., arXiv:1903.10520.
    """

    weight: torch.Tensor  # None without affine
    bias: torch.Tensor
    bn: nn.Module
    batch_norm: type[nn.Module]
    dims: tuple[int, ...]  # the numbers of dimensions that the input may have

    def __init__(
        self,
        num_channels: int,
        num_groups: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        channel_affine: bool = False,
        estimated: bool = False,
    ):
        check_positive("num_channels", num_channels)
        check_positive("num_groups", num_groups)
        if num_channels % num_groups:
            raise ValueError(
                f"num_groups must divide num_channels ({num_channels}), got {num_groups}"
            )
        check_eps(eps)
        if momentum is not None:
            check_float("momentum", momentum)
        check_flags(
            affine=affine,
            track_running_stats=track_running_stats,
            channel_affine=channel_affine,
            estimated=estimated,
        )
        if estimated and (momentum is None or not 0 <= momentum <= 1):
            raise ValueError(f"momentum must be in [0, 1] with estimated=True, got {momentum}")
        if estimated and not track_running_stats:
            raise ValueError("track_running_stats must be True with estimated=True, got False")
        super().__init__()
        self.num_channels = num_channels
        self.num_groups = num_groups
        self.eps = eps
        self.affine = affine
        self.channel_affine = channel_affine
        options: dict = {"device": device, "dtype": dtype}
        size = num_channels if channel_affine else num_groups
        for name in ("weight", "bias"):
            vector = nn.Parameter(torch.empty(size, **options)) if affine else None
            self.register_parameter(name, vector)
        if estimated:
            assert momentum is not None  # as checked above
            self.bn = EstimatedBatchNorm(num_channels, eps, momentum, affine, **options)
        else:
            self.bn = self.batch_norm(
                num_channels, eps, momentum, affine, track_running_stats, **options
            )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The second step's parameters: weight 1, bias 0. The first step has its own method."""
        if self.affine:
            nn.init.ones_(self.weight)
            nn.init.zeros_(self.bias)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if isinstance(input, Proxy):
            return recorded(self, input)
        check_input(input, self.num_channels, self.dims)
        out = self.bn(input)
        weight, bias = self._affine_for(out) if self.affine else (None, None)
        # not F.group_norm, which refuses a batch of one with a single value a group
        out = torch.group_norm(out, self.num_groups, weight, bias, self.eps)
        return _in_format_of(input, out)

    def _affine_for(self, input):
        """weight and bias, one a channel, in a dtype that the kernel takes."""
        weight, bias = self.weight, self.bias
        if not self.channel_affine:
            each = self.num_channels // self.num_groups
            weight = weight[:, None].expand(-1, each).flatten()
            bias = bias[:, None].expand(-1, each).flatten()
        # Half inputs with float32 parameters: autocast sees to it, and the CPU's kernel takes them.
        if not input.is_cpu and autocast_dtype(self.weight) is None:
            weight, bias = weight.to(input.dtype), bias.to(input.dtype)
        return weight, bias

    def _load_from_state_dict(self, state_dict, prefix, *args):
        theirs = prefix + "pbn."
        for key in [key for key in state_dict if key.startswith(theirs)]:
            state_dict[f"{prefix}bn.{key[len(theirs) :]}"] = state_dict.pop(key)
        for key in (prefix + "weight", prefix + "bias"):
            if key in state_dict and state_dict[key].shape == (1, self.num_groups, 1):
                state_dict[key] = state_dict[key].flatten()
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return (
            f"{self.num_channels}, num_groups={self.num_groups}, eps={self.eps}, "
            f"affine={self.affine}, channel_affine={self.channel_affine}"
        )


def _in_format_of(input, out):
    """In the input's memory format, which CUDA's group normalization loses (pytorch#111824)."""
    last = CHANNELS_LAST.get(input.dim(), torch.contiguous_format)
    if input.is_contiguous() or not input.is_contiguous(memory_format=last):
        return out
    return out.contiguous(memory_format=last)


class BatchChannelNorm1d(BatchChannelNorm):
    """Of (N, C) or (N, C, L); see `BatchChannelNorm`."""

    batch_norm = nn.BatchNorm1d
    dims = (2, 3)


class BatchChannelNorm2d(BatchChannelNorm):
    """Of (N, C, H, W); see `BatchChannelNorm`."""

    batch_norm = nn.BatchNorm2d
    dims = (4,)


class BatchChannelNorm3d(BatchChannelNorm):
    """Of (N, C, D, H, W); see `BatchChannelNorm`."""

    batch_norm = nn.BatchNorm3d
    dims = (5,)
