"""Every CUDA kernel, from its source, on the CPU: cuda_stand_in/ runs it without a GPU.

Here every tier of the launch tables; the numerics and many weights at once in the files beside.
"""

import ctypes
import math

import pytest
import torch
from cuda_stand_in.check import run
from cuda_stand_in.kernels import (
    BF16,
    DENSE,
    F32,
    NO_LIMIT,
    STRUCTS,
    TYPES,
    Guarded,
    Layout,
    Shape,
    Strides,
)

NAMES = ["f64", "f32", "f16", "bf16", "f32-f16", "f32-bf16"]
every_types = pytest.mark.parametrize("types", range(len(NAMES)), ids=NAMES)
both = pytest.mark.parametrize("direction", ["forward", "backward"])

# How many tiers the launch tables have; test_tables holds this against them. Rows that clusters
# have on chips with them, a block of 512 has on others.
ACCESSES = {"vector": 11, "flat": 6, "scalar": 5}
TIERS = [(access, i, 16) for access, count in ACCESSES.items() for i in range(count)]
TIERS += [("vector", 9, 1), ("vector", 10, 1)]
# One entry of every kernel: blocks of 128 threads, aligned and not, of 256 and 512, clusters, and
# rows split over blocks
FAST = [("vector", 0, 16), ("flat", 0, 16), ("vector", 8, 16), ("vector", 9, 1)]
FAST += [("vector", 9, 16), ("vector", 10, 1), ("scalar", 4, 16)]


