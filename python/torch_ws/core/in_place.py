"""Gradients in whose memory the gradient of the weight may be written, as nobody else has it.

A step then allocates as much for a standardized weight as for an ordinary one.
"""

from __future__ import annotations

import functools

import torch

from .private import in_dispatch_mode, references


def is_writable(grads, i, weight) -> bool:
    """True if the gradient of `weight` can replace grads[i], the argument of a node's backward.

    On the CPU only: elsewhere PyTorch's allocator keeps what is freed, and nothing tells of other
    processes. `grads` has to be the very tuple that the node got, as references are counted.
    """
    return (
        type(grads[i]) is torch.Tensor
        and grads[i].is_cpu
        and grads[i].dtype == weight.dtype
        and grads[i].stride() == weight.stride()
        and not (grads[i].requires_grad or grads[i].is_inference())  # the result is neither
        and not in_dispatch_mode()
        and owns_memory(grads[i])
        and references(grads, i) == _of_a_new_gradient()
    )


def owns_memory(grad):
    """True if it fills a storage that PyTorch allocated: not NumPy's, nor another process's.

    Of a GPU's memory PyTorch says that all is shared, and tells of no process.
    """
    storage = grad.untyped_storage()
    whole = storage.nbytes() == grad.nbytes
    return whole and storage.resizable() and not (grad.is_cpu and storage.is_shared())


class _Probe(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, found):
        ctx.found = found
        return x.clone()

    @staticmethod
    def backward(ctx, *grads):
        ctx.found.append(references(grads, 0))
        return None, None


@functools.cache
def _of_a_new_gradient():
    """The references to one that only its node has: PyTorch versions count apart."""
    found: list = []
    with torch.inference_mode(False):  # and with gradients
        x = torch.ones(1, device="cpu", requires_grad=True)
        (_Probe.apply(x, found) * 2).backward()
    return found[0]
