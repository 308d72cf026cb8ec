"""Adaptive gradient clipping (Brock et al. 2021) of the parameters that no kernel updates.

    g <- g * min(1, clip * max(|w|, eps) / max(|g|, 1e-6))       a norm for every unit

A unit is an output channel, dimension 0, of what has two dimensions or more, and else the whole
tensor: as in timm's adaptive_clip_grad. csrc/update.h has it for standardized weights.
"""

from __future__ import annotations

import torch


def clip_by_unit(
    parameter: torch.Tensor, clip: float, eps: float, grad_scale: torch.Tensor | None = None
) -> None:
    """Clips the parameter's gradient in place; grad_scale: by which the step will divide it."""
    grad: torch.Tensor = parameter.grad  # type: ignore[assignment]  # whoever calls has looked
    limit = _norm(parameter).clamp(min=eps) * clip
    norm = _norm(grad) if grad_scale is None else _norm(grad) / grad_scale
    factor = limit / norm.clamp(min=1e-6)
    grad.mul_(torch.where(norm < limit, torch.ones_like(factor), factor))


def _norm(tensor):
    dims = None if tensor.dim() <= 1 else tuple(range(1, tensor.dim()))
    return torch.linalg.vector_norm(tensor.detach(), dim=dims, keepdim=tensor.dim() > 1)
