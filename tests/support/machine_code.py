"""The CUDA kernels' machine code, as NVIDIA's cuobjdump shows it, and what may not be in it.

Four things are looked at in every kernel of every architecture:

    local memory   a stack frame or a spilled register: the kernel is to live in registers alone
    registers      as many blocks as the launch table says have to fit a multiprocessor
    accesses       where a tensor allows it, a thread moves 16 bytes at a time, or, of the narrower
                   tensor of a kernel that converts, as many elements as those 16 bytes hold
    waits          all loads of a thread's rows are issued before the first is used

The library itself is read where it was built for an architecture. For the others of the default
list, that of CMakeLists.txt, its sources are compiled with the flags of the build, and what comes
out is kept under build/ until they change.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
SEVERAL = "NS_7SeveralE"  # beside float32 weights: float32, float16 and bfloat16
TYPES = {"d": 8, "f": 4, "6__half": 2, "13__nv_bfloat16": 2}  # mangled names, bytes
NAMES = {"d": "float64", "f": "float32", "6__half": "float16", "13__nv_bfloat16": "bfloat16"}
# _ZN2ws12batch_kernelINS_11ForwardPassIf13__nv_bfloat16EELi128ELi4096EEEvNS_5Batch...
# _ZN2ws12split_kernelINS_12BackwardPassI6__halfS2_EELi8ELNS_5StageE0EEEvNS_5Split...; S2_: again
KERNEL = re.compile(
    rf"\d(?P<form>batch|cluster|split)_kernelINS_\d+"
    rf"(?P<direction>Forward|Backward|Norms|Update|Next)PassI(?P<weight>{'|'.join(TYPES)})"
    rf"(?P<out>{'|'.join(TYPES)}|{SEVERAL}|S\d*_)EE(?P<arguments>\w*?)EEv"
)
MOMENTS, UPDATE, APPLY = range(3)  # ws::Stage
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)([^;]*)")
REGISTER = re.compile(r"\bR(\d+)")


@dataclass
class Kernel:
    architecture: str  # "sm_90"
    name: str  # mangled
    registers: int  # of a thread
    stack: int  # bytes a thread: of its stack frame
    local: int  # and of its local memory beside it
    memory: Counter = field(default_factory=Counter)  # its loads and stores, by opcode
    waits: int = 0  # groups of vector loads, all of which are issued before one is used

    @property
    def signature(self) -> tuple[str, str, str]:
        """Direction, and the types of weight and out; a KeyError where the name has none."""
        match = KERNEL.search(self.name)
        if match is None:
            raise KeyError(
                f"{self.name}: no batch_kernel, cluster_kernel or split_kernel of a pass"
            )
        direction, weight, out = match.group("direction", "weight", "out")
        return direction.lower(), weight, weight if out.startswith("S") else out

    @functools.cached_property
    def narrowest(self) -> int:
        """The bytes that a vector access moves of the narrower tensor."""
        sizes = [TYPES.get(name, 2) for name in self.signature[1:]]
        return 16 // max(sizes) * min(sizes)

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
SCALAR_TIERS = 18
# Accesses of 16 bytes that a thread has of a tensor's 8 KB of flat rows.
FLAT_ACCESSES = 4
# The first architecture with clusters.
CLUSTERS = 90


class Entry(NamedTuple):
    """Of the launch table."""

    access: str
    form: str
    threads: int
    resident: int  # blocks of a multiprocessor
    rows: int  # that a thread has a part of
    groups: int  # of columns, 16 bytes of each, that it reads of them at a time


def numbers_of(match: re.Match) -> list[int]:
    """The numbers among a kernel's arguments."""
    return [int(n) for n in re.findall(r"L(?:[ib]|NS_5StageE)(\d+)E", match["arguments"])]


def entries_of(kernel: Kernel, access: str = "vector") -> list[Entry]:
    """The entries with that access whose code the kernel has."""
    direction, weight, out = kernel.signature
    match = KERNEL.search(kernel.name)
    form = {"batch": "rows"}.get(match["form"], match["form"])
    numbers = numbers_of(match)
    of_pass = "update" if direction == "next" else direction
    table = [
        entry
        for entry in launch_table(of_pass, NAMES[weight], NAMES.get(out, NAMES[weight]))
        if entry.form == form and entry.access == access
    ]
    if form == "rows":  # <Pass, kThreads, kBytes>: all tiers whose blocks have so many threads
        return [entry for entry in table if entry.threads == numbers[0]]
    if form == "cluster":  # <Pass, kTier>: empty for the others
        return table if int(kernel.architecture[3:].rstrip("af")) >= CLUSTERS else []
    return table if numbers[0] < SCALAR_TIERS else []  # <Pass, kTier, kStage>


