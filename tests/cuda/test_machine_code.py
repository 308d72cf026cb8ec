"""No CUDA kernel spills, and all have the accesses and loads in flight that they should."""

import os
import shutil
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import machine_code
import machine_code_rules
import pytest
import torch_ws
from machine_code import Kernel, count_memory, parse_resources, read
from machine_code_rules import (
    APPLY,
    FLAT_ACCESSES,
    MOMENTS,
    UPDATE,
    Entry,
    entries_of,
    local_memory,
    narrow_accesses,
    too_many_registers,
    too_many_waits,
)

LIBRARY = Path(torch_ws.__file__).parent / "libws_cuda.so"
ARCHITECTURES = machine_code.default_architectures()
every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


@pytest.fixture(scope="module")
def tools():
    found = machine_code.find_tools()
    if found is None:
        pytest.skip(
            "no cuobjdump and nvdisasm: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm"
        )
    return found


@pytest.fixture(scope="module")
def kernels(tools):
    """Every kernel, by architecture; compiles what the library lacks, unless told not to."""
    if not torch_ws.info()["cuda_build"]:
        pytest.skip("built without CUDA")
    built, commands = machine_code.architectures_of(LIBRARY, tools), machine_code.build_commands()
    folder = machine_code.ROOT / "build" / "machine-code"

    def kernels_of(architecture):
        if architecture in built:
            return read(LIBRARY, architecture, tools)
        if os.environ.get("WS_MACHINE_CODE") == "built":
            return []
        folder.mkdir(parents=True, exist_ok=True)
        cubins = (
            machine_code.compile_cubin(source, command, architecture, folder)
            for source, command in commands.items()
        )
        return [kernel for cubin in cubins for kernel in read(cubin, architecture, tools)]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(ARCHITECTURES, pool.map(kernels_of, ARCHITECTURES), strict=True))


@pytest.fixture
def of_architecture(kernels, architecture):
    if not kernels[architecture]:
        pytest.skip(
            f"built without {architecture}, and WS_MACHINE_CODE=built or the folder is gone, which "
            "pip install -e keeps"
        )
    return kernels[architecture]


@pytest.mark.slow
@every_architecture
def test_every_pair_of_types_is_there(of_architecture):
    pairs = [(name, name) for name in machine_code.TYPES]
    pairs += [("f", "6__half"), ("f", "13__nv_bfloat16")]
    expected = {(direction, *pair) for direction in ("forward", "backward") for pair in pairs}
    # one kernel for all outs and gradients beside float32 weights; next: the last of split updates
    steps = ["norms", "update", "next"]
    expected |= {(direction, "f", machine_code.SEVERAL) for direction in steps}
    expected |= {("norms", name, name) for name in machine_code.TYPES if name != "f"}
    assert {kernel.signature for kernel in of_architecture} == expected
    # none was missed in the machine code; without clusters, their kernels are empty
    assert all(kernel.memory or "cluster" in kernel.name for kernel in of_architecture)


@pytest.mark.slow
@every_architecture
def test_registers_alone(of_architecture):
    assert not [found for kernel in of_architecture if (found := local_memory(kernel))]


@pytest.mark.slow
@every_architecture
def test_wide_accesses(of_architecture):
    assert not [found for kernel in of_architecture for found in narrow_accesses(kernel)]


@pytest.mark.slow
@every_architecture
def test_as_many_blocks_as_the_launch_table_says(of_architecture):
    assert not [found for kernel in of_architecture if (found := too_many_registers(kernel))]


@pytest.mark.slow
@every_architecture
def test_loads_are_in_flight_together(of_architecture):
    assert not [found for kernel in of_architecture if (found := too_many_waits(kernel))]


# --- the gate itself: it fails when it should

