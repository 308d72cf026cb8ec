"""Gradients that nobody has read yet: what ``weight.grad`` is in a fused model.

A backward pass leaves g_hat there, the gradient of the standardized weight. That of the weight
itself is linear in it,

    g = factor * J(w) g_hat            J: the Jacobian of w -> w_hat (csrc/standardize.h)

and the optimizer's step makes it on its way (fused_step.py). To everybody else a `StandardizedGrad`
is g: PyTorch's dispatcher hands it every operation, in Python and in C++, and it has no memory that
could be read past that. Operations that a linear map lets through act on g_hat, norms are computed
without storing g, and whatever else comes computes g once, which then takes the place in
``weight.grad`` for good.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
from torch.utils._pytree import tree_map_only

from ..core.autograd import raw_backward
from ..core.private import (
    foreach_div,
    foreach_mul,
    foreach_norm,
    foreach_unscale,
    foreach_zero,
    new_wrapper,
    no_torch_function,
    references,
)
from ..core.update import raw_norms_many

if TYPE_CHECKING:
    from .fused_layer import FusedLayer

aten = torch.ops.aten


class StandardizedGrad(torch.Tensor):
    """The gradient of a weight: a tensor without memory, whose values are those of `deferred`."""

    deferred: Deferred
    __torch_function__ = no_torch_function

    @staticmethod
    def __new__(cls, deferred: Deferred, weight: torch.Tensor):
        self = new_wrapper(cls, weight)
        self.deferred = deferred
        return self

    def __init__(self, deferred, weight):
        pass

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
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


for _name in ("numpy", "__array__", "__dlpack__", "__deepcopy__", "__reduce_ex__", "data_ptr"):
    setattr(StandardizedGrad, _name, _of_memory(_name))
for _name in ("tolist", "untyped_storage"):
    setattr(StandardizedGrad, _name, _of_memory(_name))


def deferred_of(grad: torch.Tensor | None) -> Deferred | None:
    """What stands behind a gradient that has not been computed yet; None: it is an ordinary one."""
    if type(grad) is not StandardizedGrad or grad.deferred.value is not None:
        return None
    return grad.deferred


def value_of(grad: torch.Tensor) -> torch.Tensor:
    """The gradient as an ordinary tensor."""
    return grad.deferred.compute() if type(grad) is StandardizedGrad else grad


class Deferred:
    """A gradient g = factor * J(w) g_hat, not computed yet, and in the end its `value`.

    Does not keep the weight alive, whose own .grad refers to this.
    """

    __slots__ = (
        "_owner",
        "_squared",
        "_weight",
        "arguments",
        "factor",
        "gain",
        "gain_state",
        "grad",
        "state",
        "used",
        "value",
    )

    def __init__(self, owner: FusedLayer, weight, gain, arguments, grad, squared=None):
        self._owner = weakref.ref(owner)
        self._weight = weakref.ref(weight)
        self.state = _state(weight)
        # A copy: a step may come to the gain first.
        self.gain = None if gain is None else gain.detach().clone()
        self.gain_state = None if gain is None else _state(gain)
        self.arguments = arguments  # (channel_dim, eps, eps_mode, correction, center, scale)
        self.grad: torch.Tensor | None = grad  # g_hat, in the result's dtype or the weight's
        self.factor: torch.Tensor | None = None  # float32, one element
        self.value: torch.Tensor | None = None
        self.used = False  # by a step, which has changed the weight
        self._squared = squared  # |J(w) g_hat|^2, where it is known

    def weight(self) -> torch.Tensor:
        """The weight, as it was when the gradient came; raises if that is not so any more."""
        if self.used:
            raise RuntimeError(
                "weight.grad has been used up by the optimizer's step, which torch_ws.fuse made "
                "one with standardization: read it before the step, and call zero_grad() before "
                "the next backward pass"
            )
        if self.is_lost():
            raise RuntimeError(
                "weight.grad was not computed yet when its weight was written to or freed, and "
                "cannot be any more (torch_ws.fuse): read it first, as by "
                "weight.grad = weight.grad.clone()"
            )
        return self._weight()  # type: ignore[return-value]  # not lost

    def is_lost(self) -> bool:
        """True if it cannot be computed any more."""
        weight = self._weight()
        return self.used or weight is None or _state(weight) != self.state

    def compute(self) -> torch.Tensor:
        """The gradient, which takes the place of this in weight.grad."""
        if self.value is None:
            weight = self.weight()
            with torch.no_grad():
                self.value = raw_backward(self.grad, weight.detach(), self.gain, *self.arguments)
                if self.factor is not None:
                    self.value.mul_(self.factor)
                self._settle(weight)
        return self.value

    def replace(self, source: torch.Tensor) -> None:
        """Gives the gradient other values."""
        weight = self.weight()
        self.value = torch.empty_like(weight).copy_(source)
        self._settle(weight)

    def _settle(self, weight):
        self.grad = self.factor = self._squared = None
        current = weight.grad
        if type(current) is StandardizedGrad and current.deferred is self:
            weight.grad = self.value

    def scale(self, factor: torch.Tensor) -> None:
        """Multiplies by one number."""
        weight = self.weight()
        if weight.dtype == torch.float64:  # whose digits float32 has not
            self.own().mul_(factor)
            self._squared = None
        else:
            factor = factor.detach().to(weight.device, torch.float32)
            self.factor = factor if self.factor is None else self.factor * factor

    def own(self) -> torch.Tensor:
        """factor * g_hat in the weight's dtype, in memory that nobody else has."""
        weight = self.weight()
        fits = self.grad.dtype == weight.dtype and self.grad.stride() == weight.stride()
        if not (fits and references((self.grad,), 0) == _ALONE):
            self.grad = torch.empty_like(weight).copy_(self.grad)
        if self.factor is not None:
            self.grad.mul_(self.factor)
            self.factor = self._squared = None
        return self.grad

    def add(self, other: Deferred) -> None:
        """Adds another gradient of the same weight."""
        self.own().add_(other.grad if other.factor is None else other.grad * other.factor)
        self._squared = None

    def matches(self, other: Deferred) -> bool:
        """True if the two are of one weight, by the same map."""
        same = self._weight() is other._weight() and self.state == other.state
        return same and self.gain_state == other.gain_state and self.arguments == other.arguments

    def zero(self) -> None:
        """Makes it the gradient 0, also of a weight that has been stepped since."""
        weight = self._weight()
        self.used, self.value = False, torch.zeros_like(weight)
        self._settle(weight)

    def norm(self) -> torch.Tensor:
        """|g|, in the weight's dtype."""
        if self._squared is None:
            owner = self._owner()
            _measure([self, *(owner.pending() if owner is not None else ())])
        norm = self._squared.sqrt()  # type: ignore[union-attr]  # measured
        return norm if self.factor is None else norm * self.factor.abs().reshape(())


class _Holder:
    __slots__ = ("grad",)


def _alone():
    holder = _Holder()
    holder.grad = torch.zeros(1)
    return references((holder.grad,), 0)


_ALONE = _alone()


def _measure(some: Iterable[Deferred]) -> None:
    """Finds norms on the first's device in one call, which reads g_hat and w once."""
    some = list({deferred: None for deferred in some if deferred._squared is None})
    device = some[0].grad.device  # type: ignore[union-attr]  # deferred
    some = [deferred for deferred in some if deferred.grad.device == device]
    with torch.no_grad():
        squared = raw_norms_many(
            [deferred.grad for deferred in some],
            [deferred.weight().detach() for deferred in some],
            [deferred.gain for deferred in some],
            [deferred.arguments[0] for deferred in some],
            [float(number) for deferred in some for number in deferred.arguments[1:]],
            False,
        )
        for deferred, rows in zip(some, squared, strict=True):
            deferred._squared = rows.sum()


def _state(weight):
    """What tells whether the weight is still the same."""
    return weight._version, weight.data_ptr()


# ---- operations that need no value; each returns NotImplemented where it does ------------------


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
