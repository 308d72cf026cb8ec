"""The one thing that is timed: a provider, on a workload's tensors, in one direction.

    no_grad    standardize all weights; nothing is recorded for a backward
    forward    the same with autograd recording, as in a training step
    backward   the gradients alone; the forward before it is prepared outside the clock
    both       forward, then the gradients of every weight, through autograd

All results of a call stay alive until it ends, as the weights of a model do in a training step.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from ..common.timing import Call
from .providers import COPY, ELEMENTWISE, Provider, Standardize
from .workloads import Tensors, moved_bytes

DIRECTIONS = ("forward", "backward", "both")


def make_call(
    provider: Provider,
    standardize: Standardize | None,
    tensors: Tensors,
    direction: str,
    enter: Callable[[], None] = lambda: None,
    retain_graph: bool = False,
) -> Call:
    """`retain_graph`: `run` may follow one `prepare` any number of times (CUDA graphs need it)."""
    if provider.name == COPY:
        return _copy(tensors, direction)
    if provider.name == ELEMENTWISE:
        return _elementwise(tensors, direction)
    weights, grads = tensors.weights, tensors.grads
    if direction == "no_grad":
        constants = [weight.detach() for weight in weights]
        return Call(lambda _: standardize(constants), enter=enter)
    if direction == "forward":
        return Call(lambda _: standardize(weights), enter=enter)
    if direction == "backward":
        return Call(
            lambda outputs: torch.autograd.grad(outputs, weights, grads, retain_graph=retain_graph),
            prepare=lambda: standardize(weights),
            enter=enter,
        )
    return Call(lambda _: torch.autograd.grad(standardize(weights), weights, grads), enter=enter)


def _copy(tensors: Tensors, direction: str) -> Call:
    """Clones of as many bytes as the direction moves: half of them read, half of them written.

    forward clones the weight itself (with another output dtype: as many bytes); backward, which
    reads w and g and writes dw, clones one and a half times the weight; both does one, then the
    other.
    """
    parts = ("forward", "backward") if direction == "both" else (direction,)
    sources = []
    for part in parts:
        for weight, grad in zip(tensors.weights, tensors.grads, strict=True):
            moved = moved_bytes(part, weight.numel(), weight.dtype, grad.dtype)
            elements = math.ceil(moved / 2 / weight.dtype.itemsize)
            sources.append(torch.ones(elements, dtype=weight.dtype, device=weight.device))
    return Call(lambda _: [source.clone() for source in sources])


def _elementwise(tensors: Tensors, direction: str) -> Call:
    """For each weight one kernel that reads and writes the tensors of the direction."""
    pairs = [(w.detach(), g) for w, g in zip(tensors.weights, tensors.grads, strict=True)]

    def forward(_: None) -> list[torch.Tensor]:
        return [-w if w.dtype == g.dtype else w.to(g.dtype) for w, g in pairs]

    def backward(_: None) -> list[torch.Tensor]:
        return [w + g for w, g in pairs]  # in the wider dtype, the weight's

    if direction == "both":
        return Call(lambda _: forward(_) + backward(_))
    return Call(backward if direction == "backward" else forward)
