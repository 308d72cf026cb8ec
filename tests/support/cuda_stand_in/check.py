"""Launches against the reference in float64, by the tests' one tolerance rule."""

import torch
from accuracy import assert_close, layer_norm_errors
from torch_ws import reference

from .kernels import PAPER, TYPES


def expected(weight, gain, shift, formula):
    eps, scale, correction, eps_mode, center = formula
    return reference.standardize_op(
        weight, gain, shift, 0, eps, eps_mode, correction, center, scale, None
    )


def run(kernels, direction, types, rows, cols, **kwargs):
    """Random rows through the kernel and the reference; returns the launch's result."""
    weight_dtype, out_dtype = TYPES[types]
    weight = (torch.randn(rows, cols) * 0.05 + 0.01).to(weight_dtype)
    # of the longest rows, the sum of float16 is to stay below its largest number, 65504
    grad = (torch.randn(rows, cols) + 0.25).to(out_dtype)
    return check(kernels, direction, types, weight, grad, **kwargs)


def check(
    kernels,
    direction,
    types,
    weight,
    grad,
    gain=None,
    shift=None,
    formula=PAPER,
    peers=None,
    **kwargs,
):
    peers = peers or layer_norm_errors(weight, grad)
    doubles = [None if t is None else t.double() for t in (weight, gain, shift)]
    if direction == "forward":
        result = kernels.forward(types, weight, gain, shift, formula=formula, **kwargs)
        assert_close(result.tensors["out"], expected(*doubles, formula), peers[0])
        return result
    result = kernels.backward(types, grad, weight, gain, formula=formula, **kwargs)
    inputs = [doubles[0], torch.ones(len(weight)).double() if gain is None else doubles[1]]
    inputs = [t.requires_grad_() for t in [*inputs, torch.zeros(len(weight)).double()]]
    out = expected(*inputs, formula)
    judges = torch.autograd.grad(out, inputs, grad.double())
    assert_close(result.tensors["grad_weight"], judges[0], peers[1])
    w_hat = out.detach() / inputs[1].detach()[:, None]
    terms = (grad.double() * w_hat, grad.double())
    for name, judge, summed in zip(("grad_gain", "grad_shift"), judges[1:], terms, strict=True):
        if name in result.tensors:
            assert_sum_close(result.tensors[name].view(-1), judge, summed, peers[1])
    return result


def assert_sum_close(actual, judge, terms, peer_error):
    """As assert_close, but relative to the terms: a sum may be small because they cancel."""
    scale = terms.abs().sum(1)
    error = ((actual.double() - judge).abs() / scale).max()
    assert error <= 2 * peer_error + 2 * torch.finfo(actual.dtype).eps
