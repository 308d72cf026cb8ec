"""What a run ran on: the facts without which its numbers mean nothing."""

from __future__ import annotations

import ctypes
import datetime
import os
import platform
from pathlib import Path

import torch
import torch_ws


def cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cpu_caches() -> dict[str, str]:
    """The data caches of the first core, such as {"L1d": "32K", "L2": "1024K", "L3": "32768K"}."""
    caches = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = (
            (index / name).read_text(encoding="ascii").strip() for name in ("level", "type", "size")
        )
        if kind != "Instruction":
            caches[f"L{level}" + ("d" if kind == "Data" else "")] = size
    return caches


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def keep_freed_memory() -> bool:
    """Has the C library keep freed memory for the next tensors, where it is glibc.

    By default glibc gives large blocks back at every free, and the system then maps fresh pages
    while the next call is being timed: for results beyond some 32 MB that takes several times as
    long as standardizing them, for every provider alike, and the table would show nothing else.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None:
        return False
    trim_threshold, mmap_max = -1, -4  # malloc.h's M_TRIM_THRESHOLD and M_MMAP_MAX
    return bool(mallopt(mmap_max, 0) and mallopt(trim_threshold, 2**31 - 1))


def describe(device: str) -> dict:
    """Everything about the machine and the software that goes into the report."""
    machine = {
        "cpu": cpu_model(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "caches": cpu_caches(),
        "isa": torch_ws.cpu_capability(),
        "system": platform.platform(),
    }
    if device == "cuda":
        gpu = torch.cuda.get_device_properties(0)
        machine["gpu"] = gpu.name
        machine["gpu_l2_bytes"] = gpu.L2_cache_size
        machine["gpu_multiprocessors"] = gpu.multi_processor_count
    versions = {
        "torch_ws": torch_ws.__version__,
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
        "python": platform.python_version(),
    }
    date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    return {"machine": machine, "versions": versions, "date": date, "load": load}
