"""Every CUDA kernel, from its source, on the CPU: cuda_stand_in/ runs it without a GPU."""

import ctypes
import math

import pytest
import torch
from cuda_stand_in.check import check, run
from cuda_stand_in.kernels import (
    DENSE,
    NO_LIMIT,
    TYPES,
    Backward,
    Forward,
    Guarded,
    Kernels,
    Layout,
    Shape,
    Strides,
    build,
    toolkit_includes,
)

NAMES = ["f64", "f32", "f16", "bf16", "f32-f16", "f32-bf16"]
F32, BF16 = 1, 3
every_types = pytest.mark.parametrize("types", range(len(TYPES)), ids=NAMES)
both = pytest.mark.parametrize("direction", ["forward", "backward"])

# The launch tables' lengths; test_tables holds them against the tables.
TIERS = [(True, i) for i in range(9)] + [(False, i) for i in range(6)]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The references are small: on a busy machine, waking threads for them takes longer."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    includes = toolkit_includes()
    if includes is None:
        pytest.skip("no CUDA toolkit: cuda_fp16.h is not found")
    return Kernels(build(tmp_path_factory.mktemp("cuda_stand_in"), includes))


@both
@every_types
def test_tables(kernels, direction, types):
    vector, scalar = (kernels.tiers(direction, types, v) for v in (True, False))
    assert [(True, i) for i in range(len(vector))] + [
        (False, i) for i in range(len(scalar))
    ] == TIERS
    assert len({plan.kernel for plan in vector + scalar}) == len(TIERS)
    for table in vector, scalar:
        for plan in table[:-1]:
            assert plan.max_cols == plan.team * plan.elements
            assert plan.threads % plan.team == 0 and plan.team * plan.blocks[0] <= plan.threads
    widest = max(dtype.itemsize for dtype in TYPES[types])
    assert {plan.vector for plan in vector} == {16 // widest}
    assert {plan.vector for plan in scalar} == {1}


@pytest.mark.parametrize(
    "vector, tier", TIERS, ids=[f"{'vector' if v else 'scalar'}{i}" for v, i in TIERS]
)
@both
@every_types
def test_every_kernel(kernels, direction, types, vector, tier):
    table = kernels.tiers(direction, types, vector)
    plan = table[tier]
    step = plan.vector
    shortest = table[tier - 1].max_cols + step if tier else step
    resident = plan.max_cols != NO_LIMIT
    # Rows that leave most registers empty, that end in the middle of a team, and that fill all; of
    # the re-reading kernels, rows of one tile more than another kernel holds and a half.
    longest = plan.max_cols if resident else shortest + 5 * plan.team * plan.elements // 2
    middle = (shortest + longest) // 2 // step * step
    # One block and a row: threads without a row, and more than one block.
    rows = plan.threads // plan.team + 1
    layouts = [DENSE if vector else Layout(offset=1)] * (2 if direction == "forward" else 3)
    # Rows of one and two elements say nothing: they give 0, or -1 and 1, whatever they hold.
    for cols in sorted({max(shortest, -(-3 // step) * step), middle, longest}):
        result = run(kernels, direction, types, rows, cols, layouts=layouts)
        assert result.plan.kernel == plan.kernel
        inputs = [TYPES[types][0]] + [TYPES[types][1]] * (direction == "backward")
        if resident:  # each input once, in accesses of that width
            assert result.loads.bytes == rows * cols * sum(t.itemsize for t in inputs)
            assert result.loads.count == rows * cols // step * len(inputs)
        else:
            assert result.loads.count == 0


# A kernel of every kind: part of a warp, where teams share one, a block with its barriers, and one
# that reads the row again. Multiples of 16 bytes in every dtype.
LENGTHS = [40, 1104, 20800]


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
    for cols in LENGTHS:
        weight = (torch.randn(3, cols) * stds[:, None] + 0.02).to(dtype)
        grad = (torch.randn(3, cols) + 0.5).to(dtype)
        for present in (gain, None):
            rest = (
                [{"shift": shift}, {}]
                if direction == "forward"
                else [{"affine": True}, {"affine": False}]
            )
            for kwargs in rest:
                check(
                    kernels, direction, types, weight, grad, gain=present, formula=formula, **kwargs
                )


# (run, gap, float32 elements and bfloat16 elements of an access): a transposed convolution of 1x1,
# 3x3, 2x2 and 4x4 elements, the last also with gaps that keep or break the alignment of its runs;
# aligned runs that end in the middle of 16 bytes; runs longer than what a team's threads move on by
RUNS = [
    (1, 0, 1, 1),
    (9, 0, 1, 1),
    (4, 0, 4, 1),
    (16, 0, 4, 8),
    (16, 4, 4, 1),
    (16, 3, 1, 1),
    (6, 2, 1, 1),
    (520, 0, 4, 8),
    (1300, 0, 4, 1),
]


@pytest.mark.parametrize("run_length, gap, f32, bf16", RUNS)
@both
def test_runs(kernels, direction, run_length, gap, f32, bf16):
    layout = Layout(runs=True, gap=gap)
    for tensors in [(layout,) * 3, (DENSE, layout, DENSE), (layout, DENSE, layout)]:
        layouts = tensors[: 2 if direction == "forward" else 3]
        for minimum in LENGTHS:
            # of rows without gaps, too, every one has to start aligned
            unit = math.lcm(run_length, 8)
            cols = -(-minimum // unit) * unit
            for types, vector in (F32, f32), (BF16, bf16):
                result = run(kernels, direction, types, 3, cols, layouts=layouts, run=run_length)
                assert result.plan.vector == vector


@both
def test_choice_of_access(kernels, direction):
    names = ["weight", "out"] if direction == "forward" else ["weight", "grad", "grad_weight"]

    def vector(types=F32, shape=(4, 576), **fields):
        rows, cols, run = (*shape, shape[1])[:3]
        args = {"forward": Forward, "backward": Backward}[direction]()
        args.shape = Shape(rows, cols, run)
        dense = {name + "_strides": Strides(cols, run) for name in names}
        for name, value in (dense | fields).items():
            setattr(args, name, value)
        return kernels.plan(direction, types, args).vector

    assert vector() == 4
    assert vector(shape=(4, 147)) == 1  # 7x7x3: no row but the first starts aligned
    assert vector(shape=(1, 147)) == 1  # nor does the last access of a single row fit
    for name in names:
        assert vector(**{name: 4}) == 1
        assert vector(**{name: 16}) == 4
        assert vector(**{name + "_strides": Strides(577, 576)}) == 1
        assert vector(**{name + "_strides": Strides(580, 576)}) == 4
        # the stride between the rows of a single row does not matter
        assert vector(shape=(1, 576), **{name + "_strides": Strides(577, 576)}) == 4
    # runs of 16, whose stride is or is not a multiple of 4
    for name in names:
        assert vector(shape=(4, 576, 16), **{name + "_strides": Strides(16, 68)}) == 4
        assert vector(shape=(4, 576, 16), **{name + "_strides": Strides(16, 66)}) == 1
    # 16 bytes of a row of 4 float16 are two rows
    assert [vector(types=types, shape=(4, 4)) for types in range(6)] == [2, 4, 1, 1, 4, 4]
    # where one type is wider, the narrower one's accesses are as much smaller
    narrow = "out" if direction == "forward" else "grad"
    assert [vector(types=5, **{narrow: address}) for address in (4, 8)] == [1, 4]


@both
def test_nan_stays_in_its_row(kernels, direction):
    for cols in LENGTHS:
        rows = 19 if cols < 64 else 3  # of teams that share warps, of warps, of blocks
        weight, grad = torch.randn(rows, cols), torch.randn(rows, cols)
        args = (weight,) if direction == "forward" else (grad, weight)
        launch = getattr(kernels, direction)
        clean = launch(F32, *args).tensors
        for bad in [float("nan"), float("inf")]:
            for column in [0, cols - 1]:  # the pivot, and any other
                for spoilt in args:
                    before = spoilt[1, column].item()
                    spoilt[1, column] = bad
                    for name, tensor in launch(F32, *args).tensors.items():
                        others = torch.arange(rows) != 1
                        assert torch.equal(tensor[others], clean[name][others])
                        if name not in ("grad_shift", "grad_gain"):
                            assert tensor[1].isnan().all()
                    spoilt[1, column] = before


@every_types
def test_constant_rows_give_exactly_zero(kernels, types):
    for cols in LENGTHS:
        # values whose sum is not a multiple of them in floating point, or is infinite
        dtype = TYPES[types][0]
        values = torch.tensor([0.1, 1e4 / 3, torch.finfo(dtype).max], dtype=dtype)
        weight = values[:, None].repeat(1, cols)
        grad = torch.randn(3, cols).to(TYPES[types][1])
        for eps in (1e-5, 0.0):
            for eps_mode in range(3):
                formula = (eps, 1.0, 0, eps_mode, True)
                out = kernels.forward(types, weight, formula=formula).tensors["out"]
                assert torch.equal(out, torch.zeros_like(out))
                if eps == 0:
                    result = kernels.backward(types, grad, weight, formula=formula).tensors
                    assert not result["grad_weight"].any() and not result["grad_gain"].any()


@both
def test_a_row_of_one_element(kernels, direction):
    weight, grad = torch.randn(20, 1), torch.randn(20, 1)
    args = (weight,) if direction == "forward" else (grad, weight)
    result = getattr(kernels, direction)(F32, *args).tensors
    assert not result["out" if direction == "forward" else "grad_weight"].any()
    if direction == "backward":
        assert torch.equal(result["grad_shift"], grad)


@pytest.mark.parametrize("ratio", [1e3, 1e5])  # |mean| / std, of w and g; at 1e5 a std is 80 ulp
@both
def test_large_mean(kernels, direction, ratio):
    for cols in LENGTHS:
        weight, grad = torch.randn(3, cols) + ratio, torch.randn(3, cols) - ratio
        # F.layer_norm loses most digits here, which is no measure
        check(kernels, direction, F32, weight, grad, peers=(1e-6, 1e-6))


@both
def test_long_row(kernels, direction):
    # a plain float32 sum of a million elements would be off by more than PyTorch's
    run(kernels, direction, F32, 1, 1 << 20)


@both
def test_repeats_are_bitwise_equal(kernels, direction):
    for cols in LENGTHS:
        args = [torch.randn(3, cols) for _ in range(1 if direction == "forward" else 2)]
        first, second = (getattr(kernels, direction)(F32, *args).tensors for _ in range(2))
        for name, tensor in first.items():
            assert torch.equal(tensor, second[name])


@both
def test_grid_of_two_dimensions(kernels, direction):
    # 11 rows of 4 warps a block need 3 blocks; 2 x 2 are given
    result = run(kernels, direction, F32, 11, 256, blocks=(2, 2))
    assert result.plan.team == 32 and result.plan.threads == 128
    # and the grid of more blocks than x can count: no row is left out, few blocks are too many
    args = {"forward": Forward, "backward": Backward}[direction]()
    args.shape = Shape(16 * 2**31, 8, 8)
    blocks = kernels.plan(direction, F32, args).blocks
    assert (blocks[0], blocks[1]) == (2**31 - 1, 2)


@pytest.mark.parametrize(
    "kernel, message",
    [
        ("sound", ""),
        ("left_before_barrier", "thread 40 has left the kernel while others wait in __syncthreads"),
        ("barrier_in_branch", "thread 32 has left the kernel while others wait in __syncthreads"),
        ("left_before_shuffle", "thread 3 has left the kernel while thread 0 waits for it"),
        ("barrier_against_shuffle", "thread 0 waits in __syncthreads while thread 1 waits for it"),
        ("different_shuffles", "thread 1 is in another shuffle while thread 0 waits for it"),
        ("lane_outside_mask", "thread 0 shuffles with a lane that its mask leaves out"),
        ("misaligned", "is not aligned to its size"),
    ],
)
def test_stand_in_notices(kernels, kernel, message):
    sums = torch.zeros(64, dtype=torch.int32)
    error = kernels.library.run_named(kernel.encode(), ctypes.c_void_p(sums.data_ptr())).decode()
    if message:
        assert message in error and error.startswith("block (0, 0): ")
    else:
        assert error == "" and (sums == 63 * 64 // 2).all()


@pytest.mark.parametrize("place", ["before", "gap", "after"])
def test_guards_notice(place):
    result = Guarded(2, 8, 8, torch.float32, Layout(gap=4))
    elements = result.bytes.view(torch.float32)
    first = result.view.storage_offset()
    elements[{"before": first - 1, "gap": first + 8, "after": first + 20}[place]] = 0
    with pytest.raises(AssertionError, match="written outside of a result"):
        result.result()