# A stack frame (an array indexed at run time), spills (more live values than there are registers
# for 2048 threads), and scalar accesses where the name promises 16 bytes.
TOY = """
#include <cuda_bf16.h>
namespace ws {
template <class Weight, class Out> struct ForwardPass {};
template <class Weight, class Out> struct BackwardPass {};
template <class Pass, int kThreads, int kBytes>
__global__ void batch_kernel(const float* w, float* out, const int* order) {
  float values[64];
  for (int k = 0; k < 64; ++k) values[order[k]] = w[k * blockDim.x + threadIdx.x];
  out[threadIdx.x] = values[order[threadIdx.x]];
}
enum class Stage { kMoments, kUpdate, kApply };
template <class Pass, int kTier, Stage kStage>
__global__ void __launch_bounds__(1024, 2) split_kernel(const float4* w, float4* out) {
  float4 values[24];
#pragma unroll
  for (int k = 0; k < 24; ++k) values[k] = w[k * 1024 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int k = 0; k < 24; ++k) out[k * 1024 + threadIdx.x] = values[23 - k];
}
template __global__ void batch_kernel<ForwardPass<float, __nv_bfloat16>, 128, 4096>(
    const float*, float*, const int*);
template __global__ void split_kernel<BackwardPass<double, double>, 8, Stage::kApply>(
    const float4*, float4*);
}  // namespace ws
"""


def test_the_gate_fails_when_it_should(tools, tmp_path, monkeypatch):
    command = next(iter(machine_code.build_commands().values()), [shutil.which("nvcc")])
    if command[0] is None:
        pytest.skip("no nvcc")
    source, cubin = tmp_path / "toy.cu", tmp_path / "toy.cubin"
    source.write_text(TOY)
    subprocess.run([command[0], "-cubin", "-arch=sm_90", source, "-o", cubin], check=True)
    forward, backward = sorted(read(cubin, "sm_90", tools), key=lambda k: "Backward" in k.name)
    table = [Entry("vector", "rows", 128, 4, 1, 6), Entry("vector", "split", 1024, 2, 1, 6)]
    monkeypatch.setattr(machine_code_rules, "launch_table", lambda *names: table)
    assert forward.signature == ("forward", "f", "13__nv_bfloat16")
    assert forward.stack >= 256 and "a stack frame of 256 bytes" in local_memory(forward)
    assert any("0 LDG of 16 bytes" in problem for problem in narrow_accesses(forward))
    assert any("0 STG of 8 bytes" in problem for problem in narrow_accesses(forward))
    assert backward.signature == ("backward", "d", "d")
    assert "STL" in local_memory(backward)
    assert not narrow_accesses(backward)  # 24 of each, as the table asks for
    assert not too_many_registers(backward)  # two blocks of 1024 threads, by its launch bounds
    table[1] = table[1]._replace(resident=3)
    assert "3 blocks of 1024 threads do not fit" in too_many_registers(backward)


# As cuobjdump 13 prints them, shortened.
RESOURCES = """
 Function _ZN2ws12split_kernelINS_12BackwardPassIf6__halfEELi8ELNS_5StageE2EEEvNS_5Split:
  REG:66 STACK:16 SHARED:1216 LOCAL:0 CONSTANT[0]:648 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
MACHINE_CODE = """
		Function : _ZN2ws12split_kernelINS_12BackwardPassIf6__halfEELi8ELNS_5StageE2EEEvNS_5Split
        /*0060*/                   UIMAD.WIDE.U32 UR4, UR6, UR7, UR4 ;   /* 0x00000007060472a5 */
                                                                         /* 0x001fcc000f8e0004 */
        /*00d0*/              @!P0 LDG.E.EF.128 R4, desc[UR8][R2.64] ;   /* 0x0000000002177381 */
        /*00e0*/                   LDG.E.EF.64 R8, desc[UR8][R2.64] ;    /* 0x0000000002177381 */
        /*00f0*/                   FADD R6, R6, 1 ;                      /* 0x0000000002177381 */
        /*0100*/                   LDG.E.EF.64 R18, desc[UR8][R2.64] ;   /* 0x0000000002177381 */
        /*0110*/                   LDG.E R20, desc[UR8][R2.64] ;         /* 0x0000000002177381 */
        /*0120*/                   FADD R20, R20, 1 ;                    /* 0x0000000002177381 */
        /*0130*/                   LDG.E.EF.64 R22, desc[UR8][R2.64] ;   /* 0x0000000002177381 */
        /*1230*/             @!UP1 STG.E.128.SYS [R2], R4 ;              /* 0x0000000002177381 */
        /*1240*/                   STL [R1+0x4], R8 ;                    /* 0x0000000002177381 */
        /*1250*/                   LDGSTS.E.128 [R1], [R4.64] ;          /* 0x0000000002177381 */
