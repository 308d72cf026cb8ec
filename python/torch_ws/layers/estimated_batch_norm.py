"""Batch normalization by running estimates, in training too: for batches of one or two.

A batch of one has no statistics worth normalizing by. Its statistics move estimates instead, and
the estimates normalize. No gradient flows through them, so the backward pass is that of a fixed
affine map, and PyTorch's own kernel for batch normalization in evaluation is all that is needed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Proxy
from torch.types import Device

from .._check import check_eps, check_flags, check_float, check_input, check_positive


class EstimatedBatchNorm(nn.Module):
    """Batch normalization by running estimates of mean and variance, in training too.

    Equivalent to, for a 4-dimensional x:

        if self.training:
            with torch.no_grad():
                centered = x - running_mean[:, None, None]
                running_mean.lerp_(x.mean((0, 2, 3)), rate)
                running_var.lerp_(centered.square().mean((0, 2, 3)), rate)
        y = F.batch_norm(x, running_mean, running_var, weight, bias, eps=eps)

    The estimates are constants to autograd, and the backward pass stays right when the layer is
    called again before it.

    Args:
        num_channels: C.
        eps: added to the variance.
        rate: its value at the start, in [0, 1]. It is a buffer, which a schedule sets in place:
            ``layer.rate.fill_(0.02)``.
        affine: whether there are learnable parameters `weight`, initially 1, and `bias`, 0, of
            shape (C,).
        device, dtype: of the parameters and buffers.

    State: the keys of ``torch.nn.BatchNorm2d``, whose checkpoints load, and ``rate``.

    Shapes: input (N, C, ...) of any number of dimensions from 2 on, also empty, which changes
    nothing; the output has its shape, dtype and memory format. The input has the layer's dtype, or
    is float16 or bfloat16 for a float32 layer, which keeps its statistics in float32.

    Raises:
        TypeError, ValueError: for a wrong argument; ValueError for an input of fewer than 2
            dimensions, of other than C channels or of another dtype. The estimates are unchanged.

    Source: EstBN in the authors' README, github.com/joe-siyuan-qiao/Batch-Channel-Normalization;
    Qiao et al., arXiv:1903.10520.
    """

    weight: torch.Tensor  # None without affine
    bias: torch.Tensor
    running_mean: torch.Tensor
    running_var: torch.Tensor
    num_batches_tracked: torch.Tensor
    rate: torch.Tensor

    def __init__(
        self,
        num_channels: int,
        eps: float = 1e-5,
        rate: float = 0.1,
        affine: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ):
        check_positive("num_channels", num_channels)
        check_eps(eps)
        check_float("rate", rate)
        check_flags(affine=affine)
        if not 0 <= rate <= 1:
            raise ValueError(f"rate must be in [0, 1], got {rate}")
        super().__init__()
        self.num_channels = num_channels
        self.eps = eps
        self.affine = affine
        self.initial_rate = rate
        options: dict = {"device": device, "dtype": dtype}
        for name in ("weight", "bias"):
            vector = nn.Parameter(torch.empty(num_channels, **options)) if affine else None
            self.register_parameter(name, vector)
        self.register_buffer("running_mean", torch.empty(num_channels, **options))
        self.register_buffer("running_var", torch.empty(num_channels, **options))
        count = torch.empty((), device=device, dtype=torch.long)
        self.register_buffer("num_batches_tracked", count)
        self.register_buffer("rate", torch.empty((), **options))
        self.reset_parameters()

    def reset_running_stats(self) -> None:
        """Mean 0, variance 1, no batch seen; the rate stays."""
        self.running_mean.zero_()
        self.running_var.fill_(1)
        self.num_batches_tracked.zero_()

    def reset_parameters(self) -> None:
        """Everything as after construction, the rate too."""
        self.reset_running_stats()
        self.rate.fill_(self.initial_rate)
        if self.affine:
            nn.init.ones_(self.weight)
            nn.init.zeros_(self.bias)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if isinstance(input, Proxy):
            return recorded(self, input)
        check_input(input, self.num_channels)
        self._check_dtype(input)
        update = self.training and input.numel() > 0
        mean, var = self._moved(input) if update else (self.running_mean, self.running_var)
        out = F.batch_norm(input, mean, var, self.weight, self.bias, eps=self.eps)
        if update:  # only now: whatever F.batch_norm refuses has changed nothing
            self.running_mean.copy_(mean)
            self.running_var.copy_(var)
            self.num_batches_tracked.add_(1)
        return out

    @torch.no_grad()
    def _moved(self, input):
        """The estimates after this batch: new tensors, for backward keeps what forward used.

        By mean and square instead of torch.var_mean, which takes many times as long on the CPU.
        """
        kept_as = self.running_mean.dtype
        dtype = torch.promote_types(kept_as, torch.float32)
        old_mean, old_var = self.running_mean.to(dtype), self.running_var.to(dtype)
        dims = [0, *range(2, input.dim())]
        centered = input - old_mean.view(-1, *[1] * (input.dim() - 2))
        rate = self.rate.to(dtype)
        mean = old_mean + rate * centered.mean(dims)
        var = old_var.lerp(centered.square_().mean(dims), rate)
        return mean.to(kept_as), var.to(kept_as)

    def _check_dtype(self, input):
        own = self.running_mean.dtype
        half = input.dtype in (torch.float16, torch.bfloat16)
        if input.dtype != own and not (half and own == torch.float32):
            raise ValueError(
                f"input must have the layer's dtype {own}, or be float16 or bfloat16 for a float32 "
                f"layer; got {input.dtype}"
            )

    def _load_from_state_dict(self, state_dict, prefix, *args):
        speed = state_dict.pop(prefix + "estbn_moving_speed", None)
        if speed is not None:
            state_dict[prefix + "rate"] = speed.reshape(())
        kept = {"rate": self.initial_rate, "num_batches_tracked": 0}
        for name, initial in kept.items():
            own = getattr(self, name)
            value = torch.tensor(initial, dtype=own.dtype) if own.is_meta else own
            state_dict.setdefault(prefix + name, value)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return (
            f"{self.num_channels}, eps={self.eps}, initial_rate={self.initial_rate}, "
            f"affine={self.affine}"
        )


def recorded(module: nn.Module, input: Proxy) -> Proxy:
    """What torch.fx's tracer records of a normalization: a call of the module, as of torch.nn's."""
    path = input.tracer.path_of_module(module)  # type: ignore[attr-defined]  # a Tracer's
    return input.tracer.create_proxy("call_module", path, (input,), {})
