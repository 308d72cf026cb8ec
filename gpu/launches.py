"""The launches whose hardware counters are read: ResNet-50's, its update by SGD with momentum and
the norms of its gradients, and large weights of all row lengths.

``--csv PATH`` runs this program under ncu, a line of the file for each launch of torch_ws's, and
prints the rest. The calls are printed in their order; one of split rows may take two launches.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterator

import torch
from torch_ws import standardize_many

from bench.optimizer.variants import variants
from bench.weights.workloads import Workload, make_tensors, model_workload, weight_workload

from .stages import LARGE, ROW_LENGTHS

BACKWARD = (576, 4608)  # of the blocks that most of ResNet-50's rows go to
STALL = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"
METRICS = (
    "gpu__time_duration.sum",
    "dram__bytes_read.sum",
    "dram__bytes_write.sum",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__warps_active.avg.pct_of_peak_sustained_active",  # the achieved occupancy
    "launch__registers_per_thread",
    "smsp__issue_active.avg.pct_of_peak_sustained_active",
    *map(STALL.format, ("long_scoreboard", "barrier", "no_instruction")),
)
NCU = (
    # the clocks stay as they are; kernels of the namespace ws alone
    *("ncu", "--clock-control", "none", "--kernel-name-base", "demangled"),
    *("--kernel-name", "regex:^(void )?ws::", "--metrics", ",".join(METRICS)),
    *("--csv", "--page", "raw", "--print-units", "base", sys.executable, "-m", "gpu.launches"),
)


Calls = Iterator[tuple[str, Callable[[], None]]]


def calls(device: str) -> Calls:
    model = model_workload("resnet50")
    yield from of_workload(model, torch.float32, device)
    yield from of_workload(model, torch.bfloat16, device, directions=1)
    yield from of_update(model, torch.float32, device)
    for text, cols in zip(LARGE[-len(ROW_LENGTHS) :], ROW_LENGTHS, strict=True):
        directions = 2 if cols in BACKWARD else 1
        yield from of_workload(weight_workload(text), torch.float32, device, directions)


def of_workload(workload: Workload, out_dtype: torch.dtype, device: str, directions=2) -> Calls:
    tensors = make_tensors(workload, torch.float32, out_dtype, device)
    outs = []

    def forward() -> None:
        outs.extend(standardize_many(tensors.weights, dtype=out_dtype))

    def backward() -> None:
        torch.autograd.grad(outs, tensors.weights, tensors.grads)

    for call in (forward, backward)[:directions]:
        yield f"{workload.title} to {out_dtype}, {call.__name__}", call


def of_update(workload: Workload, out_dtype: torch.dtype, device: str) -> Calls:
    tensors = make_tensors(workload, torch.float32, out_dtype, device)
    for name, title in (("fused", "update"), ("norms", "norms")):
        update = variants()[name].make(tensors, "sgd", {})
        yield f"{workload.title} to {out_dtype}, {title}", update.run


def profile(path: str) -> int:
    rows = 0
    with (
        open(path, "w", encoding="utf-8") as file,
        subprocess.Popen(
            NCU, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as ncu,
    ):
        for line in ncu.stdout:
            if line.startswith('"'):
                rows += 1
                file.write(line)
            else:
                print(line, end="", flush=True)
    print(f"{max(0, rows - 2)} launches counted")  # below the names and the units
    return ncu.returncode or rows <= 2


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser("python3 -m gpu.launches", allow_abbrev=False)
    parser.add_argument("--csv", metavar="PATH", help="counts by ncu, into this file")
    path = parser.parse_args(argv).csv
    if path is not None:
        return profile(path)
    for number, (title, call) in enumerate(calls("cuda")):
        print(f"{number:3}  {title}", flush=True)
        call()
        torch.cuda.synchronize()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
