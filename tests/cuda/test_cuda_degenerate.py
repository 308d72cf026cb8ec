"""Degenerate rows (support/degenerate.py) through the CUDA kernels: on a GPU, and the stand-in."""

import pytest
from cuda_check import every_dtype, needs_gpu
from cuda_stand_in.kernels import TYPES
from degenerate import CASES, RESULTS, by_autograd
from torch_ws import standardize

every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
# part of a warp, where teams share one; a block with its barriers; rows split over blocks
every_length = pytest.mark.parametrize(
    "cols", [40, 1104, pytest.param(29600, marks=pytest.mark.slow)]
)


@every_length
@every_case
def test_stand_in(kernels, case, cols):
    def run(weight, grad, formula):
        eps, mode, correction, center, scale = formula.arguments(weight.shape[1])
        options = {"formula": (eps, scale, correction, mode, center)}
        vectors = weight.new_ones(len(weight)), weight.new_zeros(len(weight))
        types = TYPES.index((weight.dtype, grad.dtype))
        out = kernels.forward(types, weight, *vectors, **options).tensors
        grads = kernels.backward(types, grad, weight, vectors[0], **options).tensors
        return {name: (out | grads)[name] for name in RESULTS[:2]} | {
            name: grads[name].flatten() for name in RESULTS[2:]
        }

    for dtypes in TYPES[:2]:  # the two types of the statistics
        case(run, cols, dtypes)


@needs_gpu
@every_length
@every_case
@every_dtype
def test_gpu(dtypes, case, cols):
    run = by_autograd(standardize)

    def on_gpu(weight, grad, formula):
        results = run(weight.cuda(), grad.cuda(), formula)
        return {name: tensor.cpu() for name, tensor in results.items()}

    case(on_gpu, cols, dtypes)
