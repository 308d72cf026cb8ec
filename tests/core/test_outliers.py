"""Rows with a few values far from all others: those others must not lose their digits to them."""

import pytest
import torch
from accuracy import assert_close, layer_norm_errors
from torch_ws import reference, standardize

# one block of sums and several, with a last one that is not full
COLS = [2000, 4096, 20000]
# in the quarter of the row that its centre comes from, past it, and many
PLACES = {
    "first": lambda cols: [0],
    "in the first quarter": lambda cols: [cols // 8],
    "last": lambda cols: [cols - 1],
    "every 1000th": lambda cols: range(0, cols, 1000),
}


@pytest.mark.parametrize("outlier", [1e4, 1e6, 1e8])  # in standard deviations of the others
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("cols", COLS)
def test_error_is_layer_norms(isa, cols, place, outlier):
    weight, grad = 100 + torch.randn(64, cols), torch.randn(64, cols)
    weight[:, list(PLACES[place](cols))] = outlier
    forward_error, backward_error = layer_norm_errors(weight, grad)
    weight.requires_grad_()
    out = standardize(weight, formula="nnabla")
    out.backward(grad)
    judge = weight.detach().double().requires_grad_()
    expected = reference.standardize(judge, formula="nnabla")
    expected.backward(grad.double())
    assert_close(out.detach(), expected.detach(), forward_error)
    assert_close(weight.grad, judge.grad, backward_error)
