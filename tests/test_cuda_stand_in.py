"""Every CUDA kernel, from its source, on the CPU: cuda_stand_in/ runs it without a GPU."""

import ctypes
import math

import pytest
import torch
from cuda_stand_in.check import check, run
from cuda_stand_in.kernels import (
    DENSE,
    LARGE,
    NO_LIMIT,
    SMALL,
    STRUCTS,
    TYPES,
    Guarded,
    Kernels,
    Layout,
    Shape,
    Strides,
    Weight,
    build,
    toolkit_includes,
)

NAMES = ["f64", "f32", "f16", "bf16", "f32-f16", "f32-bf16"]
F32, BF16 = 1, 3
every_types = pytest.mark.parametrize("types", range(len(TYPES)), ids=NAMES)
both = pytest.mark.parametrize("direction", ["forward", "backward"])

# How many entries the launch tables have; test_tables holds this against them.
ACCESSES = {"vector": 9, "flat": 4, "scalar": 5}
TIERS = [(access, i) for access, count in ACCESSES.items() for i in range(count)]


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
    widest = max(dtype.itemsize for dtype in TYPES[types])
    for access, count in ACCESSES.items():
        table = kernels.tiers(direction, types, access)
        assert len(table) == count
        for plan in table:
            assert plan.vector == (1 if access == "scalar" else 16 // widest)
            assert plan.threads % plan.team == 0
            if plan.max_cols == NO_LIMIT:
                assert plan is table[-1] and access != "flat" and plan.chunks > 1
                continue
            assert plan.max_cols == plan.team * plan.elements
            assert plan.chunks == 1
            if access != "flat":
                assert plan.rows == plan.threads // plan.team * plan.team_rows


@pytest.mark.parametrize("access, tier", TIERS, ids=[f"{access}{i}" for access, i in TIERS])
@both
@every_types
def test_every_tier(kernels, direction, types, access, tier):
    table = kernels.tiers(direction, types, access)
    plan = table[tier]
    step = plan.vector if access == "vector" else 1
    shortest = table[tier - 1].max_cols + step if tier else (16 if access == "vector" else 3)
    split = plan.max_cols == NO_LIMIT
    # Rows that leave most registers empty, that end in the middle of a team, and that fill all; of
    # split rows, some that end in the middle of a chunk.
    longest = plan.max_cols if not split else shortest + 5 * plan.team * plan.elements // 2
    middle = (shortest + longest) // 2 // step * step
    layout = {"vector": DENSE, "flat": Layout(offset=1), "scalar": Layout(offset=1, gap=1)}[access]
    layouts = [layout] * (2 if direction == "forward" else 3)
    # more rows than those for which teams are made larger, where that is an alternative
    few = access == "vector" and plan.team == 32
    for cols in sorted({shortest, middle, longest}):
        # A block and a row: threads without a row, and more than one block.
        rows = (
            2
            if split
            else 130
            if few
            else min(plan.rows, 2048 // cols) + 1
            if access == "flat"
            else plan.rows + 1
        )
        result = run(kernels, direction, types, rows, cols, layouts=layouts)
        assert result.plan.access.decode() == access
        assert result.plan.name == plan.name and result.plan.max_cols == plan.max_cols
        assert result.record.launches == (2 if split else 1)
        inputs = [TYPES[types][0]] + [TYPES[types][1]] * (direction == "backward")
        # each input once from memory, for good; those of split rows for the second time then
        assert result.record.load_bytes == rows * cols * sum(t.itemsize for t in inputs)
        if access != "flat":  # whose ends are single elements
            assert result.record.load_count == rows * cols // step * len(inputs)


@pytest.mark.parametrize("cols", [9, 25, 27, 49, 147])  # depthwise 3x3, 5x5; 3-D 3x3x3; 7x7; a stem
@pytest.mark.parametrize("types", [F32, BF16, 5], ids=["f32", "bf16", "f32-bf16"])
@both
def test_flat_rows(kernels, direction, types, cols):
    # inputs and results at every distance from a multiple of 16 bytes, and from each other
    vec = 16 // max(dtype.itemsize for dtype in TYPES[types])
    for offsets in [(0, 0, 0), (1, 1, 1), (vec - 1, 1, 0), (0, vec - 1, 2), (2, 0, vec - 1)]:
        layouts = [Layout(offset=o) for o in offsets][: 2 if direction == "forward" else 3]
        for rows in (1, 2, 2048 // cols + 1):  # of which one and two may have no aligned access
            result = run(kernels, direction, types, rows, cols, layouts=layouts)
            assert result.plan.access == b"flat"
            # all but the ends of a block's stretch in whole accesses
            inputs = 1 if direction == "forward" else 2
            ends = 2 * (vec - 1) * inputs * result.plan.blocks
            assert result.record.load_count <= rows * cols // vec * inputs + ends


@both
def test_few_rows_take_larger_teams(kernels, direction):
    plans = [run(kernels, direction, F32, rows, 576).plan for rows in (2, 129)]
    assert [plan.team for plan in plans] == [128, 32]


# Weights that together take every kind of entry, and two kernels of types besides
MIXED = [(F32, 64, 147), (F32, 32, 64), (F32, 8, 256), (F32, 130, 512), (F32, 3, 1152)]
MIXED += [(F32, 4, 4608), (F32, 2, 18432), (F32, 1, 70000), (F32, 40, 9), (BF16, 16, 576)]
MIXED += [(5, 7, 100), (0, 5, 33), (F32, 1, 16)]


def make(direction, types, rows, cols):
    """A weight of a list with its tensors; some with a gain, some without gradients of it."""
    weight = (torch.randn(rows, cols) * 0.05 + 0.01).to(TYPES[types][0])
    gain = torch.randn(rows).to(weight.dtype) if cols % 2 else None
    if direction == "forward":
        return (types, weight, gain), {}
    grad = (torch.randn(rows, cols) + 0.5).to(TYPES[types][1])
    return (types, grad, weight, gain), {"affine": cols % 3 == 0}


@pytest.mark.parametrize("parameter_bytes", [SMALL, LARGE])
@both
def test_many_weights_in_one_launch(kernels, direction, parameter_bytes):
    calls = [make(direction, *shape) for shape in MIXED]
    weights = [getattr(Weight, direction)(*args, **options) for args, options in calls]
    record = kernels.run(direction, weights, parameter_bytes)
    # float32 in blocks of 128 and of 512 threads, a split row's two, and one for each other type
    assert record.launches == 2 + 2 + 3
    for weight, (args, options) in zip(weights, calls, strict=True):
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
    # a ResNet-50 has 53; a kernel's parameter of 4 KB is not enough for it, the large one is
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


# A kernel of every kind: part of a warp, where teams share one, a block with its barriers, and one
# whose rows are split over blocks. Multiples of 16 bytes in every dtype.
LENGTHS = [40, 1104, 29600]


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

    def access(types=F32, shape=(4, 576), **fields):
        rows, cols, run = (*shape, shape[1])[:3]
        args = STRUCTS[direction]()
        args.shape = Shape(rows, cols, run)
        dense = {name + "_strides": Strides(cols, run) for name in names}
        for name, value in (dense | fields).items():
            setattr(args, name, value)
        return kernels.plan(direction, types, args).access.decode()

    assert access() == "vector"
    assert access(shape=(4, 147)) == "flat"  # 7x7x3: no row but the first starts aligned
    assert access(shape=(1, 147)) == "flat"  # nor does the last access of a single row fit
    assert access(shape=(4, 12)) == "flat"  # too short for a team
    assert access(shape=(4, 1155)) == "scalar"  # too long for shared memory
    for name in names:
        assert access(**{name: 4}) == "flat"
        assert access(**{name: 16}) == "vector"
        assert access(**{name + "_strides": Strides(577, 576)}) == "scalar"
        assert access(**{name + "_strides": Strides(580, 576)}) == "vector"
        # the stride between the rows of a single row does not matter
        assert access(shape=(1, 576), **{name + "_strides": Strides(577, 576)}) == "vector"
    # runs of 16, whose stride is or is not a multiple of 4
    for name in names:
        assert access(shape=(4, 576, 16), **{name + "_strides": Strides(16, 68)}) == "vector"
        assert access(shape=(4, 576, 16), **{name + "_strides": Strides(16, 66)}) == "scalar"
    # 16 bytes of a row of 20 float16 are two rows
    accesses = [access(types=types, shape=(4, 20)) for types in range(6)]
    assert [a == "vector" for a in accesses] == [True, True, False, False, True, True]
    # where one type is wider, the narrower one's accesses are as much smaller
    narrow = "out" if direction == "forward" else "grad"
    assert [access(types=5, **{narrow: at}) for at in (4, 8)] == ["flat", "vector"]


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
def test_plan_of_very_large_weights(kernels, direction):
    # what memory would not hold, so that no product of sizes overflows before it has to
    args = STRUCTS[direction]()
    args.shape = Shape(2**33, 64, 64)
    assert (
        kernels.plan(direction, F32, args).blocks
        == 2**33 // kernels.plan(direction, F32, args).rows
    )
    for cols in (2**24, 2**33):
        args.shape = Shape(1, cols, cols)
        plan = kernels.plan(direction, F32, args)
        assert plan.chunks == plan.blocks <= 1024


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
