"""Rows for every CUDA kernel of an optimizer's step, in the layouts that choose it."""

import pytest

from .kernels import Layout

NAMES = ["f64", "f32", "f16", "bf16", "f32-f16", "f32-bf16", "f32-f16 sum", "f32-bf16 sum"]

# Rows for every kernel: flat; a part of a warp, a block of 128, one of 256; a cluster, or without
# clusters one of 512; split, aligned and not.
FLAT, ROWS = Layout(offset=1), Layout()
GAPS = Layout(offset=1, gap=1)
KINDS = {
    "flat": (33, 147, FLAT, 16),
    "sub-warp": (130, 64, ROWS, 16),
    "warp": (130, 576, ROWS, 16),
    "block": (3, 4608, ROWS, 16),
    "block of 256": (2, 9216, ROWS, 16),
    "cluster": (2, 18432, ROWS, 16),
    "block of 512": (2, 18432, ROWS, 1),
    "split": (2, 30000, ROWS, 1),
    "scalar": (5, 500, GAPS, 16),
    "scalar block": (2, 5001, GAPS, 16),
    "scalar split": (2, 9001, GAPS, 16),
}
every_kind = pytest.mark.parametrize("kind", KINDS)
