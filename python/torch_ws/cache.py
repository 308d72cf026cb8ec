"""What a standardized weight was made from, and the cache of it for evaluation.

A layer in eval mode that needs no gradients standardizes its weight once and keeps the result until
the weight, its gain or its shift is another tensor or holds other values.
"""

from __future__ import annotations

import torch
from torch import nn

from .ops import needs_reference


class Inputs:
    """A layer's formula and tensors at one moment; tells whether they are still what they were.

    By identity, version counter and memory, so `load_state_dict`, an optimizer's step, a replaced
    parameter and `.to()` are all noticed. Writes through `tensor.data` or a raw pointer are not:
    PyTorch counts no version for them.
    """

    __slots__ = ("formula", "kept", "marks", "tensors")

    def __init__(self, layer: nn.Module, tensors: tuple):
        self.formula = layer.formula
        self.tensors = tensors  # weight, gain, shift
        self.marks = [_mark(t) for t in tensors if t is not None]
        # `tensor.data = other` leaves identity and version as they are. It is told by the address,
        # which says something only as long as the old memory is not free to be used again.
        self.kept = [t.detach() for t in tensors if t is not None]

    def are(self, layer: nn.Module, tensors: tuple) -> bool:
        """True if `layer` would now, from `tensors`, compute the same."""
        old_weight, old_gain, old_shift = self.tensors
        weight, gain, shift = tensors
        return (
            weight is old_weight
            and gain is old_gain
            and shift is old_shift
            and (layer.formula is self.formula or layer.formula == self.formula)
            and self.unchanged()
        )

    def unchanged(self) -> bool:
        """True if nothing was written to the tensors since."""
        return self.marks == [_mark(t) for t in self.tensors if t is not None]


def _mark(tensor):
    return tensor._version, tensor.data_ptr(), tensor.stride()


class _Entry:
    __slots__ = ("dtype", "inputs", "result", "version")

    def __init__(self, layer, tensors, dtype):
        # A result made in inference mode could not be used outside of it.
        with torch.inference_mode(False), torch.no_grad():
            self.result = layer._standardize(tensors, dtype)
        self.version = self.result._version
        self.inputs = Inputs(layer, tensors)
        self.dtype = dtype

    def serves(self, layer, tensors, dtype):
        return (
            dtype == self.dtype
            and self.result._version == self.version  # nobody wrote to what we handed out
            and self.inputs.are(layer, tensors)
        )


def cacheable(layer: nn.Module, tensors: tuple) -> bool:
    """True if `layer`'s result may be kept: in eval mode, without gradients, on real tensors."""
    weight = tensors[0]
    if layer.training or type(weight) is not nn.Parameter or torch.compiler.is_compiling():
        return False
    grad_enabled = torch.is_grad_enabled()
    for tensor in tensors:
        # inference tensors have no version counter
        if tensor is not None and (
            tensor.is_inference() or (grad_enabled and tensor.requires_grad)
        ):
            return False
    return not (
        needs_reference()
        or torch.jit.is_tracing()
        # a captured graph would go on reading the result after the weight has changed
        or (weight.is_cuda and torch.cuda.is_current_stream_capturing())
    )


def cached(layer: nn.Module, tensors: tuple, dtype: torch.dtype | None) -> torch.Tensor:
    """The standardized weight of a cacheable layer: the kept one, or a new one that is kept."""
    entry = layer._cached
    if entry is None or not entry.serves(layer, tensors, dtype):
        entry = layer.__dict__["_cached"] = _Entry(layer, tensors, dtype)
    return entry.result
