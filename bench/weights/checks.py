"""Before anything is timed: is it right, and what does it keep in memory until the backward?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch_ws.reference
from torch.autograd.graph import saved_tensors_hooks

from .providers import Standardize
from .workloads import Tensors

# In units of the output dtype's epsilon. Another formula, or a sum that cancels, is off by far
# more; a formula that stays in bfloat16 from end to end is off by a few.
TOLERANCE = 32


@dataclass(frozen=True)
class Check:
    """Errors are max|x - x64| / max|x64|, against the reference in float64."""

    error_forward: float
    error_gradient: float
    tolerance: float
    saved_bytes: int
    weight_bytes: int

    @property
    def saved_ratio(self) -> float:
        return self.saved_bytes / self.weight_bytes

    @property
    def passed(self) -> bool:
        # a NaN fails, since it compares as false
        return self.error_forward <= self.tolerance and self.error_gradient <= self.tolerance

    @property
    def verdict(self) -> str:
        return (
            f"error {self.error_forward:.1e} forward and {self.error_gradient:.1e} gradient, "
            f"where {self.tolerance:.1e} is allowed"
        )


def check(standardize: Standardize, formula: str, tensors: Tensors) -> Check:
    """Runs all weights and compares the first of every shape."""
    weights, grads = tensors.weights, tensors.grads
    saved_bytes, outputs = run_counting_saved(standardize, weights)
    gradients = torch.autograd.grad(outputs, weights, grads)
    errors = []
    for index in first_of_every_shape(weights):
        weight = weights[index].detach().double().requires_grad_()
        expected = torch_ws.reference.standardize(weight, formula=formula)
        (gradient,) = torch.autograd.grad(expected, weight, grads[index].double())
        errors.append((error(outputs[index], expected), error(gradients[index], gradient)))
    forward, gradient = torch.tensor(errors).amax(0).tolist()  # amax hands a NaN on
    # the coarser of the two dtypes: grads are in the outputs'
    epsilon = max(torch.finfo(t.dtype).eps for t in (weights[0], grads[0]))
    weight_bytes = sum(weight.nbytes for weight in weights)
    return Check(forward, gradient, TOLERANCE * epsilon, saved_bytes, weight_bytes)


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    expected = expected.detach()
    return ((actual.detach().double() - expected).abs().max() / expected.abs().max()).item()


def first_of_every_shape(weights: list[torch.Tensor]) -> list[int]:
    first = {}
    for index, weight in enumerate(weights):
        first.setdefault(weight.shape, index)
    return list(first.values())


def run_counting_saved(standardize: Standardize, weights: list[torch.Tensor]):
    """The bytes that a forward keeps alive for its backward beyond the weights, and its outputs.

    Whole storages are counted, each once: a saved view keeps all of its storage alive.
    """
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = standardize(weights)
    for weight in weights:
        storages.pop(weight.untyped_storage().data_ptr(), None)
    return sum(storages.values()), outputs
