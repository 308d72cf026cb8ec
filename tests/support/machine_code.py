"""The CUDA kernels' machine code, as NVIDIA's cuobjdump shows it, and what may not be in it.

Two things are looked at in every kernel of every architecture:

    local memory   a stack frame or a spilled register: the kernel is to live in registers alone
    accesses       where a tensor allows it, a thread moves 16 bytes at a time, or, of the narrower
                   tensor of a kernel that converts, as many elements as those 16 bytes hold

The library itself is read where it was built for an architecture. For the others of the default
list, that of CMakeLists.txt, its sources are compiled with the flags of the build, and what comes
out is kept under build/ until they change.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
TYPES = {"d": 8, "f": 4, "6__half": 2, "13__nv_bfloat16": 2}  # mangled names, bytes
NAMES = {"d": "float64", "f": "float32", "6__half": "float16", "13__nv_bfloat16": "bfloat16"}
# _ZN2ws12batch_kernelINS_11ForwardPassIf13__nv_bfloat16EELi128ELi4096EEEvNS_5Batch...
# _ZN2ws12split_kernelINS_12BackwardPassI6__halfS2_EELi8ELb0EEEvNS_5Split...; S2_: a type again
KERNEL = re.compile(
    rf"\d(?P<form>batch|split)_kernelINS_\d+(?P<direction>Forward|Backward)PassI"
    rf"(?P<weight>{'|'.join(TYPES)})(?P<out>{'|'.join(TYPES)}|S\d*_)EE(?P<arguments>\w*?)EEv"
)
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)")


@dataclass
class Kernel:
    architecture: str  # "sm_90"
    name: str  # mangled
    stack: int  # bytes a thread: of its stack frame
    local: int  # and of its local memory beside it
    memory: Counter = field(default_factory=Counter)  # its loads and stores, by opcode

    @property
    def signature(self) -> tuple[str, str, str]:
        """Direction, and the types of weight and out; a KeyError where the name has none."""
        match = KERNEL.search(self.name)
        if match is None:
            raise KeyError(f"{self.name}: neither a batch_kernel nor a split_kernel of a pass")
        direction, weight, out = match.group("direction", "weight", "out")
        return direction.lower(), weight, weight if out.startswith("S") else out

    def count(self, opcode: str, width: int) -> int:
        """The instructions that move at least `width` bytes."""
        return sum(
            number
            for name, number in self.memory.items()
            if name.split(".")[0] == opcode and width_of(name) >= width
        )


def width_of(opcode: str) -> int:
    """The bytes a thread moves: LDG.E.128 -> 16, LDG.E -> 4, STG.E.U16 -> 2."""
    parts = opcode.split(".")
    named = {"256": 32, "128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
    return next((named[part] for part in parts if part in named), 4)


# --- what may not be there


def local_memory(kernel: Kernel) -> str | None:
    spills = [name for name in kernel.memory if name.split(".")[0] in ("LDL", "STL")]
    if kernel.stack or kernel.local or spills:
        found = ", ".join(f"{kernel.memory[name]} {name}" for name in spills) or "unused"
        return (
            f"{kernel.architecture} {kernel.name}: a stack frame of {kernel.stack} bytes, "
            f"{kernel.local} bytes of local memory ({found})"
        )
    return None


# Ways to a row's columns that a kernel has code for: dense rows, and those made of runs.
PATHS = 2
# The first of the scalar tiers in csrc/cuda/launch/tiers.h: rows are split there without vectors.
SCALAR_TIERS = 13


def expected_groups(kernel: Kernel) -> tuple[int, int]:
    """Groups of columns that a thread reads and writes, 16 bytes of each, over all entries."""
    direction, weight, out = kernel.signature
    match = KERNEL.search(kernel.name)
    table = vector_entries(direction, NAMES[weight], NAMES[out])
    if match["form"] == "split":  # <Pass, kTier, kApply>: without kApply it only reads
        tier, apply = map(int, re.match(r"Li(\d+)ELb([01])", match["arguments"]).groups())
        groups = sum(groups for _, split, groups in table if split and tier < SCALAR_TIERS)
        return groups, groups * apply
    # <Pass, kThreads, kBytes>: all tiers whose blocks have so many threads
    threads = int(re.match(r"Li(\d+)E", match["arguments"])[1])
    groups = sum(groups for of, split, groups in table if of == threads and not split)
    return groups, groups


@functools.cache
def vector_entries(direction: str, weight: str, out: str) -> list[tuple[int, bool, int]]:
    """Of the launch table: threads of a block, whether rows are split, and groups of a thread."""
    from gpu.launch_table import ROWS, entries  # needs the CUDA library

    found = {}
    for rows in ROWS:
        for entry in entries(direction, weight, out, rows, step=8):
            plan, split = entry.plan, not entry.limited
            if plan["access"] == "vector":
                groups = plan["elements"] // plan["vector"] * plan["team_rows"]
                found[plan["team"], plan["elements"], split] = (plan["threads"], split, groups)
    return list(found.values())


def expected_accesses(kernel: Kernel) -> Counter:
    """How many accesses of at least which width the kernel needs: (opcode, bytes) -> number."""
    direction, weight, out = kernel.signature
    reads, writes = (PATHS * groups for groups in expected_groups(kernel))
    elements = 16 // max(TYPES[weight], TYPES[out])  # an access moves as many of both tensors
    of_weight, of_out = elements * TYPES[weight], elements * TYPES[out]
    needed = Counter({("LDG", of_weight): reads})
    if direction == "forward":
        needed["STG", of_out] = writes
    else:
        needed["LDG", of_out] += reads
        needed["STG", of_weight] = writes
    return needed


def narrow_accesses(kernel: Kernel) -> list[str]:
    expected, problems = expected_accesses(kernel), []
    for opcode, width in expected:
        # whoever needs a wider access needs one of this width too
        number = sum(n for (op, w), n in expected.items() if op == opcode and w >= width)
        if kernel.count(opcode, width) < number:
            problems.append(
                f"{kernel.architecture} {kernel.name}: {kernel.count(opcode, width)} {opcode} of "
                f"{width} bytes, expected {number} or more; it has {dict(kernel.memory)}"
            )
    return problems


# --- reading


def find_tools() -> Path | None:
    """The folder of cuobjdump and nvdisasm: of a toolkit, of NVIDIA's wheels or of Triton's."""
    folders = [Path(home) / "bin" for home in (os.environ.get("CUDA_HOME"),) if home]
    on_path = shutil.which("cuobjdump")
    folders += [Path(on_path).parent] if on_path else []
    for package, pattern in (("nvidia", "*/bin"), ("triton", "backends/nvidia/bin")):
        spec = importlib.util.find_spec(package)
        for location in spec.submodule_search_locations or [] if spec else []:
            folders += sorted(Path(location).glob(pattern), reverse=True)
    both = ("cuobjdump", "nvdisasm")
    return next((f for f in folders if all((f / tool).exists() for tool in both)), None)


def read(path: Path, architecture: str, tools: Path) -> list[Kernel]:
    """The kernels of one architecture in a library or a cubin."""

    def lines(option):
        command = [tools / "cuobjdump", option, "-arch", architecture, path]
        path_variable = f"{tools}{os.pathsep}{os.environ.get('PATH', '')}"  # it calls nvdisasm
        environment = {**os.environ, "PATH": path_variable}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as dump:
            yield from dump.stdout  # 100 MB of machine code, never in memory at once
        if dump.returncode != 0:
            raise RuntimeError(f"cuobjdump {option} {path} failed: {dump.returncode}")

    kernels = parse_resources(lines("-res-usage"), architecture)
    count_memory(lines("-sass"), kernels)
    return list(kernels.values())


def parse_resources(lines, architecture: str) -> dict[str, Kernel]:
    kernels, name = {}, None
    for line in lines:
        if match := re.match(r"\s*Function (\S+):", line):
            name = match.group(1)
        elif match := re.search(r"STACK:(\d+).*LOCAL:(\d+)", line):
            kernels[name] = Kernel(architecture, name, *map(int, match.groups()))
    return kernels


def count_memory(lines, kernels: dict[str, Kernel]) -> None:
    kernel = None
    for line in lines:
        if match := re.match(r"\s*Function : (\S+)", line):
            kernel = kernels[match.group(1)]
        elif match := INSTRUCTION.search(line):
            opcode = match.group(1)
            if opcode.startswith(("LDG", "STG", "LDL", "STL", "LD.", "ST.")):
                kernel.memory[opcode] += 1


def architectures_of(library: Path, tools: Path) -> set[str]:
    text = subprocess.run(
        [tools / "cuobjdump", "-lelf", library], capture_output=True, text=True, check=True
    ).stdout
    return set(re.findall(r"\.(sm_\w+)\.cubin", text))


# --- the architectures that the library was not built for


def default_architectures() -> list[str]:
    """Those that `pip install` compiles machine code for."""
    text = (ROOT / "CMakeLists.txt").read_text()
    listed = re.search(r'set\(WS_CUDA_ARCHITECTURES\s+"([^"]+)"', text).group(1)
    return [f"sm_{number}" for number in re.findall(r"(\w+)-real", listed)]


def build_commands() -> dict[Path, list[str]]:
    """The last build's command for each CUDA source, without its architectures and its output."""
    databases = [*ROOT.glob("build/*/compile_commands.json")]
    for path in sorted(databases, key=lambda path: path.stat().st_mtime, reverse=True):
        found = {}
        for entry in json.loads(path.read_text()):
            source, words = Path(entry["file"]), shlex.split(entry["command"])
            if source.suffix == ".cu" and source.exists():
                of_host = ("--generate-code", "-Xcompiler", "--compress-mode")
                words = words[: words.index("-o")]  # last: -x cu -c source -o object
                found[source] = [
                    word for word in words if not word.startswith(of_host) and word != "-c"
                ]
        if found:
            return found
    return {}


def compile_cubin(source: Path, command: list[str], architecture: str, folder: Path) -> Path:
    """One source for one architecture; not again while neither flags nor sources change."""
    headers = [p for p in sorted((ROOT / "csrc").rglob("*")) if p.suffix in (".h", ".cuh", ".cu")]
    digest = hashlib.sha256(shlex.join(command).encode())
    for path in headers:
        digest.update(path.read_bytes())
    cubin = folder / f"{source.stem}.{architecture}.{digest.hexdigest()[:16]}.cubin"
    if not cubin.exists():
        for stale in folder.glob(f"{source.stem}.{architecture}.*"):
            stale.unlink()
        unfinished = cubin.with_suffix(".tmp")
        subprocess.run([*command, "-cubin", f"-arch={architecture}", "-o", unfinished], check=True)
        unfinished.rename(cubin)
    return cubin
