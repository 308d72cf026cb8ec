"""The summary of a run, for people and as JSON."""

from __future__ import annotations

import dataclasses
import math

from .stages import Result
from .targets import Measured, Verdict, Weight


def render(machine: dict[str, str], results: list[Result], measured: Measured) -> str:
    parts = ["\n".join(f"{name:13}{value}" for name, value in machine.items())]
    if measured.bandwidth is not None:
        parts[0] += f"\n{'copy':13}{measured.bandwidth:.0f} GB/s, read and written"
    parts.append(_stages(results))
    if measured.weights:
        parts.append(_weights(measured.weights))
    if measured.model:
        parts.append(_model(measured.model))
    if measured.missing:
        parts.append(
            "Not measured as planned:\n" + "\n".join(f"  {line}" for line in measured.missing)
        )
    parts.append(_last_line(results, measured))
    return "\n\n".join(parts)


def as_json(machine: dict[str, str], results: list[Result], measured: Measured) -> dict:
    return {
        "schema": 1,
        "passed": _passed(results),
        "machine": machine,
        "stages": [dataclasses.asdict(result) for result in results],
        "copy_gigabytes_per_second": measured.bandwidth,
        "targets": [
            {
                "what": verdict.what,
                "measured": None if math.isnan(verdict.measured) else verdict.measured,
                "target": verdict.target,
                "at_least": verdict.at_least,
                "met": verdict.met,
                "note": verdict.note,
            }
            for verdict in measured.verdicts
        ],
        "missing": measured.missing,
    }


def _stages(results: list[Result]) -> str:
    lines = []
    for result in results:
        loud = result.status if result.status == "passed" else result.status.upper()
        seconds = f"{result.seconds:.0f} s" if result.seconds else ""
        lines.append(f"{result.name:13}{loud:11}{seconds:>6}  {result.detail}".rstrip())
    return "\n".join(lines)


def _weights(weights: list[Weight]) -> str:
    head = (
        f"{'weight':16}{'MB':>7}{'dtype':>18}  {'pass':10}"
        f"{'us':>8}{'copy us':>9}{'host us':>9}{'of the copy':>14}{'target':>9}"
    )
    lines = ["Single weights, each against a copy of the same bytes:", head]
    for weight in weights:
        verdict = weight.verdict
        kind = "speed" if verdict.at_least else "time"
        sign = ">=" if verdict.at_least else "<="
        lines.append(
            f"{weight.shape:16}{weight.megabytes:7.2f}{weight.dtype:>18}  {weight.direction:10}"
            f"{weight.ours:8.2f}{weight.copy:9.2f}{weight.host:9.2f}"
            f"{verdict.measured:7.2f}x {kind:6}{sign:>4}{verdict.target:5.2f}{_mark(verdict)}"
        )
    return "\n".join(lines)


def _model(verdicts: list[Verdict]) -> str:
    lines = ["ResNet-50's weights with standardize_many:"]
    for verdict in verdicts:
        sign = ">=" if verdict.at_least else "<="
        measured = f"{verdict.measured:.1f}{verdict.unit}"
        target = f"{sign} {verdict.target:g}{verdict.unit}"
        line = f"{verdict.what:52}{measured:>11}  {target:>10}{_mark(verdict):8}  {verdict.note}"
        lines.append(line.rstrip())
    return "\n".join(lines)


def _mark(verdict: Verdict) -> str:
    return "" if verdict.met else "  MISSED"


def _passed(results: list[Result]) -> bool:
    """Missed targets are for the reader to judge; a stage that was skipped may be, too."""
    failed = any(result.status in ("failed", "timed out") for result in results)
    unbuilt = any(result.name == "build" and result.status != "passed" for result in results)
    return not failed and not unbuilt


def _last_line(results: list[Result], measured: Measured) -> str:
    def number(status: str) -> int:
        return sum(result.status == status for result in results)

    counted = [
        f"{number(s)} {s}" for s in ("passed", "failed", "timed out", "skipped") if number(s)
    ]
    met = sum(verdict.met for verdict in measured.verdicts)
    targets = f"; targets: {met} met, {len(measured.verdicts) - met} missed"
    return f"Stages: {', '.join(counted)}{targets if measured.verdicts else ''}"
