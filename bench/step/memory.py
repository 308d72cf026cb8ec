"""How much memory a step needs at its worst moment, and what is there between two steps.

Counted are the bytes of tensors as PyTorch's allocators hand them out, on the CPU by its profiler:
exact, the same in every run, and without what libraries such as oneDNN allocate for themselves.
"""

from __future__ import annotations

import gc
import json
import os
import tempfile
from collections.abc import Callable

import torch


def allocated_bytes(run: Callable[[], object], device: str) -> tuple[int, int]:
    """The most bytes at once during `run`, and those after it; both beyond those from before it."""
    gc.collect()  # what was left in cycles would be freed, and counted, during `run`
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before, torch.cuda.memory_allocated() - before
    # the profiler's library would report its start and stop on stderr
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        run()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "trace.json")
        profile.export_chrome_trace(path)
        with open(path, encoding="utf-8") as file:
            events = json.load(file)["traceEvents"]
    allocations = [event for event in events if event["name"] == "[memory]"]
    allocations.sort(key=lambda event: event["args"]["Ev Idx"])
    allocated = peak = 0
    for event in allocations:
        allocated += event["args"]["Bytes"]  # negative where memory is freed
        peak = max(peak, allocated)
    return peak, allocated
