"""Degenerate rows (support/degenerate.py) through the CPU kernels and the reference."""

import pytest
import torch
from degenerate import CASES, RESULTS, by_autograd
from grids import DTYPES
from torch_ws import _C, reference, standardize, standardize_many


def in_a_list(weight, gain, shift, **options):
    """Beside an ordinary weight."""
    other = torch.randn(7, 33).to(weight.dtype)
    return standardize_many([other, weight], [None, gain], [None, shift], **options)[1]


def by_c_module(weight, grad, formula):
    eps, mode, correction, center, scale = formula.arguments(weight.shape[1])
    options = {"eps": eps, "eps_mode": mode, "correction": correction, "center": center}
    gain, shift = weight.new_ones(len(weight)), weight.new_zeros(len(weight))
    out, *grads = (torch.empty_like(t) for t in (grad, weight, gain, shift))
    _C.forward(weight, out, gain, shift, scale=scale, **options)
    _C.backward(grad, weight, grads[0], gain, *grads[1:], scale=scale, **options)
    return dict(zip(RESULTS, (out, *grads), strict=True))


WAYS = {
    "standardize": by_autograd(standardize),
    "standardize_many": by_autograd(in_a_list),
    "_C": by_c_module,
}


@pytest.mark.parametrize("cols", [7, 147, 9000])  # part of a vector, a tail, blocks of sums
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_kernels(isa, case, way, cols):
    for dtypes in DTYPES:
        case(WAYS[way], cols, dtypes)


@pytest.mark.parametrize("cols", [7, 576, 20000])  # its centre is a few elements' mean, or a part's
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])  # those it computes in
# What autograd computes of constant gradients is 0 up to rounding only
@pytest.mark.parametrize(
    "case", ["constant_rows", "rows_of_one_element", "nan_and_inf", "far_from_zero"]
)
def test_reference(case, dtype, cols):
    CASES[case](by_autograd(reference.standardize), cols, (dtype, dtype))
