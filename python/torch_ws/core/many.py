"""Many weights at once: the list forms of the function, of its autograd node and of the op.

On the CPU all rows of all weights share one parallel region, split by bytes; on CUDA they share a
launch. Results are bitwise those of [`torch_ws.standardize`][].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.fx.proxy import TraceError

from .. import reference
from .._check import (
    allocate_again,
    check_weight,
    explain,
    explain_backward,
    explain_into,
    naming,
)
from ..formulas import Formula, FormulaName, resolve
from .autograd import differentiable_backward, library
from .check_many import check_all, check_all_backward, check_all_into, check_lists, options_of
from .in_place import is_writable
from .private import direct, direct_apply, needs_reference
from .standardize import fan_in_of, standardize

Tensor = torch.Tensor

raw_forward_many = direct(torch.ops.ws.forward_many)
_forward_into = direct(torch.ops.ws.forward_into)
_backward_many = direct(torch.ops.ws.backward_many)
_backward_in_place = direct(torch.ops.ws.backward_in_place)


def raw_forward_into(outs, weights, gains, shifts, channel_dims, formulas):
    """ws::forward_into, counted as a write to `outs`, and in words what was wrong.

    Nothing is written where anything is refused.
    """
    try:
        _forward_into(outs, weights, gains, shifts, channel_dims, formulas)
    except RuntimeError:
        check_all_into(outs, weights, gains, shifts, channel_dims, formulas, explain_into)
        allocate_again(outs)
        raise
    torch.autograd.graph.increment_version(outs)


def raw_backward_many(grads, weights, gains, channel_dims, formulas, affine, in_place=False):
    """ws::backward_many, and in words what was wrong; by ws::backward_in_place in grads' memory."""
    try:
        if in_place:
            vectors = _backward_in_place(grads, weights, gains, channel_dims, formulas, affine)
            return [*grads, *vectors]
        return _backward_many(grads, weights, gains, channel_dims, formulas, affine)
    except RuntimeError:
        check_all_backward(grads, weights, gains, channel_dims, formulas, explain_backward)
        allocate_again(weights, grads=grads)
        raise


def standardize_many(
    weights: Sequence[Tensor],
    gains: Sequence[Tensor | None] | None = None,
    shifts: Sequence[Tensor | None] | None = None,
    *,
    formula: FormulaName | Formula | Sequence[FormulaName | Formula] = "paper",
    channel_dim: int | Sequence[int] = 0,
    dtype: torch.dtype | None = None,
) -> list[Tensor]:
    """Standardizes a list of weights, such as all of a model's, in one call. Differentiable.

    Equivalent to ``[standardize(w, g, s, formula=f, channel_dim=d, dtype=dtype) for ...]``, to the
    last bit, but with one pass through PyTorch's dispatcher, one parallel region on the CPU or one
    launch on CUDA (a few for hundreds of weights, several dtypes or rows of many thousands), and
    one node of the autograd graph. That node runs when the gradients of all results are there; a
    result that gets none costs nothing.

    Args:
        weights: tensors as for `standardize`, on one device; shapes and dtypes may differ.
        gains: for each weight a (C,) tensor or None. None: no gains.
        shifts: likewise.
        formula: one for all, or a sequence of one for each weight.
        channel_dim: one for all, or a sequence of one for each weight.
        dtype: the results' dtype; by default each weight's own.

    Returns:
        A list of tensors of the weights' shapes and strides; empty for an empty list.

    Raises:
        TypeError, ValueError, NotImplementedError: as `standardize`, naming the weight by its
            index; ValueError for lists of different lengths and for weights on several devices.
    """
    weights = _listed("weights", weights)
    count = len(weights)
    if count == 0:
        return []
    gains = [None] * count if gains is None else _listed("gains", gains, count)
    shifts = [None] * count if shifts is None else _listed("shifts", shifts, count)
    if isinstance(formula, str):
        formula = resolve(formula)  # once
    formulas = _for_each("formula", formula, (str, Formula), count)
    channel_dims = _for_each("channel_dim", channel_dim, int, count)
    try:
        if torch.jit.is_tracing():
            raise TraceError("TorchScript's lists of tensors have no None in them")
        scalars = scalars_of(weights, formulas, channel_dims)
        arguments = (channel_dims, scalars, dtype)
        traced = torch.compiler.is_compiling()
        if traced and not torch.onnx.is_in_onnx_export():  # ONNX has no such op
            return torch.ops.ws.standardize_many(weights, gains, shifts, *arguments)
        known = weights[0].is_cpu or weights[0].is_cuda or weights[0].is_meta
        if traced or needs_reference() or not known:
            check_all(weights, gains, shifts, *arguments)
            return reference_many(weights, gains, shifts, *arguments)
        if torch.is_grad_enabled() and any(
            t is not None and t.requires_grad for t in (*weights, *gains, *shifts)
        ):
            return list(apply_many(arguments, *weights, *gains, *shifts))
        return raw_forward_many(weights, gains, shifts, *arguments)
    except TraceError:  # from torch.fx too, whose tensors have no device
        each = zip(weights, gains, shifts, formulas, channel_dims, strict=True)
        return [
            standardize(w, g, s, formula=f, channel_dim=d, dtype=dtype) for w, g, s, f, d in each
        ]
    except (AttributeError, RuntimeError, TypeError, IndexError):
        for i, (weight, dim) in enumerate(zip(weights, channel_dims, strict=True)):
            with naming(f"weights[{i}]"):
                check_weight(weight, dim)
        scalars = scalars_of(weights, formulas, channel_dims)
        check_all(weights, gains, shifts, channel_dims, scalars, dtype, each=explain)
        allocate_again(weights, dtype)
        raise


