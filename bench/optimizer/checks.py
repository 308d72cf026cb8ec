"""Before an update is timed: are two of them right?

Everything that a variant writes is compared with the same in float64: the reference's backward,
clipping, torch.optim's default implementation, and the reference's forward of the new weights. The
numbers of the optimizer are such that every term of an update changes it by a percent or more.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch_ws.reference

from ..common.optimizers import CLIPS, KINDS, MAX_NORM, make_optimizer
from ..weights.checks import TOLERANCE, error, first_of_every_shape
from ..weights.workloads import Tensors
from .variants import COPY, FORMULA, Lists, Variant

STEPS = 2
NUMBERS = {
    "sgd": {"lr": 0.1, "weight_decay": 0.1},
    "adamw": {"lr": 0.01, "weight_decay": 1.0, "eps": 1e-3},
}
# torch's float32 norm of millions of gradients loses digits, in which clip_grad_norm_ is off
NORM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Check:
    """max|x - x64| / max|x64| of everything that is written, in epsilons of its dtype."""

    errors: dict[str, float]

    @property
    def error(self) -> float:
        return max(self.errors.values())

    @property
    def passed(self) -> bool:
        # a NaN fails, since it compares as false
        return all(error <= tolerance(name) for name, error in self.errors.items())

    @property
    def verdict(self) -> str:
        errors = ", ".join(f"{name} {error:.1e}" for name, error in self.errors.items())
        return f"in epsilons: {errors}, where {TOLERANCE} are allowed"


def tolerance(name: str) -> float:
    if name == "grad":
        return NORM_TOLERANCE / torch.finfo(torch.float32).eps
    return TOLERANCE


def check(variant: Variant, tensors: Tensors, kind: str) -> Check:
    """Updates all weights and compares the first of every shape. `copy` has nothing to compare."""
    if variant.name == COPY:
        return Check({})
    update = variant.make(tensors.clone(), kind, NUMBERS[kind])
    for _ in range(STEPS):
        update.run()
    indices = first_of_every_shape(tensors.weights)
    expected = reference(variant, tensors, kind, indices)
    errors = {}
    for name, found in update.results.items():
        pairs = zip([found[i] for i in indices], expected[name], strict=True)
        each = [error(a, e) / torch.finfo(a.dtype).eps for a, e in pairs]
        errors[name] = torch.tensor(each).amax().item()  # amax hands a NaN on
    return Check(errors)


def reference(variant: Variant, tensors: Tensors, kind: str, indices: list[int]) -> Lists:
    """What the variants write, in float64."""
    weights = [tensors.weights[i].detach().double().requires_grad_() for i in indices]
    grads = [tensors.grads[i].double() for i in indices]
    for weight, grad in zip(weights, grads, strict=True):
        weight.grad = grad.clone()
    if variant.name == "clip_grad_norm":
        norm = sum(grad.double().square().sum() for grad in tensors.grads).sqrt()
        return {"grad": [grad * min(1.0, MAX_NORM / norm.item()) for grad in grads]}
    if variant.name == "norms":
        _standardize(weights, grads)
        return {"squared_norms": [w.grad.square().flatten(1).sum(1) for w in weights]}
    optimizer = make_optimizer(kind, weights, "default", **NUMBERS[kind])
    for _ in range(STEPS):
        if variant.formula:
            _standardize(weights, grads)
        CLIPS[variant.clip](weights)
        optimizer.step()
    found = {name: [optimizer.state[w][name] for w in weights] for name in KINDS[kind].states}
    outs = [torch_ws.reference.standardize(weight, formula=FORMULA) for weight in weights]
    return {"weight": weights, **found, "standardized": outs}


def _standardize(weights, grads):
    for weight, grad in zip(weights, grads, strict=True):
        weight.grad = None
        torch_ws.reference.standardize(weight, formula=FORMULA).backward(grad)
