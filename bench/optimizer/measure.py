"""One model, optimizer and dtype: check every variant, then time them in interleaved rounds."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ..common import cuda_timing, timing
from ..common.errors import WRONG, reason_of
from ..common.interval import Interval, ratio
from ..common.optimizers import KINDS
from ..common.run import Started
from ..common.timing import Call, Timing
from ..weights.workloads import Tensors, Workload, make_tensors
from .checks import Check, check
from .variants import Variant, moved_bytes

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
GRADIENTS = 1e-3  # their size, at which AGC clips


@dataclass
class Row:
    """All variants, by name, on one model's weights."""

    workload: Workload
    kind: str  # of the optimizer
    dtype: str  # of the standardized weights and their gradients
    times: dict[str, Timing] = field(default_factory=dict)
    checks: dict[str, Check] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)  # why a variant was not timed
    host_times: dict[str, Timing] = field(default_factory=dict)  # CUDA: the host's time per call
    methods: dict[str, str] = field(default_factory=dict)  # CUDA: "graph" or "events"

    @property
    def title(self) -> str:
        return f"{self.workload.title}, {KINDS[self.kind].title}, {self.dtype}"

    @property
    def bytes(self) -> int:
        return moved_bytes(self.kind, self.workload.elements, DTYPES[self.dtype])

    def ratio(self, name: str, other: str) -> Interval | None:
        """How many times as long `name` takes as `other`; None where one was not timed."""
        if name not in self.times or other not in self.times:
            return None
        return ratio(self.times[name], self.times[other])


def measure(
    workload: Workload,
    kind: str,
    dtype: str,
    variants: list[Variant],
    device: str,
    seconds: float,
    started: Started,
) -> Row:
    row = Row(workload, kind, dtype)
    tensors = make_tensors(workload, torch.float32, DTYPES[dtype], device)
    tensors = Tensors(tensors.weights, [GRADIENTS * grad for grad in tensors.grads])
    sets = 1
    if device == "cuda":
        sets = cuda_timing.sets_needed(sum(weight.nbytes for weight in tensors.weights))
    calls: dict[str, list[Call]] = {}
    for variant in variants:
        started(f"{row.title}: checking {variant.name}")
        try:
            found = check(variant, tensors, kind)
            updates = [variant.make(tensors.clone(), kind, {}) for _ in range(sets)]
            for update in updates:
                update.run()  # the first makes the states of torch's optimizers
        except Exception as error:  # a PyTorch without this implementation
            if variant.is_ours:
                raise
            row.skipped[variant.name] = reason_of(error)
            continue
        if not found.passed:
            row.skipped[variant.name] = f"{WRONG}, {found.verdict}"
            continue
        if found.errors:
            row.checks[variant.name] = found
        calls[variant.name] = [Call(lambda _, update=update: update.run()) for update in updates]
    started(f"{row.title}: timing")
    if device == "cuda":
        row.times, row.host_times, row.methods = cuda_timing.measure(calls, seconds)
    else:
        row.times = timing.measure({name: call for name, (call,) in calls.items()}, seconds)
    return row
