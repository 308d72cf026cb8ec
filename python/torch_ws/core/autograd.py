"""Autograd, tracing and vmap for the ops of ``torch.ops.ws``.

The library registers three raw ops without derivatives (csrc/torch/ops.cpp):

    ws::forward, ws::backward, ws::backward_affine

Here `Standardize` joins them into one autograd node, which saves the weight and nothing of
its size, and ``ws::standardize`` gets that node as its Autograd kernel. Where a node of Python code
does not reach (torch.func transforms, forward-mode AD, double backward), the reference's plain
operations take over.
"""

from __future__ import annotations

import torch

from .. import reference
from .._check import allocate_again, check, check_backward, explain, explain_backward
from .private import direct, direct_apply, in_transform, needs_reference

raw_forward = direct(torch.ops.ws.forward)
raw_backward = direct(torch.ops.ws.backward)
raw_backward_affine = direct(torch.ops.ws.backward_affine)


class Standardize(torch.autograd.Function):
    """One autograd node, called by `apply` with ``(weight, gain, shift, arguments)``.

    arguments: the op's ``(channel_dim, eps, eps_mode, correction, center, scale, dtype)``.
    """

    @staticmethod
    def forward(ctx, weight, gain, shift, arguments):
        ctx.save_for_backward(weight, gain)
        ctx.arguments = arguments
        return raw_forward(weight, gain, shift, *arguments)

    @staticmethod
    def backward(ctx, grad):
        weight, gain = ctx.saved_tensors
        return *gradients_of(ctx.needs_input_grad, grad, weight, gain, ctx.arguments), None


def gradients_of(needed, grad, weight, gain, arguments):
    """The needed gradients of weight, gain and shift; arguments: those of the op."""
    if torch.is_grad_enabled() or in_transform():
        return differentiable_backward(needed, grad, weight, gain, arguments)
    try:
        if not (needed[1] or needed[2]):
            return raw_backward(grad, weight, gain, *arguments[:-1]), None, None
        grads = raw_backward_affine(grad, weight, gain, *arguments[:-1])
    except RuntimeError:
        explain_backward(grad, weight, gain, *arguments[:-1])
        allocate_again([weight], grads=[grad])
        raise
    return tuple([g if need else None for g, need in zip(grads, needed, strict=False)])


apply = direct_apply(Standardize)  # after needs_reference()


def differentiable_backward(needed, grad, weight, gain, arguments):
    """The needed gradients of weight, gain and shift as differentiable operations."""
    channel_dim = arguments[0] % weight.dim()
    dims = [d for d in range(weight.dim()) if d != channel_dim]
    grad_weight = grad_gain = None
    if needed[0] or needed[1]:
        with torch.enable_grad():
            wide: list = [t if t is None else t.to(reference.wide(t.dtype)) for t in (weight, gain)]
            out = reference.standardize_op(wide[0], wide[1], None, *arguments[:-1])
            # Products of very large or small gradients would be out of range.
            unit = reference.unit_of(grad, weight, dims)
            inputs = [t for t, need in zip(wide, needed, strict=False) if need]
            grads = list(torch.autograd.grad(out, inputs, grad * unit, create_graph=True))
        if needed[0]:
            grad_weight = (grads.pop(0) / unit).to(weight.dtype)
        if needed[1]:
            grad_gain = (grads.pop(0) / unit.flatten()).to(gain.dtype)
    grad_shift = grad.to(weight.dtype).sum(dims) if needed[2] else None
    return grad_weight, grad_gain, grad_shift


# The options of ws::standardize in the order of the raw ops' arguments, with its schema's defaults.
DEFAULTS = {
    "channel_dim": 0,
    "eps": 1e-5,
    "eps_mode": 0,
    "correction": 0,
    "center": True,
    "scale": 1.0,
    "dtype": None,
}


def _autograd(weight, gain=None, shift=None, **options):
    arguments = tuple({**DEFAULTS, **options}.values())
    if needs_reference():
        check(weight, gain, shift, *arguments)
        return reference.standardize_op(weight, gain, shift, *arguments)
    try:
        return apply(weight, gain, shift, arguments)
    except RuntimeError:
        explain(weight, gain, shift, *arguments)
        allocate_again([weight], arguments[-1])
        raise


def _fake_forward(weight, gain, shift, *arguments):
    check(weight, gain, shift, *arguments)
    return torch.empty_like(weight, dtype=arguments[-1] or weight.dtype)


def _fake_standardize(weight, gain=None, shift=None, **options):
    return _fake_forward(weight, gain, shift, *{**DEFAULTS, **options}.values())


def _fake_backward(grad, weight, gain, *arguments):
    check_backward(grad, weight, gain, *arguments)
    return torch.empty_like(weight)


def _fake_backward_affine(grad, weight, gain, channel_dim, *arguments):
    check_backward(grad, weight, gain, channel_dim, *arguments)
    vector = weight.new_empty((weight.shape[channel_dim],))
    return torch.empty_like(weight), vector, torch.empty_like(vector)


def _vmap(info, in_dims, weight, gain=None, shift=None, *, channel_dim=0, **options):
    """A batch of weights is a weight of more channels."""

    def batch_first(tensor, dim):
        if dim is None:
            return tensor.unsqueeze(0).expand(info.batch_size, *tensor.shape)
        return tensor.movedim(dim, 0)

    def flat(vector, dim):
        return None if vector is None else batch_first(vector, dim).reshape(-1)

    in_dims = (*in_dims, None, None)[:3]
    weight = batch_first(weight, in_dims[0])
    channel_dim = channel_dim % (weight.dim() - 1) + 1
    rows = weight.movedim(channel_dim, 1)
    out = torch.ops.ws.standardize(
        rows.flatten(0, 1), flat(gain, in_dims[1]), flat(shift, in_dims[2]), **options
    )
    return out.unflatten(0, rows.shape[:2]).movedim(1, channel_dim), 0


library = torch.library.Library("ws", "IMPL")
library.impl("standardize", _autograd, "Autograd")
torch.library.register_fake("ws::standardize", _fake_standardize, lib=library)
torch.library.register_fake("ws::forward", _fake_forward, lib=library)
torch.library.register_fake("ws::backward", _fake_backward, lib=library)
torch.library.register_fake("ws::backward_affine", _fake_backward_affine, lib=library)
torch.library.register_vmap("ws::standardize", _vmap, lib=library)
