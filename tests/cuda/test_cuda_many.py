"""standardize_many on a GPU: bitwise what standardize does weight by weight."""

import pytest
import torch
from cuda_check import all_equal, every_dtype, names_of, needs_gpu
from torch_ws import standardize, standardize_many
from torch_ws.core.many import raw_forward_into, scalars_of

pytestmark = needs_gpu

# Side by side: rows of a few elements and of many, rows that no vector length divides, one row
# alone, rows longer than a block's registers, an empty weight, a misaligned and a sliced one.
SHAPES = [(33, 1, 3, 3), (64, 3, 7, 7), (8, 8), (4, 0), (300, 700), (1, 90_000), (20, 20_001)]


def make(dtype, device="cuda"):
    weights = [torch.randn(shape, device=device).to(dtype) for shape in SHAPES]
    weights.append(torch.randn(1 + 16 * 576, device=device).to(dtype)[1:].view(16, 576))
    weights.append(torch.randn(48, 40, 3, 3, device=device).to(dtype)[:, 4:36])
    last = torch.randn(16, 8, 3, 3, device=device).to(dtype)
    weights.append(last.to(memory_format=torch.channels_last))
    return [weight.requires_grad_() for weight in weights]


def affine_of(weights, channel_dims):
    """A gain for every second weight, a shift for every third."""
    gains, shifts = (
        [
            torch.randn(w.shape[d], device=w.device).to(w.dtype).requires_grad_()
            if i % step == 0
            else None
            for i, (w, d) in enumerate(zip(weights, channel_dims, strict=True))
        ]
        for step in (2, 3)
    )
    return gains, shifts


def check(weights, dtype=None, channel_dims=None, formula="paper", missing=()):
    """Results and gradients; `missing`: indices of results that get no gradient."""
    dims = channel_dims or [0] * len(weights)
    gains, shifts = affine_of(weights, dims)
    options = {"formula": formula, "dtype": dtype}
    many = standardize_many(weights, gains, shifts, channel_dim=dims, **options)
    single = [
        standardize(w, g, s, channel_dim=d, **options)
        for w, g, s, d in zip(weights, gains, shifts, dims, strict=True)
    ]
    assert all_equal(many, single)
    assert [out.stride() for out in many] == [out.stride() for out in single]
    present = [i for i in range(len(weights)) if i not in missing]
    inputs = [t for ts in (weights, gains, shifts) for t in ts if t is not None]
    grads = [torch.randn_like(many[i]) for i in present]
    ours, theirs = (
        torch.autograd.grad([outs[i] for i in present], inputs, grads, allow_unused=True)
        for outs in (many, single)
    )
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a, b)


@every_dtype
def test_bitwise_what_standardize_does(dtypes):
    check(make(dtypes[0]), dtype=dtypes[1])


@every_dtype
def test_into_memory_that_is_there(dtypes):
    weights = [weight.detach() for weight in make(dtypes[0])]
    expected = standardize_many(weights, formula="nfnet", dtype=dtypes[1])
    outs = [torch.full_like(e, torch.nan) for e in expected]
    addresses = [out.data_ptr() for out in outs]
    numbers = scalars_of(weights, ["nfnet"] * len(weights), [0] * len(weights))
    none = [None] * len(weights)
    raw_forward_into(outs, weights, none, none, [0] * len(weights), numbers)
    assert all_equal(outs, expected) and [out.data_ptr() for out in outs] == addresses
    outs[1] = outs[1].cpu()
    with pytest.raises(ValueError, match="out must be on the weight's device cuda"):
        raw_forward_into(outs, weights, none, none, [0] * len(weights), numbers)


def test_mixed_dtypes():
    dtypes = [torch.float32, torch.bfloat16, torch.float64, torch.float16]
    each = [make(dtype) for dtype in dtypes]
    check([each[i % 4][i] for i in range(len(each[0]))] + [w for ws in each for w in ws])


def test_channel_dims_and_formulas():
    weights = [torch.randn(24, 16, k, k, device="cuda", requires_grad=True) for k in (1, 2, 3, 4)]
    check(weights, channel_dims=[1, 0, 1, 0])
    check(weights, channel_dims=[1, 1, 1, 1], dtype=torch.bfloat16)
    check(weights, channel_dims=[1, 0, 0, 1], formula="nfnet")


@pytest.mark.parametrize("missing", [[0], [1, 2, 5], [0, 1, 2, 3, 4, 6, 7, 8, 9]])  # but one
def test_missing_gradients(missing):
    check(make(torch.float32), missing=missing)


def test_frozen_weights_get_no_gradient():
    first = torch.randn(4, 9, device="cuda", requires_grad=True)
    second = torch.randn(4, 9, device="cuda")
    a, b = standardize_many([first, second])
    (a * b).sum().backward()
    assert first.grad is not None and second.grad is None


def test_empty_list_and_empty_weights():
    assert standardize_many([]) == []
    weights = [torch.empty(shape, device="cuda", requires_grad=True) for shape in ((0, 9), (5, 0))]
    outs = standardize_many(weights)
    grads = torch.autograd.grad(outs, weights, [torch.empty_like(out) for out in outs])
    assert [g.shape for g in grads] == [w.shape for w in weights]


# Fewer and more weights than the descriptors of one launch hold, 4 or 32 KB of them.
@pytest.mark.parametrize("count", [1, 2, 40, 200, 600])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_many_weights(count, dtype):
    cols = (9, 147, 576, 1152, 25, 4608)
    weights = [
        torch.randn(3 + i % 40, cols[i % 6], device="cuda", requires_grad=True)
        for i in range(count)
    ]
    check(weights, dtype=dtype)


@every_dtype
def test_every_entry_of_the_launch_table_in_one_call(dtypes):
    from gpu.launch_table import ROWS, lengths  # needs the CUDA library

    every = {
        (rows, cols)
        for rows in ROWS
        for direction in ("forward", "backward")
        for cols in lengths(direction, *names_of(dtypes), rows)
    }
    weights = [
        torch.randn(shape, device="cuda").to(dtypes[0]).requires_grad_() for shape in sorted(every)
    ]
    check(weights, dtype=dtypes[1])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_second_device():
    with torch.cuda.device(0):
        check(make(torch.float32, device="cuda:1"))
        assert torch.cuda.current_device() == 0
