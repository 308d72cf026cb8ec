"""What ``python -m bench optimizer`` found, as data."""

from __future__ import annotations

import dataclasses

from ..common.run import what_runs
from ..weights.checks import TOLERANCE
from .measure import Row
from .variants import COPY, TORCH, Variant

METHOD = {
    "bytes": "what fused has to read and write: weights, states, gradients of the standardized "
    "weights, and these; copy moves as many",
    "x_copy, x_torch_fused": "times within the same round: the median of the rounds, its 95 % "
    "confidence interval (low, high) and the rounds' quartiles",
    "host": "on CUDA what a call takes of the host's time, all else being the kernels', in CUDA "
    "graphs, of which AdamW has to be capturable",
    "errors": "max|x - x64| / max|x64| of all that is written, after two updates, in epsilons",
}


def as_json(rows: list[Row], variants: list[Variant]) -> dict:
    """Every number in the unit of its name."""
    return {
        "method": METHOD,
        "tolerance": TOLERANCE,
        "updates": what_runs(variants),
        "rows": [_row_json(row) for row in rows],
    }


def _row_json(row: Row) -> dict:
    return {
        "model": row.workload.name,
        "title": row.title,
        "optimizer": row.kind,
        "dtype": row.dtype,
        "weights": len(row.workload.shapes),
        "elements": row.workload.elements,
        "bytes": row.bytes,
        "updates": {name: _update_json(row, name) for name in row.times},
        "skipped": row.skipped,
    }


def _update_json(row: Row, name: str) -> dict:
    timing = row.times[name]
    found = {
        **timing.as_json("ms"),
        "rounds": timing.samples,
        "calls_per_round": timing.batch,
    }
    if name in row.host_times:
        found["host"] = row.host_times[name].as_json("ms")
        found["method"] = row.methods[name]
    if name in row.checks:
        found["errors"] = row.checks[name].errors
    for key, other in (("x_copy", COPY), ("x_torch_fused", TORCH)):
        interval = row.ratio(name, other)
        found[key] = interval and dataclasses.asdict(interval)
    return found
