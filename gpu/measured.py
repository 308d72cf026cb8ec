"""A GPU's figures beside the model's: reads the benchmark's records, and corrects two constants."""

from __future__ import annotations

import json
import math
import re
import statistics
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from bench.weights.workloads import model_workload, weight_workload

from .prediction import CHIPS, Call, Chip, Constants, predict
from .summary import OURS, UPDATE, copy_of, time_of

PREDICTED = "sgd"  # the optimizer whose step is
WORKLOADS = {"weight": weight_workload, "model": model_workload}  # by a row's kind


class Measured(NamedTuple):
    us: float  # nan where it was not measured
    copy_us: float


@dataclass
class Run:
    """A chip's figures, of all files."""

    figures: dict[Call, Measured] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


def read(paths: list[str], directions: tuple[str, ...]) -> dict[str, Run]:
    """By the chip's name; ValueError says what is wrong with a file."""
    runs: dict[str, Run] = {}
    for path in paths:
        try:
            with open(path, encoding="utf-8") as file:
                add(runs, path, json.load(file), directions)
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror}") from None
        except (KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError):
            raise ValueError(f"{path}: no record of python -m bench") from None
    return runs


def add(runs: dict[str, Run], path: str, record: dict, directions: tuple[str, ...]) -> None:
    machine = record["machine"]
    gpu, multiprocessors = machine.get("gpu", "the CPU"), machine.get("gpu_multiprocessors")
    # smaller variants of a chip are others
    chips = [
        chip.name
        for chip in CHIPS.values()
        if re.search(rf"\b{chip.name}\b", gpu) and chip.multiprocessors == multiprocessors
    ]
    if not chips:
        of = f" ({multiprocessors} multiprocessors)" if multiprocessors else ""
        raise ValueError(f"{path}: measured on {gpu}{of}, which is none of {', '.join(CHIPS)}")
    run = runs.setdefault(chips[0], Run())
    if "updates" in record:
        add_updates(run, path, record, directions)
        return
    at_once = "many" in record["providers"][OURS]["runs"]
    for row in record["rows"]:
        if row["direction"] not in directions or row["kind"] not in WORKLOADS:
            continue
        if row["kind"] == "model" and not at_once:
            run.left_out.append(f"{row['title']} of {path}, a launch for every weight (no --many)")
            continue
        call = Call.of(WORKLOADS[row["kind"]](row["workload"]), row["dtype"], row["direction"])
        run.figures[call] = Measured(time_of(row, OURS), copy_of(row))


def add_updates(run: Run, path: str, record: dict, directions: tuple[str, ...]) -> None:
    """Of a record of optimizers' steps."""
    for row in record["rows"]:
        if row["optimizer"] != PREDICTED:
            run.left_out.append(f"{row['title']} of {path}: predicted is {PREDICTED}")
            continue
        dtype = "float32" if row["dtype"] == "float32" else f"float32:{row['dtype']}"
        us = {name: 1e3 * entry["median_ms"] for name, entry in row["updates"].items()}
        # `copy` moves an update's bytes
        for direction, name, copy in (("update", UPDATE, "copy"), ("norms", "norms", None)):
            if direction in directions and name in us:
                call = Call.of(model_workload(row["model"]), dtype, direction)
                run.figures[call] = Measured(us[name], us.get(copy, math.nan))


class Corrected(NamedTuple):
    bandwidth: float | None  # TB/s of a copy; None if none was measured
    largest: str  # the copy that it is from
    more_us: float  # what a launch takes beyond the prediction with that bandwidth: the median
    count: int  # of figures
    error: float  # of predictions with both, as a fraction of what was measured: the median
    worst: float
    worst_of: str


def correct(chip: Chip, figures: dict[Call, Measured]) -> Corrected | None:
    """What measurements say of a copy's bandwidth and of a launch's fixed time."""
    timed = {call: each.us for call, each in figures.items() if not math.isnan(each.us)}
    if not timed:
        return None
    fixed = Constants().copy
    # a model's copies are one for each weight
    singles = {call: each.copy_us for call, each in figures.items() if len(call.weights) == 1}
    copies = {call: us for call, us in singles.items() if us > fixed}
    largest = max(copies, key=lambda call: call.moved, default=None)
    if largest:
        chip = replace(chip, bandwidth=largest.moved / (copies[largest] - fixed) / 1e6)
    predictions = {call: predict(call, chip) for call in timed}
    more = statistics.median((timed[call] - p.us) / p.launches for call, p in predictions.items())
    errors = {
        call: abs(1 - (p.us + more * p.launches) / timed[call]) for call, p in predictions.items()
    }
    worst = max(errors, key=errors.__getitem__)
    return Corrected(
        chip.bandwidth if largest else None,
        str(largest or ""),
        more,
        len(timed),
        statistics.median(errors.values()),
        errors[worst],
        str(worst),
    )