@functools.cache
def launch_table(direction: str, weight: str, out: str) -> list[Entry]:
    from gpu.launch_table import ROWS, entries  # needs the CUDA library

    found = {}
    for rows, step, cluster in itertools.product(ROWS, (8, 1), (1, 16)):
        for entry in entries(direction, weight, out, rows, step, cluster):
            plan = entry.plan
            groups = plan["elements"] // plan["vector"] * plan["team_rows"]
            facts = (plan["threads"], plan["resident"], plan["team_rows"], groups)
            key = (plan["access"], plan["form"], plan["team"], plan["elements"])
            found[key] = Entry(plan["access"], plan["form"], *facts)
    return list(found.values())


def too_many_registers(kernel: Kernel) -> str | None:
    """Of 65,536, given out to a warp by the 256; None if as many blocks fit as the table says."""
    for entry in entries_of(kernel):
        of_block = -(-kernel.registers // 8) * 8 * entry.threads
        if 65536 // of_block < entry.resident:
            return (
                f"{kernel.architecture} {kernel.name}: {kernel.registers} registers, with which "
                f"{entry.resident} blocks of {entry.threads} threads do not fit a multiprocessor"
            )
    return None


def stage_of(kernel: Kernel) -> int:
    """Of a split row's launches; others do all of a pass."""
    match = KERNEL.search(kernel.name)
    return numbers_of(match)[1] if match["form"] == "split" else APPLY


def takes_step(kernel: Kernel) -> bool:
    return kernel.signature[0] == "update" and stage_of(kernel) != MOMENTS


def too_many_waits(kernel: Kernel) -> str | None:
    """One for each tensor's row, dense or made of runs: what lies between those is another way.

    Of several rows all dense ways are one, and gradients of 4 and of 2 bytes are two tensors. Split
    rows have the same again for the next tile, but where a step is taken. All flat rows of a kernel
    have one stretch of each input. A step waits for its states, and for the largest of them.
    """
    direction, _, out = kernel.signature
    inputs = 1 if direction in ("forward", "next") else 3 if out == SEVERAL else 2
    vector, step = entries_of(kernel), 2 * takes_step(kernel)
    ways = [inputs * PATHS if e.rows == 1 else 1 + inputs * e.rows for e in vector]
    ahead = [2 if e.form == "split" and stage_of(kernel) != UPDATE else 1 for e in vector]
    allowed = sum(n * times + step for n, times in zip(ways, ahead, strict=True))
    if entries_of(kernel, "flat"):
        allowed += (1 if out != SEVERAL else inputs) + FLAT_ACCESSES * 3 * takes_step(kernel)
    if vector and kernel.waits > allowed:
        return (
            f"{kernel.architecture} {kernel.name}: {kernel.waits} times loads are waited for, "
            f"expected {allowed}: some are used before the others of the rows are issued"
        )
    return None


def expected_accesses(kernel: Kernel) -> Counter:
    """How many accesses of at least which width the kernel needs: (opcode, bytes) -> number."""
    direction, weight, out = kernel.signature
    entries = entries_of(kernel)
    reads = PATHS * sum(entry.groups for entry in entries)
    elements = 16 // max(TYPES[weight], TYPES.get(out, 0))  # an access moves as many of all tensors
    of_weight, narrow = elements * TYPES[weight], kernel.narrowest
    of_grad = [of_weight, narrow] if out == SEVERAL else [elements * TYPES.get(out, 0)]
    of_out = [*of_grad, narrow] if out == SEVERAL else of_grad
    if direction == "norms" and stage_of(kernel) == APPLY and "split" in kernel.name:
        return Counter()  # of the moments alone
    needed = Counter({("LDG", of_weight): reads})
    if direction in ("backward", "norms", "update"):
        for width in of_grad:
            needed["LDG", width] += reads
    written = {"backward": [of_weight], "norms": []}.get(direction, of_out)
    for width in written if stage_of(kernel) == APPLY else []:
        needed["STG", width] += reads
    if takes_step(kernel):  # of each tier a group of three states and of the weight, at least
        needed["LDG", of_weight] += 3 * len(entries)
        needed["STG", of_weight] += 4 * len(entries)
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
        elif match := re.search(r"REG:(\d+) STACK:(\d+).*LOCAL:(\d+)", line):
            if name in kernels:  # which takes minutes, and would count as one
                raise ValueError(f"{architecture} {name}: compiled with more than one source")
            kernels[name] = Kernel(architecture, name, *map(int, match.groups()))
    return kernels


def count_memory(lines, kernels: dict[str, Kernel]) -> None:
    kernel, awaited = None, set()  # registers that wide loads are on their way to
    for line in lines:
        if match := re.match(r"\s*Function : (\S+)", line):
            kernel = kernels[match.group(1)]
            awaited.clear()
        elif match := INSTRUCTION.search(line):
            opcode, operands = match.group(1), match.group(2)
            if opcode.startswith(("LDG", "STG", "LDL", "STL", "LD.", "ST.")):
                kernel.memory[opcode] += 1
            if awaited and not awaited.isdisjoint(map(int, REGISTER.findall(operands))):
                awaited.clear()
            if opcode.startswith("LDG") and width_of(opcode) >= kernel.narrowest:
                kernel.waits += not awaited
                first = int(REGISTER.search(operands)[1])
                awaited.update(range(first, first + width_of(opcode) // 4))


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
