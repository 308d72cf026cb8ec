"""torch.optim's optimizers as the commands run them, and gradient clipping before their step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

LEARNING_RATE = 1e-6  # while timed: the weights stay about what they were; the work is the same
MAX_NORM = 0.1  # of all gradients together: less than any network here has, so that it clips
AGC = 0.01  # NFNets': of a unit's gradient, in norms of the unit
AGC_EPS = 1e-3


@dataclass(frozen=True)
class Kind:
    title: str
    make: type[torch.optim.Optimizer]
    options: dict[str, float]
    states: tuple[str, ...]  # of a weight's size; the gradients' moving average is the first


KINDS = {
    "sgd": Kind(
        "SGD with momentum",
        torch.optim.SGD,
        {"lr": LEARNING_RATE, "momentum": 0.9, "weight_decay": 5e-5},
        ("momentum_buffer",),
    ),
    "adamw": Kind(
        "AdamW",
        torch.optim.AdamW,
        {"lr": LEARNING_RATE, "weight_decay": 0.01, "eps": 1e-8},
        ("exp_avg", "exp_avg_sq"),
    ),
}
IMPLEMENTATIONS = {"default": {}, "foreach": {"foreach": True}, "fused": {"fused": True}}


def make_optimizer(
    kind: str, parameters: Iterable[torch.Tensor], implementation: str, **numbers: float
) -> torch.optim.Optimizer:
    """`numbers` instead of those that are timed."""
    options = {**KINDS[kind].options, **numbers, **IMPLEMENTATIONS[implementation]}
    return KINDS[kind].make(parameters, **options)


def clip_by_norm(parameters: Iterable[torch.Tensor]) -> None:
    torch.nn.utils.clip_grad_norm_(parameters, MAX_NORM)


@torch.no_grad()
def clip_by_unit(parameters: Iterable[torch.Tensor]) -> None:
    """Adaptive gradient clipping, Brock et al. 2021, by the operations of timm's.

    A unit is an output channel, and of biases, gains and the like the whole.
    """
    for parameter in parameters:
        grad = parameter.grad
        if grad is None:
            continue
        limit = _unit_norm(parameter).clamp_(min=AGC_EPS).mul_(AGC)
        norm = _unit_norm(grad)
        clipped = grad * (limit / norm.clamp(min=1e-6))
        grad.copy_(torch.where(norm < limit, grad, clipped))


def _unit_norm(tensor):
    if tensor.dim() <= 1:
        return tensor.norm()
    return tensor.norm(2.0, dim=tuple(range(1, tensor.dim())), keepdim=True)


Clip = Callable[[Iterable[torch.Tensor]], None]
CLIPS: dict[str, Clip] = {
    "none": lambda parameters: None,
    "norm": clip_by_norm,
    "agc": clip_by_unit,
}
