"""``python3 -m gpu``, or ``make gpu``: build, test, check, measure, on the GPU of this machine.

With the python3, PyTorch and nvcc that are there: nothing is installed, nothing is downloaded. The
stages (plan.py) run one after the other, each in processes of its own with a time limit; one that
fails does not stop the others. Each leaves its output in OUT/<stage>.log, the benchmark's leave
their JSON and PNG files, and the summary is printed last and written to OUT/summary.txt and
OUT/summary.json. Returns 0 if no stage failed, 1 if one did, 2 if nothing could be run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from . import plan, summary, targets
from .stages import run_together


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 -m gpu",
        description="Builds, tests, checks and measures torch_ws on this machine's GPU.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--out", type=Path, default=Path("build/gpu"), help="a folder; default: %(default)s"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=plan.NAMES,
        metavar="STAGE",
        help=f"some of {', '.join(plan.NAMES)}; default: all",
    )
    parser.add_argument(
        "--minutes", type=float, default=9.5, help="for all stages; default: %(default)s"
    )
    return parser


def describe() -> dict[str, str]:
    """The machine; raises RuntimeError where there is no GPU to work with."""
    try:
        import torch
    except ImportError as error:
        raise RuntimeError(f"{sys.executable} has no PyTorch: {error}") from None
    if not torch.cuda.is_available():
        raise RuntimeError(f"this PyTorch, {torch.__version__}, sees no CUDA device")
    major, minor = torch.cuda.get_device_capability()
    memory = torch.cuda.get_device_properties(0).total_memory
    return {
        "gpu": torch.cuda.get_device_name(),
        "architecture": f"{major}.{minor}",
        "memory": f"{memory / 2**30:.0f} GiB",
        "driver": _driver(),
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda}",
        "python": sys.version.split()[0],
    }


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown: no nvidia-smi"


def main(argv: list[str]) -> int:
    args = make_parser().parse_args(argv)
    try:
        machine = describe()
        args.out.mkdir(parents=True, exist_ok=True)
    except (RuntimeError, OSError) as error:
        print(f"python3 -m gpu: error: {error}", file=sys.stderr)
        return 2
    out = args.out.resolve()
    deadline = time.monotonic() + 60 * args.minutes
    print(f"{machine['gpu']}; output in {out}", flush=True)
    results = []
    for stages in plan.make(out, machine["architecture"], args.only or plan.NAMES):
        broken = next((r for r in results if r.name == "build" and r.status != "passed"), None)
        if broken is not None:
            stages = [stage.skipped(f"build: {broken.status}") for stage in stages]
        results += run_together(stages, out, deadline)
    measured = targets.read(out, [r.name for r in results if r.status != "skipped"])
    text = summary.render(machine, results, measured)
    (out / "summary.txt").write_text(text + "\n", encoding="utf-8")
    found = summary.as_json(machine, results, measured)
    (out / "summary.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"\n{text}")
    return 0 if found["passed"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
