"""What a run found, as data: a `Row` is all providers on one workload, dtype and direction."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ..common.errors import WRONG
from ..common.run import what_runs
from ..common.timing import Timing
from .checks import Check
from .providers import COPY, OURS, Provider
from .workloads import Workload

BYTES_MODEL = (
    "forward reads w and writes y; backward reads w and g and writes dw; both is their sum. "
    "GB/s are these bytes over the time; copy moves as many."
)


@dataclass(frozen=True)
class Row:
    workload: Workload
    dtype: str
    direction: str
    bytes: int
    times: dict[str, Timing]  # by provider, as are the others
    checks: dict[str, Check]
    skipped: dict[str, str]  # why a provider was not timed
    host_times: dict[str, Timing] = field(default_factory=dict)  # CUDA: the host's time per call
    methods: dict[str, str] = field(default_factory=dict)  # CUDA: "graph" or "events"

    @property
    def title(self) -> str:
        return self.workload.title

    def is_wrong(self, name: str) -> bool:
        return self.skipped.get(name, "").startswith(WRONG)

    def gigabytes_per_second(self, name: str) -> float:
        """NaN where it was not timed."""
        return self.bytes / self.times[name].median / 1e9 if name in self.times else math.nan

    def ratio(self, name: str, other: str) -> float:
        """How many times as long `name` takes as `other`; NaN where one was not timed."""
        if name not in self.times or other not in self.times:
            return math.nan
        return self.times[name].median / self.times[other].median


def as_json(rows: list[Row], providers: list[Provider]) -> dict:
    """Times in microseconds, everything else in the unit of its name."""
    return {
        "bytes_model": BYTES_MODEL,
        "error": "max|x - x64| / max|x64| against the provider's own formula in float64",
        "providers": what_runs(providers),
        "rows": [_row_json(row) for row in rows],
    }


def _row_json(row: Row) -> dict:
    return {
        "workload": row.workload.name,
        "title": row.title,
        "kind": row.workload.kind,
        "weights": len(row.workload.shapes),
        "channels": row.workload.rows,
        "elements": row.workload.elements,
        "dtype": row.dtype,
        "direction": row.direction,
        "bytes": row.bytes,
        "providers": {name: _provider_json(row, name) for name in row.times},
        "skipped": row.skipped,
    }


def _provider_json(row: Row, name: str) -> dict:
    found = {
        **_timing_json(row.times[name]),
        "gigabytes_per_second": row.gigabytes_per_second(name),
        "x_copy": _finite(row.ratio(name, COPY)),
        "torch_ws_is_faster": _finite(row.ratio(name, OURS)),
    }
    if name in row.checks:
        check = row.checks[name]
        found["error_forward"] = check.error_forward
        found["error_gradient"] = check.error_gradient
        found["saved_bytes"] = check.saved_bytes
    if name in row.host_times:
        found["host"] = _timing_json(row.host_times[name])
        found["method"] = row.methods[name]
    return found


def _timing_json(timing: Timing) -> dict:
    return {
        **timing.as_json("us"),
        "samples": timing.samples,
        "calls_per_sample": timing.batch,
    }


def _finite(value: float) -> float | None:
    return None if math.isnan(value) else value
