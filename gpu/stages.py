"""The stages of ``make gpu``: what runs, for how long at most, and what the machine has to have.

Two runs of HALF_SECONDS each are meant for a machine that is there for minutes: a half's stages
together have no more, where libraries are brought along. What says most comes first: if they have
to be compiled, or the machine is slow, the least telling has no time left.
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

ALL_SECONDS = 570
HALF_SECONDS = 293  # five minutes, but for what is around the stages
LOADING_SECONDS = 25  # of the build stage where it finds libraries to load
LEAST_SECONDS = 10  # to begin a stage with: importing PyTorch takes as long on a cold machine
GRACE_SECONDS = 5  # for an interrupted stage to say what it has found
LOG_BYTES = 1 << 20  # of a stage's output that are kept


def find_gpu_tests() -> tuple[list[str], list[str]]:
    """The tests that need a GPU; and the files whose tests take most of its memory."""
    shared, alone = [], []
    for path in sorted(ROOT.glob("tests/**/test_*.py")):
        name, text = str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
        if "\npytestmark = needs_gpu\n" in text:
            (alone if "needs_memory(" in text else shared).append(name)
        tests = re.findall(r"^@needs_gpu\n(?:@.+\n)*def (\w+)", text, re.MULTILINE)
        shared += [f"{name}::{test}" for test in tests]
    return shared, alone


NEEDS_GPU, NEEDS_MEMORY = find_gpu_tests()
# What another PyTorch or CPU could break: the fast tests of all that the package computes, and not
# those of files, pages, installation and commands. They import more than those that need a GPU.
PACKAGE_TESTS = "-m 'not slow' tests/core tests/compile tests/layers tests/training tests/models"
IMPORTED = ("hypothesis", "numpy", "safetensors", "expecttest")


class Stage(NamedTuple):
    name: str
    half: str  # the run of two that it belongs to: "first", "second", "both" or "neither"
    seconds: float  # that it may take in any case
    command: str  # with {python}, the GPU's {architecture}, and the folder {out}
    needs: tuple[str, ...] = ()  # programs on PATH, or modules


class Result(NamedTuple):
    name: str
    status: str  # "passed", "failed", "timed out" or "skipped"
    seconds: float = 0
    detail: str = ""


def bench(name: str, half: str, seconds: float, options: str, plots: bool = True) -> Stage:
    files = f"--json {{out}}/{name}.json"
    if plots and importlib.util.find_spec("matplotlib"):
        files += f" --plot {{out}}/{name}.png"
    return Stage(name, half, seconds, f"{{python}} -m bench {options} --device cuda {files}")


def tests(name: str, half: str, seconds: float, what: str, processes: int = 1, *needs) -> Stage:
    several = f"-n {processes} " if processes > 1 and importlib.util.find_spec("xdist") else ""
    command = f"{{python}} -m pytest -p no:cacheprovider --durations=10 {several}{what}"
    return Stage(name, half, seconds, command, ("pytest", *needs))


def sanitizer(tool: str, half: str, seconds: float, what: str = "--few") -> Stage:
    # Without PyTorch's cache a tensor is an allocation of the driver's: an access beyond it shows.
    # API errors are what PyTorch and the runtime provoke to find out what the driver knows.
    program = f"env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool {tool}"
    command = f"{program} --report-api-errors no --error-exitcode 9 {{python}} -m gpu.entries"
    return Stage(tool, half, seconds, f"{command} {what}", ("compute-sanitizer",))


WEIGHTS = f"--shapes {SHAPES} --direction forward backward --providers copy --seconds 0.3"
MODEL = "--many --models resnet50 --direction forward backward --providers"
PEERS = "formula batch_norm layer_norm --dtype float32 float32:bfloat16"
OPTIMIZER = "--variants fused norms grouped clip_grad_norm --seconds 2"
VARIANTS = "control layer grouped held fused"
STEP = f"--models resnet50 --variants {VARIANTS} --batch 2 32 --micro-batches 1 4 --seconds 3"
BUILD = "env WS_CUDA=on TORCH_CUDA_ARCH_LIST={architecture} {python} -m gpu.build"
COUNTERS = "{python} -m gpu.launches --csv {out}/counters.csv"
# Of the GPU's tests each process has a context there and a cache of its memory.
GPU_PROCESSES, CPU_PROCESSES = 4, 8
STAGES = [
    Stage("build", "both", 200, BUILD),  # where it compiles
    Stage("entries", "first", 28, "{python} -m gpu.entries"),
    tests("tests", "first", 90, " ".join(NEEDS_GPU), GPU_PROCESSES),
    bench("weights", "first", 75, WEIGHTS),
    bench("model", "first", 50, f"{MODEL} {PEERS}"),
    # no picture: a half leaves eight files at most
    bench("optimizer", "first", 25, f"optimizer {OPTIMIZER}", plots=False),
    sanitizer("memcheck", "second", 40, ""),
    sanitizer("racecheck", "second", 33),
    Stage("counters", "second", 30, COUNTERS, ("ncu",)),
    tests("memory", "second", 25, " ".join(NEEDS_MEMORY)),
    bench("compile", "second", 45, f"{MODEL} compile"),
    bench("step", "second", 55, f"step {STEP} --autocast --channels-last"),
    tests("package", "second", 40, PACKAGE_TESTS, CPU_PROCESSES, *IMPORTED),
    sanitizer("initcheck", "neither", 30),
    sanitizer("synccheck", "neither", 30),
]

# What compute-sanitizer and ncu say of a GPU that they cannot watch
CANNOT = "Device not supported|ERR_NVGPUCTRPERM|Failed to initialize the profiler"
# What the summary quotes: of each, the last line of a stage's log that has it.
QUOTES = (
    rf"((?:{CANNOT})[^.\n]*)",
    r"^(libraries: .*)$",
    r"^cuda_reason +(?!None$)(\S.*)$",
    r"^(?:=+ )?(\d+ (?:passed|failed|skipped|error).* in [\d.]+s.*?)(?: =+)?$",
    r"^=+ (?:\w+ )?SUMMARY: (.*)$",
    r"^(\d+ weights, .*)$",
    r"^(WRONG: .*)$",
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


def run(stage: Stage, out: Path, architecture: str, limit: float) -> Result:
    """Runs the stage's command for `limit` seconds; its output goes to the end of OUT/log.txt."""
    (out / f"{stage.name}.json").unlink(missing_ok=True)  # of an earlier run
    start, variables = time.monotonic(), environment()
    programs = {name for name in stage.needs if shutil.which(name, path=variables["PATH"])}
    absent = [n for n in stage.needs if n not in programs and not importlib.util.find_spec(n)]
    if absent or limit < min(LEAST_SECONDS, stage.seconds):
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
            command,
            cwd=ROOT,
            env=variables,
            **streams,
            start_new_session=True,
            # not ignored, as a shell's background jobs have it
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
            os.killpg(process.pid, signal.SIGINT)  # pytest then prints what has failed so far
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_SECONDS)
        finally:  # of what it has started, too: all of it is one group of processes
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            (out / f"{stage.name}.json.part").unlink(missing_ok=True)  # of the benchmark
        log.seek(begin)
        text = log.read()
        if len(text) > LOG_BYTES:
            log.seek(begin)
            log.truncate()
            half = LOG_BYTES // 2
            omission = f"\n... {len(text) - 2 * half} left out ...\n"
            print(text[:half], omission, text[-half:], sep="", file=log)
    seconds = time.monotonic() - start
    quotes = [q for pattern in QUOTES for q in re.findall(pattern, text, re.M)[-1:]]
    if code is None:
        status, quotes = "timed out", [f"stopped after {seconds:.0f} s", *quotes]
    elif code:
        status, quotes = "failed", quotes or [f"exit status {code}", *text.splitlines()[-1:]]
    else:
        status = "passed"
    if re.search(CANNOT, text):
        status = "skipped"
    return Result(stage.name, status, seconds, "; ".join(quotes))
