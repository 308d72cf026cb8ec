"""Weight standardization in plain PyTorch operations: the meaning of every kernel here.

It runs on any device and dtype, is differentiable any number of times and in forward mode, and
works under every torch.func transform. The tests judge the kernels by it in float64.
"""

from __future__ import annotations

import math

import torch

from ._check import check, check_weight
from .formulas import Formula, FormulaName, resolve

Tensor = torch.Tensor

_LIMITS = {torch.float32: 126, torch.float64: 1022}  # exponents of numbers with all their digits


def standardize(
    weight: Tensor,
    gain: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    formula: FormulaName | Formula = "paper",
    channel_dim: int = 0,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The same as [`torch_ws.standardize`][], operation by operation."""
    formula = resolve(formula)
    check_weight(weight, channel_dim)
    arguments = formula.arguments(weight.numel() // (weight.shape[channel_dim] or 1) or 1)
    check(weight, gain, shift, channel_dim, *arguments, dtype)
    return standardize_op(weight, gain, shift, channel_dim, *arguments, dtype)


def standardize_op(
    weight, gain, shift, channel_dim, eps, eps_mode, correction, center, scale, dtype=None
):
    """The op's arguments, unchecked; see csrc/standardize.h for the mathematics."""
    channel_dim %= weight.dim()
    dims = [d for d in range(weight.dim()) if d != channel_dim]
    out = weight.to(wide(weight.dtype))
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
    values = w.detach()
    low, high = values.amin(dims, keepdim=True), values.amax(dims, keepdim=True)
    if center:  # a constant channel is 0, whatever its value, and eps alone says what is in range
        constant = low.where(low == high, 0)
        w, low, high = w - constant, low - constant, high - constant
    fan_in = w.numel() // low.numel()
    eps_power = 1 if eps_mode == 0 else 2  # "std" adds eps to a value, the others to its square
    exponent = _exponent(low, high, eps, eps_power, center)
    unit = 2.0**exponent
    x, low, high = w * unit, low * unit, high * unit
    if eps > 0:
        fraction, eps_exponent = math.frexp(eps)
        eps = fraction * 2.0 ** (eps_exponent + eps_power * exponent)
    if center:
        # A pivot within the channel's values keeps |mean| >> std from costing digits and a constant
        # channel exactly constant. Its gradient is zero, so it is detached.
        pivot = x.detach().mean(dims, keepdim=True).maximum(low).minimum(high)
        x = _centered(x - pivot, dims)
    var = (x * x).sum(dims, keepdim=True) / (fan_in - correction)
    d = denominator(var, eps, eps_mode)
    out = x * torch.where(d == 0, 0, scale / torch.where(d == 0, 1, d))
    # It is centered already. Its gradient is not: a large mean of that would cost digits, too.
    return _centered(out, dims) if center else out


def denominator(var, eps, eps_mode):
    """The formula's d for variances; `eps_mode` is an index into formulas.EPS_MODES."""
    if eps_mode == 0:
        return _root(var) + eps
    return _root(var + eps if eps_mode == 1 else torch.where(var <= eps, eps, var))


def _root(x):
    """The square root, with a derivative of 0 at 0, where it has none."""
    return torch.where(x == 0, 0, torch.where(x == 0, 1, x).sqrt())


def _exponent(low, high, eps, eps_power, center):
    """The exponents of the powers of two by which the channels are multiplied.

    Squares of very large or small values are out of the dtype's range. Multiplied, the channel's
    largest distance (its largest value, where center is False) or eps is about 1, and the result
    the same.
    """
    limit = _LIMITS[low.dtype]
    size = high / 2 - low / 2 if center else high.maximum(-low)
    exponent = -size.log2().floor()
    of_eps = -(-math.frexp(eps)[1] // eps_power) if eps > 0 else -limit
    return exponent.clamp(-limit, min(-of_eps, limit))


def _centered(x, dims):
    return x - x.mean(dims, keepdim=True)


def wide(dtype):
    """The dtype of the statistics."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def unit_of(grad, weight, dims):
    """For each channel a power of two, in the dtype of the statistics.

    Times it, `grad` is about 1, or as far from it as keeps the weight's gradient, which is as large
    as grad / weight, in range.
    """
    grad, weight = (t.detach().to(wide(t.dtype)) for t in (grad, weight))
    if grad.numel() == 0:
        return grad.new_ones([1 if d in dims else n for d, n in enumerate(grad.shape)])
    limit = _LIMITS[grad.dtype]
    of_grad, of_weight = (
        t.abs().amax(dims, keepdim=True).log2().floor().clamp(-limit, limit) for t in (grad, weight)
    )
    room = limit - 8
    return 2.0 ** (of_weight - of_weight.clamp(-room, room) - of_grad).clamp(-limit, limit)
