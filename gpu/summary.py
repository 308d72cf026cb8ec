"""What a run found: the project's targets beside what the benchmark measured.

All targets of kernels are in units of a copy measured in the same run, so they hold on any GPU. A
copy's time is that of the faster of the benchmark's two, `copy` and `elementwise`.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from .stages import Result

OURS = "torch_ws"
UPDATE = "fused"  # what is ours in records of optimizers' and of training steps
LARGE_MB = 4  # of a weight, from which on memory's speed counts, and not a launch's latency
LARGE_SPEED = {"forward": 0.90, "backward": 0.85}  # of the copy's, or more
SMALL_TIME = 1.2  # of the copy's, or less
# ResNet-50's weights in one call: of the time of one copy of all bytes, or less
MODEL_TIME = 1.2
MODEL_HOST_US = 100  # of the host, for a call
# How many times as long the others take in float32, in either direction
MODEL_FASTER = {"formula": 20, "batch_norm": 8, "layer_norm": 4, "compile": 2}


def summarize(machine: dict[str, str], results: list[Result], out: Path) -> dict:
    """From the files that the stages have left in `out`."""
    found, missing = {}, []
    for name in [r.name for r in results if r.name in MEASURES and r.status != "skipped"]:
        try:
            found[name] = json.loads((out / f"{name}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            missing.append(f"{name}: nothing was measured")
    bandwidth = math.nan
    if "weights" in found and found["weights"]["rows"]:
        largest = max(found["weights"]["rows"], key=lambda row: row["bytes"])
        bandwidth = largest["bytes"] / copy_of(largest) / 1e3
    elif "model" in found:
        missing.append("model: its bytes' copy, which the weights' stage measures")
    measured = {"targets": [], "training": [], "wrong": []}
    for name, of_stage in found.items():
        rows, skipped = of_stage["rows"], {}
        ours = UPDATE if name in ("optimizer", "step") else OURS
        for row in rows:
            row["copy_us"] = row.get("bytes", 0) / bandwidth / 1e3
            for kind, measure in MEASURES[name]:
                measured[kind] += measure(row)
            skipped |= row["skipped"]
            if ours in row["skipped"]:
                measured["wrong"].append(f"{name}: {title(row)}: {row['skipped'][ours]}")
            missing += [
                f"{name}: {title(row)}: {peer} is in no CUDA graph, its time has gaps in it"
                for peer, entry in {**row.get("providers", {}), **row.get("updates", {})}.items()
                if entry.get("method") == "events"
            ]
        if not of_stage["complete"]:
            missing.append(f"{name}: only {len(rows)} rows, then it stopped")
        missing += [f"{name}: {p} was left out: {why}" for p, why in skipped.items() if p != ours]
    # Missed targets are for the reader to judge; a stage that was skipped may be, too.
    return {
        "schema": 3,
        "passed": not any(r.status in ("failed", "timed out") for r in results),
        "machine": machine,
        "stages": [result._asdict() for result in results],
        "copy_gigabytes_per_second": None if math.isnan(bandwidth) else bandwidth,
        **measured,
        "missing": missing,
    }


def title(row: dict) -> str:
    of_kernels = "direction" in row  # else a title says all
    return f"{row['title']}, {row['dtype']}, {row['direction']}" if of_kernels else row["title"]


def time_of(row: dict, provider: str) -> float:
    return row["providers"].get(provider, {}).get("median_us", math.nan)


def host_of(row: dict, provider: str) -> float:
    return row["providers"].get(provider, {}).get("host", {}).get("median_us", math.nan)


def copy_of(row: dict) -> float:
    times = [time_of(row, name) for name in ("copy", "elementwise")]
    return min((time for time in times if not math.isnan(time)), default=math.nan)


def target(what: str, measured: float, sign: str, limit: float, unit: str, note: str = "") -> dict:
    met = measured >= limit if sign == ">=" else measured <= limit
    measured = None if math.isnan(measured) else measured
    found = {"what": what, "measured": measured, "sign": sign, "target": limit}
    return {**found, "unit": unit, "met": met, "note": note}


def weight(row: dict) -> Iterator[dict]:
    ours, copy, host = time_of(row, OURS), copy_of(row), host_of(row, OURS)
    of_element = {"float32": 4, "float64": 8}.get(row["dtype"].split(":")[0], 2)
    megabytes = row["elements"] * of_element / 1e6
    note = f"{megabytes:.2f} MB; us: {ours:.2f}, copy {copy:.2f}, host {host:.2f}"
    if megabytes >= LARGE_MB:
        speed = LARGE_SPEED[row["direction"]]
        yield target(f"{title(row)}: of copy's speed", copy / ours, ">=", speed, "x", note)
    else:
        yield target(f"{title(row)}: of copy's time", ours / copy, "<=", SMALL_TIME, "x", note)


def model(row: dict) -> Iterator[dict]:
    ours, copy = time_of(row, OURS), row["copy_us"]
    if not math.isnan(copy):
        note = f"us: {ours:.1f}, one copy {copy:.1f}; {row['bytes'] / ours / 1e3:.0f} GB/s"
        yield target(f"{title(row)}: of copy's time", ours / copy, "<=", MODEL_TIME, "x", note)
    yield target(f"{title(row)}: host", host_of(row, OURS), "<=", MODEL_HOST_US, " us")


def peers(row: dict) -> Iterator[dict]:
    """By the GPU's time; in the note by an eager call's, the longer of the GPU's and the host's."""
    for peer, times in MODEL_FASTER.items() if row["dtype"] == "float32" else ():
        if peer in row["providers"]:
            eager = [max(time_of(row, name), host_of(row, name)) for name in (peer, OURS)]
            note = f"called eagerly {eager[0] / eager[1]:.1f}x"
            measured = time_of(row, peer) / time_of(row, OURS)
            yield target(f"{title(row)}: {peer} takes", measured, ">=", times, "x", note)


def update(row: dict) -> Iterator[dict]:
    """An optimizer's step with standardization in it, whose row has a copy of its bytes."""
    ours, nothing = row["updates"].get(UPDATE, {}), {"median": math.nan, "median_ms": math.nan}
    names = (UPDATE, "copy", "grouped", "torch_fused")
    times = (1e3 * row["updates"].get(name, nothing)["median_ms"] for name in names)
    note = "us: {:.1f}, copy {:.1f}, grouped {:.1f}, torch_fused {:.1f}".format(*times)
    of_copy = (ours.get("x_copy") or nothing)["median"]
    yield target(f"{title(row)}: of copy's time", of_copy, "<=", MODEL_TIME, "x", note)
    host = 1e3 * ours.get("host", nothing)["median_ms"]
    yield target(f"{title(row)}: host", host, "<=", MODEL_HOST_US, " us")


