"""The tensor that ``weight.grad`` is in a fused model, for which a `Deferred` stands in.

To everybody it is the gradient of the weight: PyTorch's dispatcher hands it every operation, in
Python and in C++, and it has no memory that could be read past that. Operations that a linear map
lets through act on what is deferred, norms are computed without storing the gradient, and whatever
else comes computes it once; it then takes the place in ``weight.grad`` for good.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch

from ..core.private import (
    foreach_div,
    foreach_mul,
    foreach_norm,
    foreach_unscale,
    foreach_zero,
    local_tensor,
    new_wrapper,
    no_torch_function,
    tree_map_only,
)
from .deferred import Deferred

aten = torch.ops.aten


class StandardizedGrad(torch.Tensor):
    """The gradient of a weight: a tensor without memory, whose values are those of `deferred`."""

    deferred: Deferred
    __torch_function__ = no_torch_function

    @staticmethod
    def __new__(cls, deferred: Deferred, weight: torch.Tensor):
        self: Any = new_wrapper(cls, weight)
        self.deferred = deferred
        return self

    def __init__(self, deferred, weight):
        pass

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[override]
        kwargs = kwargs or {}
        linear = _LINEAR.get(func)
        if linear is not None:
            result = linear(*args, **kwargs)
            if result is not NotImplemented:
                return result
        plain, options = tree_map_only(StandardizedGrad, value_of, (args, kwargs))
        result = func(*plain, **options)
        in_place = bool(args) and isinstance(args[0], StandardizedGrad) and result is plain[0]
        return args[0] if in_place else result

    def __repr__(self, *, tensor_contents=None):
        return repr(value_of(self))


def _of_memory(name: str) -> Callable:
    """The method of that name, which reads past the dispatcher, of the gradient itself."""

    def method(self, *args, **kwargs):
        return getattr(value_of(self), name)(*args, **kwargs)

    method.__name__ = name
    return method


_PAST_THE_DISPATCHER = ("numpy", "__array__", "__dlpack__", "__deepcopy__", "__reduce_ex__")
for _name in (*_PAST_THE_DISPATCHER, "data_ptr", "untyped_storage", "tolist"):
    setattr(StandardizedGrad, _name, _of_memory(_name))


def deferred_of(grad: torch.Tensor | None) -> Deferred | None:
    """What stands behind a gradient that has not been computed yet; None: it is an ordinary one.

    Of a DTensor: behind this rank's part.
    """
    grad = local_tensor(grad)
    if type(grad) is not StandardizedGrad or grad.deferred.value is not None:
        return None
    return grad.deferred


def value_of(grad: torch.Tensor) -> torch.Tensor:
    """The gradient as an ordinary tensor; of a DTensor this rank's part."""
    grad = local_tensor(grad)
    return grad.deferred.compute() if type(grad) is StandardizedGrad else grad


# Operations that need no value: each returns NotImplemented where it needs one after all.


def _detach(grad):
    deferred = deferred_of(grad)
    return NotImplemented if deferred is None else StandardizedGrad(deferred, grad)


def _add(grad, other, *, alpha=1):
    mine, others = deferred_of(grad), deferred_of(other)
    if mine is None or others is None or alpha != 1 or not mine.matches(others):
        return NotImplemented
    total = copy.copy(mine)
    total.grad = mine.own().clone()
    total.add(others)
    return StandardizedGrad(total, mine.weight())


def _add_(grad, other, *, alpha=1):
    mine, others = deferred_of(grad), deferred_of(other)
    if mine is None or others is None or alpha != 1 or not mine.matches(others):
        return NotImplemented
    mine.add(others)
    return grad


def _mul_(grad, other):
    factor = _number(grad, other)
    return NotImplemented if factor is None else _scale([grad], factor, grad)


def _div_(grad, other):
    factor = _number(grad, other)
    return NotImplemented if factor is None else _scale([grad], factor.reciprocal(), grad)


def _foreach_mul_(grads, other):
    return _each(foreach_mul, grads, other, lambda factor: factor)


def _foreach_div_(grads, other):
    return _each(foreach_div, grads, other, lambda factor: factor.reciprocal())


def _number(grad, other) -> torch.Tensor | None:
    """The one number that `other` is, as a tensor of its own."""
    if deferred_of(grad) is None:
        return None
    if isinstance(other, torch.Tensor):
        one = type(other) is torch.Tensor and other.numel() == 1 and other.dim() <= grad.dim()
        return other.detach().reshape(()).clone() if one else None
    return torch.full((), other, dtype=torch.float64, device=grad.device)


def _scale(grads, factor, result=None):
    for grad in grads:
        grad.deferred.scale(factor)
    return result


def _each(operation, grads, other, factor_of):
    """A foreach operation by one number, on ordinary gradients and deferred ones alike."""
    deferred = [grad for grad in grads if deferred_of(grad) is not None]
    factor = _number(deferred[0], other) if deferred else None
    if factor is None:
        return NotImplemented
    others = [value_of(grad) for grad in grads if deferred_of(grad) is None]
    if others:
        operation(others, other)
    return _scale(deferred, factor_of(factor))


def _zero_(grad):
    if type(grad) is not StandardizedGrad or grad.deferred.value is not None:
        return NotImplemented
    grad.deferred.zero()
    return grad


def _foreach_zero_(grads):
    for grad in grads:
        if _zero_(grad) is NotImplemented:
            value_of(grad).zero_()


def _copy_(grad, source, non_blocking=False):
    deferred = deferred_of(grad)
    if deferred is None:
        return NotImplemented
    deferred.replace(value_of(source))
    return grad


def _norm(grad, ord=2, dim=None, keepdim=False, *, dtype=None):
    if deferred_of(grad) is None or ord != 2 or dim or keepdim or dtype not in (None, grad.dtype):
        return NotImplemented
    return grad.deferred.norm()


def _foreach_norm(grads, ord=2, dtype=None):
    if ord != 2 or dtype is not None:
        return NotImplemented
    others = [value_of(grad) for grad in grads if deferred_of(grad) is None]
    norms = iter(foreach_norm(others, ord) if others else ())
    return [next(norms) if deferred_of(g) is None else g.deferred.norm() for g in grads]


def _unscale_(grads, found_inf, inv_scale):
    """GradScaler's: a row of g is not finite where one of g_hat is not."""
    tensors = [
        value_of(grad) if deferred_of(grad) is None else grad.deferred.own() for grad in grads
    ]
    for grad in grads:
        if deferred_of(grad) is not None:
            grad.deferred._squared = None
    foreach_unscale(tensors, found_inf, inv_scale)


_LINEAR: dict = {
    aten.detach.default: _detach,
    aten.alias.default: _detach,
    aten.add.Tensor: _add,
    aten.add_.Tensor: _add_,
    aten.mul_.Tensor: _mul_,
    aten.mul_.Scalar: _mul_,
    aten.div_.Tensor: _div_,
    aten.div_.Scalar: _div_,
    foreach_mul.Tensor: _foreach_mul_,
    foreach_mul.Scalar: _foreach_mul_,
    foreach_div.Tensor: _foreach_div_,
    foreach_div.Scalar: _foreach_div_,
    aten.zero_.default: _zero_,
    foreach_zero.default: _foreach_zero_,
    aten.copy_.default: _copy_,
    aten.linalg_vector_norm.default: _norm,
    foreach_norm.Scalar: _foreach_norm,
    foreach_unscale.default: _unscale_,
}
