"""What ``python -m bench step`` found, as data."""

from __future__ import annotations

import dataclasses

from ..common.run import what_runs
from .checks import TOLERANCE, dtype_name
from .measure import Row
from .variants import Variant

METHOD = {
    "step": "forward and backward of every micro-batch, clipping, optimizer.step, zero_grad",
    "overhead": "percent of plain's time in the same round: the median of the rounds, its 95 % "
    "confidence interval (low, high) and the rounds' quartiles",
    "peak_bytes": "what PyTorch's allocator had handed out between two steps (parameters, the "
    "optimizer's states, stored weights), and the most at once in a step beyond it",
    "gradient_error": "max over the parameters of |g - g64| / |g64|, 2-norms, of the moving "
    "averages that the optimizer keeps of the gradients, after two steps, with smooth activations",
}


def as_json(rows: list[Row], variants: list[Variant]) -> dict:
    """Every number in the unit of its name."""
    return {
        "method": METHOD,
        "tolerance": {dtype_name(dtype): value for dtype, value in TOLERANCE.items()},
        "variants": what_runs(variants),
        "rows": [_row_json(row) for row in rows],
    }


def _row_json(row: Row) -> dict:
    cell = row.cell
    return {
        "network": cell.network,
        "title": row.title,
        "batch": cell.batch,
        "accumulate": cell.accumulate,
        "size": cell.size,
        "variants": {name: _variant_json(row, name) for name in row.times},
        "skipped": row.skipped,
    }


def _variant_json(row: Row, name: str) -> dict:
    timing = row.times[name]
    found = {
        **timing.as_json("ms"),
        "rounds": timing.samples,
        "steps_per_round": timing.batch,
        "images_per_second": row.images_per_second(name),
        "peak_bytes": row.peaks[name],
        "gradient_error": {dtype_name(d): error for d, error in row.checks[name].errors.items()},
    }
    if name in row.overheads:
        found["overhead_percent"] = dataclasses.asdict(row.overheads[name])
    return found
