"""Sizes beyond 32 bits and beyond a grid's limits, on a GPU with the memory for them.

Rows do not depend on each other, so that the reference is computed for some of them alone: where a
32-bit number of elements, or of bytes, would begin anew, and at both ends.
"""

import pytest
import torch
from accuracy import assert_close, layer_norm_errors
from cuda_check import needs_gpu, needs_memory
from torch_ws import reference, standardize

pytestmark = needs_gpu


@pytest.fixture(autouse=True)
def give_memory_back():
    yield
    torch.cuda.empty_cache()


def make(shape, dtype):
    # randn of so many elements would take float32 memory on the way
    return torch.empty(shape, dtype=dtype, device="cuda").normal_(0.01, 0.05)


def rows_to_check(rows, cols, itemsize):
    """Slices of rows: both ends, and where an index or a byte offset passes a power of 2."""
    marks = {0, rows}
    for limit in (1 << 31, 1 << 32):
        marks |= {limit // cols, limit // itemsize // cols}
    return [slice(max(0, m - 4), min(rows, m + 4)) for m in sorted(marks) if m <= rows]


def check_some_rows(weight, grad):
    out = standardize(weight, dtype=grad.dtype)
    slices = rows_to_check(*weight.shape, weight.dtype.itemsize)
    judges = {}
    for rows in slices:
        doubles = weight[rows].double().requires_grad_()
        judge = reference.standardize(doubles)
        peers = layer_norm_errors(weight[rows], grad[rows])
        (expected,) = torch.autograd.grad(judge, doubles, grad[rows].double())
        assert_close(out[rows], judge.detach(), peers[0])
        judges[rows.start] = expected, peers[1]
    del out
    weight.requires_grad_()
    found = torch.autograd.grad(standardize(weight, dtype=grad.dtype), weight, grad)[0]
    for rows in slices:
        assert_close(found[rows], *judges[rows.start])


# More than 2^31 elements in rows that a block holds, and in short odd ones; more than 2^32: (rows,
# cols). They are there four times: w, g, y and dw.
@pytest.mark.parametrize(
    "shape, gigabytes",
    [(((1 << 19) + 3, 4096), 22), (((1 << 28) + 5, 9), 26), (((1 << 20) + 3, 4608), 44)],
)
def test_more_elements_than_32_bits_count(shape, gigabytes):
    needs_memory(gigabytes)
    check_some_rows(make(shape, torch.float16), make(shape, torch.float16))


# One channel of 16 M elements, as a benchmark has it; of more than 2^31 elements.
@pytest.mark.parametrize(
    "cols, dtype, gigabytes",
    [
        (1 << 24, torch.float32, 4),
        ((1 << 24) + 3, torch.float32, 4),
        ((1 << 31) + 24, torch.float16, 40),
    ],
)
def test_one_long_channel(cols, dtype, gigabytes):
    needs_memory(gigabytes)
    weight, grad = make((1, cols), dtype), make((1, cols), dtype)
    moments = sums(weight, grad)
    out = standardize(weight)
    places = [slice(m, m + 1024) for m in {0, cols // 2, max(0, (1 << 31) - 500), cols - 1024}]
    places = [place for place in places if place.stop <= cols]
    peers = [torch.finfo(dtype).eps] * 2
    if dtype == torch.float32:  # beyond 2^31 elements there is no peer to ask
        peers = layer_norm_errors(weight, grad)
    for place in places:
        w = weight[0, place].double()
        assert_close(out[0, place], (w - moments["mean"]) * moments["s"], peers[0])
    del out
    weight.requires_grad_()
    found = torch.autograd.grad(standardize(weight), weight, grad)[0]
    for place in places:
        w, g = weight[0, place].detach().double(), grad[0, place].double()
        expected = moments["s"] * (g - moments["mean_g"]) + (w - moments["mean"]) * moments["slope"]
        assert_close(found[0, place], expected, peers[1])


def sums(weight, grad, eps=1e-5):
    """The formula's numbers of one channel in float64, a piece at a time."""
    pieces = list(zip(weight[0].split(1 << 26), grad[0].split(1 << 26), strict=True))
    cols = weight.shape[1]
    mean = sum(w.double().sum() for w, _ in pieces) / cols
    mean_g = sum(g.double().sum() for _, g in pieces) / cols
    var = sum((w.double() - mean).square().sum() for w, _ in pieces) / cols
    dot = sum(((w.double() - mean) * (g.double() - mean_g)).sum() for w, g in pieces)
    d = var.sqrt() + eps
    slope = -2 / cols * dot / (2 * var.sqrt() * d * d)
    return {"mean": mean, "mean_g": mean_g, "s": 1 / d, "slope": slope}


# Blocks by the million: short rows, many of them, of both kinds of accesses.
@pytest.mark.parametrize("cols", [8, 9])
def test_very_many_short_rows(cols):
    needs_memory(12)
    check_some_rows(make((1 << 24, cols), torch.float32), make((1 << 24, cols), torch.float32))
    shape = ((1 << 24) + 1, cols)
    check_some_rows(make(shape, torch.float32), make(shape, torch.bfloat16))
