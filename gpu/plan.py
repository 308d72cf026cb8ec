"""The stages of a run: their commands, limits, and what they need of the machine.

The tests come before the measurements, and what says most before the rest, so that a run that is
short of time ends with the least important missing. The sanitizers measure no time, so all four run
at once; torch.compile needs a minute or more for its side of one comparison, so it is last.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
from pathlib import Path

from .stages import ROOT, Stage

SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
NAMES = ("build", "tests", "weights", "model", *SANITIZERS, "compile")

# Row lengths of the layers that get standardized: depthwise and stem convolutions, which no vector
# length divides; 1x1 convolutions; 3x3 ones of 64 to 512 channels; 3-D ones; a linear layer's.
ROW_LENGTHS = (9, 25, 27, 49, 147, 64, 576, 1152, 2304, 4608, 18432, 65536)
SIZES = (1 << 20, 1 << 22)  # elements: 4 and 16 MB of float32
ONE_CHANNEL = 1 << 24
SMALL = ("64x147", "256x64", "64x576", "256x1024", "512x1152")  # below 4 MB


def shapes() -> list[str]:
    """Weights of every row length, with whole multiples of eight rows, and a few small ones."""
    eight = 8
    found = [
        f"{-(-size // (cols * eight)) * eight}x{cols}" for size in SIZES for cols in ROW_LENGTHS
    ]
    return [*found, f"1x{ONE_CHANNEL}", *SMALL]


def make(out: Path, architecture: str, names: list[str]) -> list[list[Stage]]:
    """Groups of stages; those of a group run at once."""
    groups = [
        [_build(architecture)],
        [_tests()],
        [_weights(out)],
        [_model(out)],
        [_sanitizer(tool) for tool in SANITIZERS],
        [_compile(out)],
    ]
    chosen = [[stage for stage in group if stage.name in names] for group in groups]
    return [group for group in chosen if group]


def _python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]


def _environment(**more: str) -> dict[str, str]:
    """The package from the source tree, and the tools beside this python3."""
    paths = {
        "PYTHONPATH": [str(ROOT / "python"), os.environ.get("PYTHONPATH")],
        "PATH": [str(Path(sys.executable).parent), os.environ.get("PATH")],
    }
    joined = {name: os.pathsep.join(filter(None, each)) for name, each in paths.items()}
    return {**joined, "PYTHONUNBUFFERED": "1", **more}


def _missing(*modules: str) -> str | None:
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    return f"{', '.join(absent)}: not importable" if absent else None


def _build(architecture: str) -> Stage:
    environment = _environment(WS_CUDA="on", TORCH_CUDA_ARCH_LIST=architecture)
    tools = [t for t in ("cmake", "ninja") if not shutil.which(t, path=environment["PATH"])]
    absent = f"{', '.join(tools)}: not on PATH" if tools else _missing("pybind11", "setuptools")
    return Stage("build", _python("-m", "gpu.build"), 200, environment, absent, _read_build)


def _read_build(log: str) -> tuple[str, bool]:
    reason = re.findall(r"^cuda_reason +(?!None$)(\S.*)$", log, re.M)
    return "".join(reason[-1:]), False


def _tests() -> Stage:
    files = sorted(str(path.relative_to(ROOT)) for path in gpu_tests())
    command = _python("-m", "pytest", "-p", "no:cacheprovider", "--durations=10", *files)
    return Stage("tests", command, 240, _environment(), _missing("pytest"), _read_pytest)


def gpu_tests() -> list[Path]:
    """Those of the stand-in are for machines without a GPU."""
    found = (ROOT / "tests").glob("test_cuda*.py")
    return [path for path in found if not path.name.startswith("test_cuda_stand_in")]


def _read_pytest(log: str) -> tuple[str, bool]:
    counts = re.findall(
        r"^(?:=+ )?(\d+ (?:passed|failed|skipped|error).* in [\d.]+s.*)$", log, re.M
    )
    return (counts[-1].strip(" =") if counts else "", False)


def _bench(name: str, out: Path, seconds: float, *options: str, plot: bool = True) -> Stage:
    command = _python("-m", "bench", "--device", "cuda", *options, "--json", f"{out}/{name}.json")
    if plot and not _missing("matplotlib"):
        command += ["--plot", f"{out}/{name}.png"]
    return Stage(name, command, seconds, _environment())


def _weights(out: Path) -> Stage:
    options = ["--shapes", *shapes(), "--providers", "copy", "--direction", "forward", "backward"]
    return _bench("weights", out, 150, *options, "--seconds", "0.4")


MODEL = ("--many", "--models", "resnet50", "--direction", "forward", "backward")


def _model(out: Path) -> Stage:
    dtypes = ("--dtype", "float32", "float32:bfloat16")
    peers = ("--providers", "formula", "batch_norm", "layer_norm")
    return _bench("model", out, 120, *MODEL, *dtypes, *peers)


def _compile(out: Path) -> Stage:
    return _bench("compile", out, 150, *MODEL, "--providers", "compile", plot=False)


def _sanitizer(tool: str) -> Stage:
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    folders = [f"{home}/bin" for home in homes if home]
    path = os.pathsep.join([os.environ.get("PATH", ""), *folders])
    program = shutil.which("compute-sanitizer", path=path)
    command = [
        program or "compute-sanitizer",
        "--tool",
        tool,
        "--error-exitcode",
        "9",
        *_python("-m", "gpu.entries"),
    ]
    # One allocation of the driver's for each tensor: an access beyond it is then seen.
    environment = _environment(PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    absent = None if program else "no compute-sanitizer on PATH, in CUDA_HOME or in /usr/local/cuda"
    return Stage(tool, command, 120, environment, absent, _read_sanitizer)


def _read_sanitizer(log: str) -> tuple[str, bool]:
    if "Device not supported" in log:
        return "compute-sanitizer: Device not supported", True
    found = re.findall(r"^=+ (?:\w+ )?SUMMARY: (.*)$", log, re.M)
    ran = re.findall(r"^(\d+ weights, .*)$", log, re.M)
    return "; ".join([*found[-1:], *ran[-1:]]), False