class StandardizeMany(torch.autograd.Function):
    """One node for all weights, called by `apply_many` with ``(arguments, *tensors)``.

    arguments: the op's ``(channel_dims, formulas, dtype)``, and optionally the results, where they
    have been computed before; tensors: weights, gains and shifts.
    """

    @staticmethod
    def forward(ctx, arguments, *tensors):
        count = len(tensors) // 3
        weights, gains, shifts = tensors[:count], tensors[count : 2 * count], tensors[2 * count :]
        ctx.save_for_backward(*weights, *gains)
        ctx.arguments = arguments[:3]
        ctx.set_materialize_grads(False)
        if len(arguments) == 4:
            return tuple(arguments[3])
        return tuple(raw_forward_many(weights, gains, shifts, *arguments))

    @staticmethod
    def backward(ctx, *grads):
        count = len(grads)
        saved = ctx.saved_tensors  # once: checkpointing allows no second look
        weights, gains = saved[:count], saved[count:]
        needed = ctx.needs_input_grad[1:]
        channel_dims, formulas, dtype = ctx.arguments
        results = [None] * (3 * count)
        present = [i for i, grad in enumerate(grads) if grad is not None]
        if torch.is_grad_enabled() or needs_reference():
            for i in present:
                results[i::count] = differentiable_backward(
                    needed[i::count],
                    grads[i],
                    weights[i],
                    gains[i],
                    (channel_dims[i], *formulas[5 * i : 5 * i + 5], dtype),
                )
            return None, *results
        affine = any(needed[count:])
        writable = {i for i in present if is_writable(grads, i, weights[i])}
        for in_place, chosen in (True, writable), (False, set(present) - writable):
            if not chosen:
                continue
            gradients = raw_backward_many(
                [grads[i] for i in chosen],
                [weights[i] for i in chosen],
                [gains[i] for i in chosen],
                [channel_dims[i] for i in chosen],
                [number for i in chosen for number in formulas[5 * i : 5 * i + 5]],
                affine,
                in_place,
            )
            for kind in range(3 if affine else 1):
                for k, i in enumerate(chosen):
                    if needed[kind * count + i]:
                        results[kind * count + i] = gradients[kind * len(chosen) + k]
        return None, *results


apply_many = direct_apply(StandardizeMany)  # after needs_reference()


def _listed(name, values, count=None):
    if isinstance(values, torch.Tensor) or not isinstance(values, Sequence):
        raise TypeError(f"{name} must be a list or tuple of tensors, got {type(values).__name__}")
    if count is not None and len(values) != count:
        raise ValueError(f"{name} must have one entry a weight, {count}; got {len(values)}")
    return list(values)


def _for_each(name, value, single, count):
    if isinstance(value, single):
        return [value] * count
    if not isinstance(value, Sequence):
        raise TypeError(f"{name} must be one value or one for each weight, got {value!r}")
    if len(value) != count:
        raise ValueError(f"{name} must have one entry a weight, {count}; got {len(value)}")
    return list(value)


def scalars_of(weights, formulas, channel_dims):
    scalars: list[float] = []
    for weight, formula, channel_dim in zip(weights, formulas, channel_dims, strict=True):
        formula = resolve(formula)
        scalars += formula.fixed or formula.arguments(fan_in_of(weight, channel_dim))
    return scalars


def reference_many(weights, gains, shifts, channel_dims, formulas, dtype=None):
    return [
        reference.standardize_op(
            weight, gains[i], shifts[i], channel_dims[i], *options_of(formulas, i), dtype
        )
        for i, weight in enumerate(weights)
    ]


def _autograd_many(weights, gains, shifts, channel_dims, formulas, dtype=None):
    arguments = (channel_dims, formulas, dtype)
    if needs_reference():
        check_all(weights, gains, shifts, *arguments)
        return reference_many(weights, gains, shifts, *arguments)
    check_lists(weights, formulas, gains=gains, shifts=shifts, channel_dims=channel_dims)
    try:
        return list(StandardizeMany.apply(arguments, *weights, *gains, *shifts))
    except RuntimeError:
        check_all(weights, gains, shifts, *arguments, each=explain)
        allocate_again(weights, dtype)
        raise


def _fake_forward_many(weights, gains, shifts, channel_dims, formulas, dtype=None):
    check_all(weights, gains, shifts, channel_dims, formulas, dtype)
    return [torch.empty_like(weight, dtype=dtype or weight.dtype) for weight in weights]


def _fake_backward_many(grads, weights, gains, channel_dims, formulas, affine):
    check_all_backward(grads, weights, gains, channel_dims, formulas)
    results = [torch.empty_like(weight) for weight in weights]
    for _ in range(2 if affine else 0):
        results += [
            weight.new_empty((weight.shape[dim],))
            for weight, dim in zip(weights, channel_dims, strict=True)
        ]
    return results


library.impl("standardize_many", _autograd_many, "Autograd")
torch.library.register_fake("ws::standardize_many", _fake_forward_many, lib=library)
torch.library.register_fake("ws::forward_many", _fake_forward_many, lib=library)
torch.library.register_fake("ws::forward_into", check_all_into, lib=library)
torch.library.register_fake("ws::backward_many", _fake_backward_many, lib=library)
