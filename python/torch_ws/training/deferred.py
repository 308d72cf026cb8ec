"""A gradient that is not computed yet: what stands behind ``weight.grad`` in a fused model.

A backward pass leaves g_hat there, the gradient of the standardized weight. That of the weight
itself is linear in it,

    g = factor * J(w) g_hat            J: the Jacobian of w -> w_hat (csrc/standardize.h)

and the optimizer's step makes it on its way (fused_step.py). standardized_grad.py has the tensor
that is g to everybody else.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

from ..core.autograd import raw_backward
from ..core.in_place import owns_memory
from ..core.private import local_tensor, references, with_local_tensor
from ..core.update import raw_norms_many
from ..layers.cache import version_of

if TYPE_CHECKING:
    from .fused_layer import FusedLayer


class Deferred:
    """A gradient g = factor * J(w) g_hat, not computed yet, and in the end its `value`.

    Of a sharded weight these are the rows of one rank. Does not keep the weight alive, whose own
    .grad refers to this.
    """

    __slots__ = (
        "_owned",
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
        self.grad: torch.Tensor = grad  # g_hat, in the result's dtype or the weight's
        self.factor: torch.Tensor | None = None  # float32, one element
        self.value: torch.Tensor | None = None
        self.used = False  # by a step, which has changed the weight
        self._squared = squared  # |J(w) g_hat|^2, where it is known
        self._owned = False  # `grad` is a tensor of this one's own

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
        return local_tensor(self._weight())  # not lost

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
                self._settle()
        return self.value

    def replace(self, source: torch.Tensor) -> None:
        """Gives the gradient other values."""
        self.value = torch.empty_like(self.weight()).copy_(source)
        self._settle()

    def _settle(self):
        """The gradient is `value` from now on."""
        self.factor = self._squared = None
        weight: Any = self._weight()
        self.grad = self.value  # type: ignore[assignment]  # there
        if getattr(local_tensor(weight.grad), "deferred", None) is self:
            weight.grad = with_local_tensor(weight.grad, self.value)

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
        if not self._owned:
            fits = self.grad.dtype == weight.dtype and self.grad.stride() == weight.stride()
            if not (fits and owns_memory(self.grad) and references((self.grad,), 0) == _ALONE):
                self.grad = torch.empty_like(weight).copy_(self.grad)
            self._owned = True
        if self.factor is not None:
            self.grad.mul_(self.factor)
            self.factor = self._squared = None
        return self.grad

    def add(self, other: Deferred) -> None:
        """Adds another gradient of the same weight."""
        self.own().add_(other.grad if other.factor is None else other.own())
        self._squared = None

    def matches(self, other: Deferred) -> bool:
        """True if the two are of one weight, by the same map."""
        same = self._weight() is other._weight() and self.state == other.state
        return same and self.gain_state == other.gain_state and self.arguments == other.arguments

    def zero(self) -> None:
        """Makes it the gradient 0, also of a weight that has been stepped since."""
        weight = self._weight()
        if weight is None:
            weight = self.weight()  # which raises
        self.used, self.value = False, torch.zeros_like(local_tensor(weight))
        self._settle()

    def norm(self) -> torch.Tensor:
        """|g|, in the weight's dtype."""
        if self._squared is None:
            owner = self._owner()
            _measure([self, *(owner.pending() if owner is not None else ())])
        norm = self._squared.sqrt()
        return norm if self.factor is None else norm * self.factor.abs().reshape(())


_HELD_ONCE = [torch.zeros(1)]
_ALONE = references((_HELD_ONCE[0],), 0)


def _measure(some: Iterable[Deferred]) -> None:
    """Finds norms on the first's device in one call, which reads g_hat and w once."""
    some = list({deferred: None for deferred in some if deferred._squared is None})
    device = some[0].grad.device
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
    return version_of(weight), local_tensor(weight).data_ptr()
