"""Many weights in one CUDA launch, through the stand-in."""

import pytest
import torch
from cuda_stand_in.kernels import BF16, F32, LARGE, SMALL, TYPES, Layout, Shape, Weight

both = pytest.mark.parametrize("direction", ["forward", "backward"])

# Weights that together take every kind of tier: for blocks of 128 threads
MIXED = [(F32, 64, 147), (F32, 32, 64), (F32, 8, 256), (F32, 130, 512), (F32, 3, 1152)]
MIXED += [(F32, 4, 4608), (F32, 40, 9), (F32, 1, 16)]
# for a block of 256, a cluster, or one of 512 where there are none, and split
MIXED += [(F32, 2, 9216), (F32, 2, 18432), (F32, 1, 150000)]
# and for three kernels of other types
MIXED += [(BF16, 16, 576), (5, 7, 100), (0, 5, 33)]


def make(direction, types, rows, cols):
    """A weight of a list with its tensors; some with a gain, some without gradients of it."""
    weight = (torch.randn(rows, cols) * 0.05 + 0.01).to(TYPES[types][0])
    gain = torch.randn(rows).to(weight.dtype) if cols % 2 else None
    if direction == "forward":
        return (types, weight, gain), {}
    grad = (torch.randn(rows, cols) + 0.5).to(TYPES[types][1])
    return (types, grad, weight, gain), {"affine": cols % 3 == 0}


@pytest.mark.parametrize("max_cluster", [1, 16])
@pytest.mark.parametrize("parameter_bytes", [SMALL, LARGE])
@both
def test_many_weights_in_one_launch(kernels, direction, parameter_bytes, max_cluster):
    calls = [make(direction, *shape) for shape in MIXED]
    weights = [getattr(Weight, direction)(*args, **options) for args, options in calls]
    record = kernels.run(direction, weights, parameter_bytes, max_cluster)
    # of 128 threads eight weights; of 256; of 512 or a cluster; a split row's two; each other type
    of_128 = -(-8 // kernels.capacity(direction, parameter_bytes == LARGE))
    assert of_128 == (1 if parameter_bytes == LARGE else 2)
    assert record.launches == of_128 + 1 + 1 + 2 + 3
    clusters = list(record.clusters[: record.launches])
    assert clusters.count(2) == (max_cluster > 1) and set(clusters) <= {1, 2}
    for weight, (args, options) in zip(weights, calls, strict=True):
        options |= {"max_cluster": max_cluster}
        alone = getattr(kernels, direction)(*args, **options).tensors
        for name, tensor in weight.results().items():
            assert torch.equal(tensor, alone[name]), (name, args[1].shape)


@both
def test_launches_are_as_few_as_hold_all(kernels, direction):
    for large, parameter_bytes in ((False, SMALL), (True, LARGE)):
        capacity = kernels.capacity(direction, large)
        for count in (capacity, capacity + 1):
            calls = [make(direction, F32, 2, 16) for _ in range(count)]
            weights = [getattr(Weight, direction)(*args, **options) for args, options in calls]
            record = kernels.run(direction, weights, parameter_bytes)
            assert record.launches == (1 if count == capacity else 2)
            for weight, (args, _) in zip(weights, calls, strict=True):
                alone = (
                    getattr(kernels, direction)(*args, affine=False)
                    if direction == "backward"
                    else kernels.forward(*args)
                )
                name = "out" if direction == "forward" else "grad_weight"
                assert torch.equal(weight.results()[name], alone.tensors[name])
    # a ResNet-50 has 53; a kernel's small parameter is not enough for it, the large one is
    assert kernels.capacity(direction, large=False) < 53 < kernels.capacity(direction, large=True)


@both
def test_blocks_with_most_work_start_first(kernels, direction):
    calls = [make(direction, F32, rows, cols) for rows, cols in [(2, 16), (3, 4608), (9, 64)]]
    weights = [getattr(Weight, direction)(*args, **options) for args, options in calls]
    record = kernels.run(direction, weights)
    assert record.launches == 1 and record.entries == 3
    by_work = [kernels.run(direction, [weights[i]]).tiers[0] for i in (1, 2, 0)]
    assert record.tiers[:3] == by_work


@both
def test_empty_weights_are_left_out(kernels, direction):
    args, options = make(direction, F32, 3, 64)
    weight = getattr(Weight, direction)(*args, **options)
    empty = getattr(Weight, direction)(*args, **options)
    for shape in (Shape(0, 64, 64), Shape(3, 0, 0)):
        empty.args.shape = shape
        assert kernels.run(direction, [empty]).launches == 0
        assert kernels.run(direction, [empty, weight, empty]).entries == 1
    assert kernels.run(direction, []).launches == 0


# Every access, with a row for a warp, a block and a cluster, and split over blocks in runs of 4
@pytest.mark.parametrize(
    "rows, cols, run",
    [(40, 9, 9), (33, 64, 64), (3, 4608, 4608), (2, 70000, 70000), (1, 150_000, 4)],
)
@pytest.mark.parametrize("place", ["out", "grad", "weight"])
def test_in_place(kernels, rows, cols, run, place):
    direction, result = ("forward", "out") if place == "out" else ("backward", "grad_weight")
    layouts = [Layout(runs=run < cols)] * (2 if direction == "forward" else 3)
    args, options = make(direction, F32, rows, cols)
    options |= {"run": run, "layouts": layouts}
    apart, weight = (getattr(Weight, direction)(*args, **options) for _ in range(2))
    target = weight.guarded["weight" if place == "out" else place]
    setattr(weight.args, result, target.view.data_ptr())
    for one in (apart, weight):
        kernels.run(direction, [one])
    assert torch.equal(target.result(), apart.results()[result])
