"""The CUDA kernels' formulas, degenerate rows and rounding, through the stand-in."""

import pytest
import torch
from accuracy import layer_norm_errors
from cuda_stand_in.check import check, run
from cuda_stand_in.kernels import F32, TYPES

pytestmark = pytest.mark.slow

both = pytest.mark.parametrize("direction", ["forward", "backward"])

# A kernel of every kind: part of a warp, where teams share one, a block with its barriers, and a
# cluster of blocks, or blocks that rows are split over where there are no clusters.
# Multiples of 16 bytes in every dtype.
ON_CLUSTERS, WITHOUT = {"max_cluster": 16}, {"max_cluster": 1}
LENGTHS = [(40, WITHOUT), (1104, WITHOUT), (29600, ON_CLUSTERS), (29600, WITHOUT)]


@pytest.mark.parametrize("eps_mode", [0, 1, 2])
@pytest.mark.parametrize("correction", [0, 1])
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("types", [0, F32], ids=["f64", "f32"])  # the two types of the statistics
@both
def test_formulas(kernels, direction, types, center, correction, eps_mode):
    # eps within the range of the channels' variances, so that "clamp" takes both its branches
    formula = (2e-3, 1.7, correction, eps_mode, center)
    dtype = TYPES[types][0]
    stds = torch.tensor([0.01, 0.03, 0.1])
    gain, shift = torch.tensor([1.3, -0.7, 0.1]).to(dtype), torch.tensor([0.5, 0, -2]).to(dtype)
    for cols, chip in LENGTHS:
        weight = (torch.randn(3, cols) * stds[:, None] + 0.02).to(dtype)
        grad = (torch.randn(3, cols) + 0.5).to(dtype)
        for present in (gain, None):
            rest = (
                [{"shift": shift}, {}]
                if direction == "forward"
                else [{"affine": True}, {"affine": False}]
            )
            for kwargs in rest:
                kwargs |= {"gain": present, "formula": formula, **chip}
                check(kernels, direction, types, weight, grad, **kwargs)


# What docs/derivation.md states for CUDA: sums of squares fit float32, and stds are above 1e-18.
@pytest.mark.parametrize("size", [1e-17, 1e-10, 1e10, 1e16])
@both
def test_range(kernels, direction, size):
    no_eps = (0.0, 1.0, 0, 1, True)
    for cols, chip in LENGTHS:
        weight, grad = torch.randn(3, cols), torch.randn(3, cols)
        # F.layer_norm has an eps, so it is judged on ordinary values
        peers = layer_norm_errors(weight, grad)
        check(kernels, direction, F32, weight * size, grad, formula=no_eps, peers=peers, **chip)


@pytest.mark.parametrize("size", [1e-38, 1e-30, 1e-22, 1e20, 1e30])
@pytest.mark.parametrize("eps_mode", [0, 1, 2])
def test_no_nan_beyond_the_range(kernels, size, eps_mode):
    for cols, chip in LENGTHS:
        weight, grad = torch.randn(3, cols) * size, torch.randn(3, cols)
        for eps in (0.0, 1e-5):
            formula = (eps, 1.0, 0, eps_mode, True)
            options = {"formula": formula, **chip}
            out = kernels.forward(F32, weight, **options).tensors["out"]
            result = kernels.backward(F32, grad, weight, **options).tensors
            assert out.isfinite().all() and not result["grad_weight"].isnan().any()
            if size < 1 and eps > 0:  # as right as any: eps is nearly all of d
                check(kernels, "forward", F32, weight, grad, peers=(1e-6, 1e-6), **options)


@both
def test_long_row(kernels, direction):
    # a plain float32 sum of a million elements would be off by more than PyTorch's
    run(kernels, direction, F32, 1, 1 << 20)


@both
def test_repeats_are_bitwise_equal(kernels, direction):
    for cols, chip in LENGTHS:
        args = [torch.randn(3, cols) for _ in range(1 if direction == "forward" else 2)]
        first, second = (getattr(kernels, direction)(F32, *args, **chip).tensors for _ in range(2))
        for name, tensor in first.items():
            assert torch.equal(tensor, second[name])
