"""Weight standardization in plain PyTorch operations: the meaning of every kernel here.

It runs on any device and dtype, is differentiable any number of times and in forward mode, and
works under every torch.func transform. The tests judge the kernels by it in float64.
"""

from __future__ import annotations

import math

import torch

from ._check import check, check_weight, resolve

Tensor = torch.Tensor


def standardize(
    weight: Tensor,
    gain: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    formula="paper",
    channel_dim: int = 0,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The same as :func:`torch_ws.standardize`, operation by operation."""
    formula = resolve(formula)
    check_weight(weight, channel_dim)
    arguments = formula.arguments(weight.numel() // (weight.shape[channel_dim] or 1) or 1)
    check(weight, gain, shift, channel_dim, *arguments, dtype)
    return standardize_op(weight, gain, shift, channel_dim, *arguments, dtype)


def standardize_op(
    weight, gain, shift, channel_dim, eps, eps_mode, correction, center, scale, dtype
):
    """The op's arguments, unchecked; see csrc/standardize.h for the mathematics."""
    channel_dim %= weight.dim()
    dims = [d for d in range(weight.dim()) if d != channel_dim]
    out = weight if weight.dtype == torch.float64 else weight.float()
    if weight.numel() > 0:
        out = _standardized(out, dims, eps, eps_mode, correction, center, scale)
    shape = [1] * weight.dim()
    shape[channel_dim] = -1
    if gain is not None:
        out = out * gain.to(out.dtype).view(shape)
    if shift is not None:
        out = out + shift.to(out.dtype).view(shape)
    return out.to(dtype or weight.dtype, copy=out is weight)


def _standardized(w, dims, eps, eps_mode, correction, center, scale):
    x = w
    if center:
        # A pivot within the channel's values keeps |mean| >> std from costing digits and a constant
        # channel exactly constant. Its gradient is zero, so it is detached.
        values = x.detach()
        pivot = values.mean(dims, keepdim=True)
        pivot = pivot.maximum(values.amin(dims, keepdim=True))
        pivot = pivot.minimum(values.amax(dims, keepdim=True))
        x = _centered(x - pivot, dims)
    fan_in = math.prod(x.shape[d] for d in dims)
    var = (x * x).sum(dims, keepdim=True) / (fan_in - correction)
    if eps_mode == 0:
        # sqrt has no derivative at 0; the formula's is 0 there
        d = torch.where(var == 0, 0, torch.where(var == 0, 1, var).sqrt()) + eps
    elif eps_mode == 1:
        d = var + eps
        d = torch.where(d == 0, 0, torch.where(d == 0, 1, d).sqrt())
    else:
        d = torch.where(var <= eps, eps, var)
        d = torch.where(d == 0, 0, torch.where(d == 0, 1, d).sqrt())
    out = x * torch.where(d == 0, 0, scale / torch.where(d == 0, 1, d))
    # It is centered already. Its gradient is not: a large mean of that would cost digits, too.
    return _centered(out, dims) if center else out


def _centered(x, dims):
    return x - x.mean(dims, keepdim=True)
