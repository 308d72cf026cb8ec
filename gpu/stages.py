"""The stages of ``make gpu``: what runs, for how long at most, and what the machine has to have.

The tests come before the measurements, and what says most before the rest: a run that is short of
time ends with the least important missing.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]

# Row lengths of the layers that get standardized: depthwise and stem convolutions, which no vector
# length divides; 1x1 convolutions; 3x3 ones of 64 to 512 channels; 3-D ones; a linear layer's.
ROW_LENGTHS = (9, 25, 27, 49, 147, 64, 576, 1152, 2304, 4608, 18432, 65536)
SMALL = "64x147 256x64 64x576 256x1024 512x1152"  # below 4 MB
# Of every length 4 and 16 MB of float32, in whole multiples of eight rows; and one long channel.
LARGE = [f"{-(-(n << 20) // (8 * cols)) * 8}x{cols}" for n in (1, 4) for cols in ROW_LENGTHS]
SHAPES = f"{' '.join(LARGE)} 1x{1 << 24} {SMALL}"

NEEDS_GPU = [  # the files of which every test does
    str(path.relative_to(ROOT))
    for path in sorted(ROOT.glob("tests/**/test_*.py"))
    if "\npytestmark = needs_gpu\n" in path.read_text(encoding="utf-8")
]


class Stage(NamedTuple):
    name: str
    half: str  # "first" or "second": the run of two that it belongs to; or "both"
    seconds: float
    command: str  # with {python}, the GPU's {architecture}, and the folder {out}
    needs: tuple[str, ...] = ()  # programs on PATH, or modules


class Result(NamedTuple):
    name: str
    status: str  # "passed", "failed", "timed out" or "skipped"
    seconds: float = 0
    detail: str = ""


def bench(name: str, half: str, seconds: float, options: str) -> Stage:
    plot = f" --plot {{out}}/{name}.png" if importlib.util.find_spec("matplotlib") else ""
    files = f"--json {{out}}/{name}.json{plot}"
    return Stage(name, half, seconds, f"{{python}} -m bench {options} --device cuda {files}")


def sanitizer(tool: str) -> Stage:
    # Without PyTorch's cache a tensor is an allocation of the driver's: an access beyond it shows.
    program = f"env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool {tool}"
    command = f"{program} --error-exitcode 9 {{python}} -m gpu.entries"
    return Stage(tool, "second", 90, command, ("compute-sanitizer",))


WEIGHTS = f"--shapes {SHAPES} --direction forward backward --providers copy --seconds 0.4"
MODEL = "--many --models resnet50 --direction forward backward --providers"
PEERS = "formula batch_norm layer_norm --dtype float32 float32:bfloat16"
BUILD = "env WS_CUDA=on TORCH_CUDA_ARCH_LIST={architecture} {python} -m gpu.build"
PYTEST = f"{{python}} -m pytest -p no:cacheprovider --durations=10 {' '.join(NEEDS_GPU)}"
STAGES = [
    Stage("build", "both", 200, BUILD, ("cmake", "ninja", "pybind11", "setuptools")),
    Stage("entries", "first", 60, "{python} -m gpu.entries"),
    Stage("tests", "first", 240, PYTEST, ("pytest",)),
    bench("weights", "first", 150, WEIGHTS),
    bench("model", "first", 120, f"{MODEL} {PEERS}"),
    sanitizer("memcheck"),
    sanitizer("racecheck"),
    bench("compile", "second", 150, f"{MODEL} compile"),
    sanitizer("initcheck"),
    sanitizer("synccheck"),
]

# What the summary quotes: of each, the last line of a stage's log that has it.
CANNOT = "Device not supported"  # says compute-sanitizer of a GPU that it cannot watch
QUOTES = (
    rf"({CANNOT})",
    r"^cuda_reason +(?!None$)(\S.*)$",
    r"^(?:=+ )?(\d+ (?:passed|failed|skipped|error).* in [\d.]+s.*?)(?: =+)?$",
    r"^=+ (?:\w+ )?SUMMARY: (.*)$",
    r"^(\d+ weights, .*)$",
    r"^(python -m bench: error: .*)$",
)


def environment() -> dict[str, str]:
    """The package from the source tree, and the tools beside this python3 and CUDA's."""
    known = os.environ
    cuda = known.get("CUDA_HOME") or known.get("CUDA_PATH") or "/usr/local/cuda"
    paths = {
        "PATH": f"{Path(sys.executable).parent}:{known.get('PATH', '')}:{cuda}/bin",
        "PYTHONPATH": f"{ROOT / 'python'}:{known.get('PYTHONPATH', '')}",
    }
    return {**known, **paths, "PYTHONUNBUFFERED": "1"}


def run(stage: Stage, out: Path, architecture: str, deadline: float) -> Result:
    """Runs the stage's command, whose output goes to the end of OUT/log.txt."""
    (out / f"{stage.name}.json").unlink(missing_ok=True)  # of an earlier run
    start, variables = time.monotonic(), environment()
    limit = min(stage.seconds, deadline - start)
    programs = {name for name in stage.needs if shutil.which(name, path=variables["PATH"])}
    absent = [n for n in stage.needs if n not in programs and not importlib.util.find_spec(n)]
    if absent or limit <= 0:
        reason = f"{', '.join(absent)}: not found" if absent else "no time left"
        return Result(stage.name, "skipped", detail=reason)
    known = {"python": sys.executable, "architecture": architecture, "out": out}
    command = [word.format(**known) for word in shlex.split(stage.command)]
    print(f"{stage.name}: at most {limit:.0f} s ...", flush=True)
    with open(out / "log.txt", "a+", encoding="utf-8", errors="replace") as log:
        print(f"\n===== {stage.name}\n$ {shlex.join(command)}", file=log, flush=True)
        begin = log.tell()
        streams = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(
            command, cwd=ROOT, env=variables, **streams, start_new_session=True
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:  # of what it has started, too: all of it is one group of processes
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.seek(begin)
        text = log.read()
    seconds = time.monotonic() - start
    quotes = [q for pattern in QUOTES for q in re.findall(pattern, text, re.M)[-1:]]
    if code is None:
        status, quotes = "timed out", [f"stopped after {seconds:.0f} s", *quotes]
    elif code:
        status, quotes = "failed", quotes or [f"exit status {code}", *text.splitlines()[-1:]]
    else:
        status = "passed"
    return Result(stage.name, "skipped" if CANNOT in text else status, seconds, "; ".join(quotes))