@both
@every_types
def test_tables(kernels, direction, types):
    widest = max(dtype.itemsize for dtype in TYPES[types])
    for access, count in ACCESSES.items():
        forms = {}
        for max_cluster in (1, 16):
            table = kernels.tiers(direction, types, access, max_cluster)
            assert len(table) == count
            forms[max_cluster] = {(plan.form, plan.threads) for plan in table}
        vector = access == "vector"
        assert forms[1] - forms[16] == ({("rows", 512)} if vector else set())
        assert forms[16] - forms[1] == ({("cluster", 256)} if vector else set())
        for plan in table:
            assert plan.vec == (1 if access == "scalar" else 16 // widest)
            assert plan.threads % plan.team == 0
            if plan.max_cols == NO_LIMIT:
                assert plan is table[-1] and access != "flat" and plan.blocks >= 528
                continue
            if plan.form == "cluster":
                assert plan.chunks == 2
                continue
            assert plan.chunks == 1
            if access != "flat":
                assert plan.rows == plan.threads // plan.team * plan.team_rows


def rows_for(plan, cols):
    """A block and a row: threads without a row, and more than one block."""
    if plan.form != "rows":
        return 2
    if plan.access == "flat":
        return 2048 // cols + 1
    if plan.access == "vector" and (plan.team == 32 or plan.team_rows > 1):
        # more than those for which teams are made larger, and no whole number of teams
        return 131
    return plan.rows + 1


@pytest.mark.parametrize(
    "access, tier, max_cluster",
    [pytest.param(*t, marks=[pytest.mark.slow] * (t not in FAST)) for t in TIERS],
    ids=[f"{access}{i}" + "-no-clusters" * (cluster == 1) for access, i, cluster in TIERS],
)
@both
@every_types
def test_every_tier(kernels, direction, types, access, tier, max_cluster):
    table = kernels.tiers(direction, types, access, max_cluster)
    plan = table[tier]
    step = plan.vec if access == "vector" else 1
    shortest = table[tier - 1].max_cols + step if tier else (16 if access == "vector" else 3)
    split = plan.form == "split"
    # Rows that leave most registers empty, that end in the middle of a team, and that fill all; of
    # split rows, some that end in the middle of a chunk.
    longest = plan.max_cols if not split else shortest + 5 * plan.team * plan.elements // 2
    middle = (shortest + longest) // 2 // step * step
    layout = {"vector": DENSE, "flat": Layout(offset=1), "scalar": Layout(offset=1, gap=1)}[access]
    layouts = [layout] * (2 if direction == "forward" else 3)
    for cols in sorted({shortest, middle, longest}):
        rows = rows_for(plan, cols)
        options = {"layouts": layouts, "max_cluster": max_cluster}
        result = run(kernels, direction, types, rows, cols, **options)
        assert result.plan.access == access
        assert result.plan.name == plan.name and result.plan.max_cols == plan.max_cols
        assert result.record.launches == (2 if split else 1)
        cluster = result.plan.chunks if plan.form == "cluster" else 1
        assert result.record.clusters[0] == cluster
        inputs = [TYPES[types][0]] + [TYPES[types][1]] * (direction == "backward")
        # each input once from memory, for good; those of split rows for the second time then. In
        # the place of a row that the last team lacks, its first is read again.
        read = -(-rows // plan.team_rows) * plan.team_rows
        assert result.record.load_bytes == read * cols * sum(t.itemsize for t in inputs)
        if access != "flat":  # whose ends are single elements
            assert result.record.load_count == read * cols // step * len(inputs)


@pytest.mark.slow
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
            assert result.plan.access == "flat"
            # all but the ends of a block's stretch in whole accesses
            inputs = 1 if direction == "forward" else 2
            ends = 2 * (vec - 1) * inputs * result.plan.blocks
            assert result.record.load_count <= rows * cols // vec * inputs + ends


@both
def test_few_rows_take_larger_teams(kernels, direction):
    plans = [run(kernels, direction, F32, rows, 576).plan for rows in (2, 129)]
    assert [plan.team for plan in plans] == [128, 32]


@both
@pytest.mark.parametrize("max_cluster", [2, 8])  # of a small part of a GPU; where 16 do not fit
def test_rows_beyond_a_chips_clusters_are_split(kernels, direction, max_cluster):
    args = STRUCTS[direction]()
    longest = max_cluster * 256 * 36
    for cols, form in ((longest, "cluster"), (longest + 4, "split")):
        args.shape = Shape(3, cols, cols)
        plan = kernels.plan(direction, F32, args, max_cluster)
        assert plan.form == form
        assert form == "split" or plan.chunks == max_cluster


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
        assert (
            500 < plan.chunks == plan.blocks <= 528
        )  # four blocks for each of 132 multiprocessors


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


@pytest.mark.slow
@pytest.mark.parametrize("run_length, gap, f32, bf16", RUNS)
@both
def test_runs(kernels, direction, run_length, gap, f32, bf16):
    layout = Layout(runs=True, gap=gap)
    for tensors in [(layout,) * 3, (DENSE, layout, DENSE), (layout, DENSE, layout)]:
        layouts = tensors[: 2 if direction == "forward" else 3]
        for minimum in (40, 1104, 29600):
            # of rows without gaps, too, every one has to start aligned
            unit = math.lcm(run_length, 8)
            cols = -(-minimum // unit) * unit
            for types, vector in (F32, f32), (BF16, bf16):
                result = run(kernels, direction, types, 3, cols, layouts=layouts, run=run_length)
                assert result.plan.vec == vector


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
        return kernels.plan(direction, types, args).access

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


@pytest.mark.parametrize(
    "kernel, message",
    [
        ("sound", ""),
        ("left_before_barrier", "thread 40 has left the kernel while others wait in a barrier"),
        ("barrier_in_branch", "thread 32 has left the kernel while others wait in a barrier"),
        ("left_before_shuffle", "thread 3 has left the kernel while thread 0 waits for it"),
        ("barrier_against_shuffle", "thread 0 waits in a barrier while thread 1 waits for it"),
        ("different_shuffles", "thread 1 is in another shuffle while thread 0 waits for it"),
        ("lane_outside_mask", "thread 0 shuffles with a lane that its mask leaves out"),
        ("misaligned", "is not aligned to its size"),
    ],
)
def test_stand_in_notices(kernels, kernel, message):
    sums = torch.zeros(64, dtype=torch.int32)
    pointer = ctypes.c_void_p(sums.data_ptr())
    error = kernels.library.run_named(kernel.encode(), pointer, 1).decode()
    if message:
        assert message in error and error.startswith("block 0: ")
    else:
        assert error == "" and (sums == 63 * 64 // 2).all()


@pytest.mark.parametrize(
    "kernel, message",
    [
        ("sound_cluster", ""),
        ("left_before_cluster_barrier", "block 0: a block of its cluster has left while it waits"),
        ("different_barriers", "block 0: thread 32 waits in another barrier than thread 0"),
        (
            "left_before_others_have_read",
            "block 1: reads the shared memory of block 0 of its cluster",
        ),
    ],
)
def test_stand_in_notices_in_a_cluster(kernels, kernel, message):
    sums = torch.zeros(64, dtype=torch.int32)
    pointer = ctypes.c_void_p(sums.data_ptr())
    error = kernels.library.run_named(kernel.encode(), pointer, 2).decode()
    if message:
        assert message in error
    else:  # each block has seen the other's number
        assert error == "" and sums.tolist() == [6] * 32 + [5] * 32


@pytest.mark.parametrize("place", ["before", "gap", "after"])
def test_guards_notice(place):
    result = Guarded(2, 8, 8, torch.float32, Layout(gap=4))
    elements = result.bytes.view(torch.float32)
    first = result.view.storage_offset()
    elements[{"before": first - 1, "gap": first + 8, "after": first + 20}[place]] = 0
    with pytest.raises(AssertionError, match="written outside of a result"):
        result.result()