def training(row: dict) -> Iterator[str]:
    """A line for each way to standardize: what it adds to a plain step, with its 95 % interval."""
    for name, entry in row["variants"].items():
        if name != "plain":
            added = entry["overhead_percent"]
            interval = f"{added['low']:+.2f} to {added['high']:+.2f}"
            plain = f"of {row['variants']['plain']['median_ms']:.1f} ms"
            yield f"{row['title']}: {name:8}{added['median']:+6.2f} % ({interval}) {plain}"


MEASURES = {  # by stage
    "weights": [("targets", weight)],
    "model": [("targets", model), ("targets", peers)],
    "optimizer": [("targets", update)],
    "compile": [("targets", peers)],
    "step": [("training", training)],
}


def render(found: dict) -> str:
    lines = [f"{name:13}{value}" for name, value in found["machine"].items()]
    if found["copy_gigabytes_per_second"]:
        lines.append(f"{'copy':13}{found['copy_gigabytes_per_second']:.0f} GB/s, read and written")
    lines.append("")
    for name, status, seconds, detail in (stage.values() for stage in found["stages"]):
        status = status if status == "passed" else status.upper()
        lines.append(f"{name:13}{status:11}{seconds:4.0f} s  {detail}".rstrip())
    lines += ["", *(f"WRONG: {line}" for line in found["wrong"])]
    for each in found["targets"]:
        measured = "none" if each["measured"] is None else f"{each['measured']:.2f}{each['unit']}"
        limit = f"{each['sign']} {each['target']:g}{each['unit']}"
        met = "" if each["met"] else "MISSED"
        line = f"{each['what']:56}{measured:>11}  {limit:11}{met:8}{each['note']}"
        lines.append(line.rstrip())
    lines += [f"Training step: {line}" for line in found["training"]]
    lines += [f"Not measured as planned: {line}" for line in found["missing"]]
    counts = Counter(stage["status"] for stage in found["stages"])
    stages = ", ".join(f"{number} {status}" for status, number in counts.items())
    met = sum(each["met"] for each in found["targets"])
    missed = len(found["targets"]) - met
    return "\n".join([*lines, "", f"Stages: {stages}; targets: {met} met, {missed} missed"])