"""


def test_parsing():
    kernels = parse_resources(RESOURCES.splitlines(), "sm_90")
    count_memory(MACHINE_CODE.splitlines(), kernels)
    (kernel,) = kernels.values()
    assert kernel.signature == ("backward", "f", "6__half")
    assert (kernel.registers, kernel.stack, kernel.local) == (66, 16, 0)
    assert kernel.memory == Counter(
        [*["LDG.E.EF.128"] + 3 * ["LDG.E.EF.64"], "LDG.E", "STG.E.128.SYS", "STL", "LDGSTS.E.128"]
    )
    assert (kernel.count("LDG", 16), kernel.count("LDG", 8), kernel.count("STG", 16)) == (1, 4, 1)
    # R6, of the first two loads, is used before the other two; R20 is no vector load's
    assert kernel.waits == 2
    assert local_memory(kernel) == (
        f"sm_90 {kernel.name}: a stack frame of 16 bytes, 0 bytes of local memory (1 STL)"
    )


def test_a_kernel_of_two_sources_is_noticed():
    with pytest.raises(ValueError, match=r"split_kernel.* more than one source"):
        parse_resources(2 * RESOURCES.splitlines(), "sm_90")


def batch(types, threads, direction="11Forward"):
    return f"12batch_kernelINS_{direction}PassI{types}EELi{threads}ELi4096EEEvNS_5BatchINT_4ArgsE"


cluster = "14cluster_kernelINS_11ForwardPassIffEELi9EEEvNS_5SplitINT_4ArgsEEE"


several = "fNS_7SeveralE"


def split(tier, stage, types="11ForwardPassIff"):
    return f"12split_kernelINS_{types}EELi{tier}ELNS_5StageE{stage}EEEvNS_5SplitINT_4ArgsEEE"


TABLE = [
    Entry("vector", "rows", 128, resident=4, rows=2, groups=2),
    Entry("vector", "rows", 128, resident=4, rows=1, groups=4),
    Entry("vector", "rows", 512, resident=1, rows=1, groups=5),
    Entry("vector", "cluster", 256, resident=2, rows=1, groups=4),
    Entry("vector", "split", 256, resident=2, rows=1, groups=3),
    Entry("flat", "rows", 128, resident=4, rows=1, groups=4),
]


@pytest.mark.parametrize(
    ("name", "needed"),
    [
        # blocks of 128: two tiers, of 2 and 4 groups, each with a path for runs; a type that
        # comes twice is abbreviated
        (batch("6__halfS2_", 128), {"LDG.E.128": 12, "STG.E.128": 12}),
        (batch("dd", 512), {"LDG.E.128": 10, "STG.E.128": 10}),
        # float32 to bfloat16: 4 elements, 8 bytes of the result and of its gradient
        (batch("f13__nv_bfloat16", 128), {"LDG.E.128": 12, "STG.E.64": 12}),
        (
            batch("f13__nv_bfloat16", 512, "12Backward"),
            {"LDG.E.128": 10, "LDG.E.64": 10, "STG.E.128": 10},
        ),
        (batch("ff", 512, "12Backward"), {"LDG.E.128": 20, "STG.E.128": 10}),
        # split rows: the sums only read; the second such tier is that of scalar accesses
        (split(8, APPLY), {"LDG.E.128": 6, "STG.E.128": 6}),
        (split(8, MOMENTS), {"LDG.E.128": 6}),
        (split(22, APPLY), {}),
        # a step: of one tier w and a float32 gradient, a 16-bit gradient, three states at a time;
        # and w with its states, and the out of three types
        (
            batch(several, 512, "10Update"),
            {"LDG.E.128": 2 * 10 + 3, "LDG.E.64": 10, "STG.E.128": 10 + 4, "STG.E.64": 2 * 10},
        ),
        (
            split(8, UPDATE, f"10UpdatePassI{several}"),
            {"LDG.E.128": 2 * 6 + 3, "LDG.E.64": 6, "STG.E.128": 4},
        ),
        (split(8, APPLY, f"8NextPassI{several}"), {"LDG.E.128": 6, "STG.E.128": 6, "STG.E.64": 12}),
        (batch(several, 512, "5Norms"), {"LDG.E.128": 20, "LDG.E.64": 10}),
        (cluster, {"LDG.E.128": 8, "STG.E.128": 8}),
    ],
)
def test_expected_accesses(name, needed, monkeypatch):
    monkeypatch.setattr(machine_code_rules, "launch_table", lambda *names: TABLE)
    assert not narrow_accesses(Kernel("sm_90", f"_ZN2ws{name}", 0, 0, 0, Counter(needed)))
    for opcode in needed:
        fewer = Counter(needed) - Counter([opcode])
        assert narrow_accesses(Kernel("sm_90", f"_ZN2ws{name}", 0, 0, 0, fewer))


@pytest.mark.parametrize(
    ("name", "architecture", "allowed"),
    [
        # blocks of 128: two rows and one, dense or made of runs, and a flat stretch
        (batch("6__halfS2_", 128), "sm_90", (1 + 2) + 2 + 1),
        (batch("ff", 128, "12Backward"), "sm_90", (1 + 2 * 2) + 2 * 2 + 1),
        (split(8, APPLY), "sm_90", 2 * 2),  # a tile, and the next one
        # w and a gradient of 4 or 2 bytes; a step waits twice more, and has no next tile
        (batch(several, 512, "5Norms"), "sm_90", 2 * 3),
        (batch(several, 512, "10Update"), "sm_90", 2 * 3 + 2),
        (split(8, UPDATE, f"10UpdatePassI{several}"), "sm_90", 2 * 3 + 2),
        # flat rows, too
        (
            batch(several, 128, "10Update"),
            "sm_90",
            (1 + 3 * 2 + 2) + (2 * 3 + 2) + 3 + 3 * FLAT_ACCESSES,
        ),
        (cluster, "sm_90", 2),
    ],
)
def test_expected_waits(name, architecture, allowed, monkeypatch):
    monkeypatch.setattr(machine_code_rules, "launch_table", lambda *names: TABLE)
    of_name = (architecture, f"_ZN2ws{name}", 0, 0, 0, Counter())
    assert not too_many_waits(Kernel(*of_name, waits=allowed))
    assert f"expected {allowed}" in too_many_waits(Kernel(*of_name, waits=allowed + 1))


def test_no_clusters_before_9_0(monkeypatch):
    monkeypatch.setattr(machine_code_rules, "launch_table", lambda *names: TABLE)
    for architecture, entries in (("sm_86", 0), ("sm_90", 1), ("sm_120a", 1)):
        kernel = Kernel(architecture, f"_ZN2ws{cluster}", 0, 0, 0)
        assert len(entries_of(kernel)) == entries


def test_a_kernel_without_a_known_name_is_not_passed_over():
    with pytest.raises(KeyError, match="no batch_kernel, cluster_kernel or split_kernel"):
        narrow_accesses(Kernel("sm_90", "_ZN2ws11copy_kernelIfEEv", 0, 0, 0))
