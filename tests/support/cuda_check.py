"""What the tests of the CUDA kernels share: on a GPU, against the reference in float64."""

import pytest
import torch
from accuracy import assert_close, layer_norm_errors
from grids import DTYPES
from torch_ws import reference, standardize

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

every_dtype = pytest.mark.parametrize(
    "dtypes", DTYPES, ids=lambda d: f"{d[0]}-{d[1]}".replace("torch.", "")
)


def check(weight, grad, gain=None, shift=None, **kwargs):
    """Forward and backward of one weight."""
    arguments = [t if t is None else t.detach().requires_grad_() for t in (weight, gain, shift)]
    doubles = [t if t is None else t.detach().double().requires_grad_() for t in arguments]
    out = standardize(*arguments, dtype=grad.dtype, **kwargs)
    judge = reference.standardize(*doubles, **kwargs)
    assert out.device == weight.device and out.dtype == grad.dtype
    peers = layer_norm_errors(weight, grad, kwargs.get("channel_dim", 0))
    assert_close(out.detach(), judge.detach(), peers[0])
    inputs, doubles = ([t for t in ts if t is not None] for ts in (arguments, doubles))
    actual = torch.autograd.grad(out, inputs, grad)
    expected = torch.autograd.grad(judge, doubles, grad.double())
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e, peers[1])


def names_of(dtypes):
    return [str(dtype).removeprefix("torch.") for dtype in dtypes]


def needs_memory(gigabytes):
    """Skips the test where less is free."""
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0] / 1e9
    if free < gigabytes:
        pytest.skip(f"needs {gigabytes} GB of GPU memory, {free:.0f} GB are free")


def all_equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
