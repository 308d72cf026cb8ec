"""The project's targets on an H100 or H200, held against what the benchmark found.

A copy's time is that of the faster of the benchmark's two, `copy` and `elementwise`.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

OURS = "torch_ws"
COPIES = ("copy", "elementwise")

LARGE_BYTES = 4e6  # of a weight, from which on memory's speed counts, and not a launch's latency
LARGE_SPEED = {"forward": 0.90, "backward": 0.85}  # of the copy's, or more
SMALL_TIME = 1.2  # of the copy's, or less

# ResNet-50's weights with standardize_many: (dtype, direction) -> microseconds of the GPU
MODEL_US = {
    ("float32", "forward"): 47,
    ("float32:bfloat16", "forward"): 36,
    ("float32", "backward"): 70,
}
MODEL_HOST_US = 100  # of the host, for a call
# How many times as long the others take in float32, in either direction
MODEL_FASTER = {"formula": 20, "batch_norm": 8, "layer_norm": 4, "compile": 2}


@dataclass(frozen=True)
class Verdict:
    what: str
    measured: float
    target: float
    at_least: bool  # else: at most
    unit: str  # "x" or " us"
    note: str = ""

    @property
    def met(self) -> bool:
        return self.measured >= self.target if self.at_least else self.measured <= self.target


@dataclass(frozen=True)
class Weight:
    """One weight in one direction: times in microseconds."""

    shape: str
    megabytes: float
    dtype: str
    direction: str
    ours: float
    copy: float
    host: float
    verdict: Verdict


@dataclass(frozen=True)
class Measured:
    weights: list[Weight]
    model: list[Verdict]
    bandwidth: float | None  # GB/s of the copy that moves most
    missing: list[str]  # what was not measured, or not as it should be

    @property
    def verdicts(self) -> list[Verdict]:
        return [*(weight.verdict for weight in self.weights), *self.model]


def read(folder: Path, stages: list[str]) -> Measured:
    """From the files that these stages left."""
    rows, missing = {}, []
    for name in ("weights", "model", "compile"):
        rows[name] = []
        if name not in stages:
            continue
        try:
            found = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            missing.append(f"{name}: nothing was measured")
            continue
        rows[name] = found["rows"]
        if not found["complete"]:
            missing.append(f"{name}: only {len(found['rows'])} rows, then it stopped")
        skipped = {peer: why for row in found["rows"] for peer, why in row["skipped"].items()}
        missing += [f"{name}: {peer} was left out: {why}" for peer, why in skipped.items()]
        missing += [
            f"{name}: {row['title']}, {row['dtype']}, {row['direction']}: {peer} is in no CUDA "
            "graph, its time has gaps in it"
            for row in found["rows"]
            for peer, entry in row["providers"].items()
            if entry.get("method") == "events"
        ]
    copies = [row for row in rows["weights"] if row["direction"] == "forward"]
    largest = max(copies, key=lambda row: row["bytes"], default=None)
    return Measured(
        [_weight(row) for row in rows["weights"]],
        [verdict for row in rows["model"] for verdict in _of_model(row)]
        + [verdict for row in rows["compile"] for verdict in _over_peers(row)],
        largest and largest["bytes"] / (_copy(largest) * 1e-6) / 1e9,
        missing,
    )


def _time(row: dict, provider: str) -> float:
    return row["providers"].get(provider, {}).get("median_us", math.nan)


def _host(row: dict, provider: str) -> float:
    return row["providers"].get(provider, {}).get("host", {}).get("median_us", math.nan)


def _copy(row: dict) -> float:
    return min(_time(row, name) for name in COPIES if name in row["providers"])


def _weight(row: dict) -> Weight:
    ours, copy = _time(row, OURS), _copy(row)
    of_element = {"float32": 4, "float64": 8}.get(row["dtype"].split(":")[0], 2)
    size = row["elements"] * of_element
    what = f"{row['title']}, {row['dtype']}, {row['direction']}"
    if size >= LARGE_BYTES:
        speed = LARGE_SPEED[row["direction"]]
        verdict = Verdict(f"{what}: of the copy's speed", copy / ours, speed, True, "x")
    else:
        verdict = Verdict(f"{what}: of the copy's time", ours / copy, SMALL_TIME, False, "x")
    return Weight(
        row["title"],
        size / 1e6,
        row["dtype"],
        row["direction"],
        ours,
        copy,
        _host(row, OURS),
        verdict,
    )


def _of_model(row: dict) -> list[Verdict]:
    what = f"{row['title']}, {row['dtype']}, {row['direction']}"
    found = []
    if (row["dtype"], row["direction"]) in MODEL_US:
        target = MODEL_US[row["dtype"], row["direction"]]
        rate = row["bytes"] / (_time(row, OURS) * 1e-6) / 1e9
        note = f"{rate:.0f} GB/s"
        found.append(Verdict(f"{what}: GPU", _time(row, OURS), target, False, " us", note))
    found.append(Verdict(f"{what}: host", _host(row, OURS), MODEL_HOST_US, False, " us"))
    return found + _over_peers(row)


def _over_peers(row: dict) -> list[Verdict]:
    """By the GPU's time; as a note, by that of an eager call, the longer of GPU's and host's."""
    found = []
    for peer, target in MODEL_FASTER.items() if row["dtype"] == "float32" else ():
        if peer not in row["providers"]:
            continue
        eager = [max(_time(row, name), _host(row, name)) for name in (peer, OURS)]
        note = f"called eagerly {eager[0] / eager[1]:.1f}x"
        what = f"{row['title']}, {row['direction']}: {peer} takes"
        times = _time(row, peer) / _time(row, OURS)
        found.append(Verdict(what, times, target, True, "x", note))
    return found
