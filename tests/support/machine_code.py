"""The CUDA kernels' machine code, as NVIDIA's cuobjdump shows it.

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
