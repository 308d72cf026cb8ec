"""``python3 -m gpu``, or ``make gpu``: build, test, check, measure, on the GPU of this machine.

With the python3, PyTorch and nvcc that are there: nothing is installed, nothing is downloaded. One
stage that fails does not stop the others. Returns 0 if no stage failed, 1 if one did, 2 if nothing
could be run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from . import stages, summary


def describe() -> dict[str, str]:
    """The machine; raises ImportError or RuntimeError where there is no GPU to work with."""
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError(f"this PyTorch, {torch.__version__}, sees no CUDA device")
    driver = "nvidia-smi --query-gpu=driver_version --format=csv,noheader --id=0"
    return {
        "gpu": torch.cuda.get_device_name(),
        "architecture": "{}.{}".format(*torch.cuda.get_device_capability()),
        "memory": f"{torch.cuda.get_device_properties(0).total_memory / 2**30:.0f} GiB",
        "driver": subprocess.getoutput(driver),
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda}",
        "python": sys.version.split()[0],
    }


def main(argv: list[str]) -> int:
    names, default = [stage.name for stage in stages.STAGES], Path("build/gpu")
    parser = argparse.ArgumentParser(
        "python3 -m gpu",
        description="Builds, tests, checks and measures torch_ws on this machine's GPU.",
        allow_abbrev=False,
    )
    which = parser.add_mutually_exclusive_group()
    only = f"some of {', '.join(names)}; default: all"
    which.add_argument("--only", nargs="+", choices=names, metavar="STAGE", help=only)
    which.add_argument("--half", choices=("first", "second"), help="of two runs of 5 minutes each")
    parser.add_argument("--minutes", type=float, help="for all stages; default: 9.5, a half 4.9")
    parser.add_argument("--out", type=Path, default=default, help="a folder; default: %(default)s")
    args = parser.parse_args(argv)
    seconds = stages.HALF_SECONDS if args.half else stages.ALL_SECONDS
    deadline = time.monotonic() + (60 * args.minutes if args.minutes else seconds)
    try:
        machine = describe()
        args.out.mkdir(parents=True, exist_ok=True)
    except (ImportError, RuntimeError, OSError) as error:
        parser.error(str(error))
    out, results, broken = args.out.resolve(), [], None
    (out / "log.txt").unlink(missing_ok=True)
    print(f"{machine['gpu']}; output in {out}", flush=True)
    chosen = [
        stage
        for stage in stages.STAGES
        if stage.half in (args.half or stage.half, "both")
        and stage.name in (args.only or [stage.name])
    ]
    for index, stage in enumerate(chosen):
        if broken:
            result = stages.Result(stage.name, "skipped", detail=broken)
        else:
            # also what earlier stages have left over, but nothing of what is for later ones
            left = deadline - time.monotonic()
            spare = left - sum(later.seconds for later in chosen[index + 1 :])
            limit = min(left, max(stage.seconds, spare))
            result = stages.run(stage, out, machine["architecture"], limit)
        if stage.name == "build" and result.status != "passed":
            broken = f"build: {result.status}"
        print(f"{result.name}: {result.status}  {result.detail}".rstrip(), flush=True)
        results.append(result)
        # After every stage, for a machine that may go away at any minute
        found = summary.summarize(machine, results, out)
        text = summary.render(found) + "\n"
        (out / "summary.txt").write_text(text, encoding="utf-8")
        (out / "summary.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"\n{text}", end="")
    return 0 if found["passed"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
