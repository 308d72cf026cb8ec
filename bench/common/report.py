"""What the commands' reports have in common: their head, who competes, numbers in words."""

from __future__ import annotations

import math
from collections.abc import Callable

from .tables import Table
from .terminal import print_table, print_text
from .timing import Timing


def print_head(found: dict) -> None:
    """Of a run, from what is recorded of it."""
    machine, versions, settings = found["machine"], found["versions"], found["settings"]
    caches = ", ".join(f"{name} {size}" for name, size in machine["caches"].items())
    lines = {
        "machine": f"{machine['cpu']}, cores: {machine['cores']}, threads: {machine['threads']}",
        "caches": caches or "unknown",
        "kernels": machine["isa"],
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        "date": found["date"],
        "command": found["command"],
        "load": f"{found['load']:.1f} running processes in the minute before",
    }
    if "seconds" in settings:  # of a command that measures times
        seconds = f"{settings['seconds']:g} s a row"
        lines["method"] = f"interleaved rounds, medians and their ratios, {seconds}"
        if settings["keeps_freed_memory"]:
            lines["method"] += "; freed memory is kept, so no time goes into fresh pages"
    if "gpu" in machine:
        lines["gpu"] = f"{machine['gpu']}, L2 {machine['gpu_l2_bytes'] / 2**20:.0f} MiB"
    for name, text in lines.items():
        print_text(text, label=f"{name:10}")


def print_competitors(
    title: str, kind: str, competitors: list, rows: list, worst: dict[str, tuple[Callable, str]]
) -> None:
    """What each competitor runs, the worst that its checks found, and what it was left out of.

    `worst`: the number of a check and its format, by the column's header.
    """
    table = Table(title)
    table.add_columns(kind)
    table.add_columns("runs", wraps=True)
    table.add_columns(*worst, right=True)
    for each in competitors:
        checks = [row.checks[each.name] for row in rows if each.name in row.checks]
        cells = (format(max(map(of, checks)), spec) for of, spec in worst.values())
        table.add_row(each.name, each.what, *(cells if checks else [""] * len(worst)))
    print_table(table)
    for each in competitors:
        skipped = {row.title: row.skipped for row in rows}
        reasons = {title: why[each.name] for title, why in skipped.items() if each.name in why}
        if reasons:
            reason = next(iter(reasons.values()))
            print_text(f"{each.name} left out of {', '.join(reasons)}: {reason}")


def duration(seconds: float) -> str:
    for unit, scale in (("s", 1), ("ms", 1e3), ("µs", 1e6)):
        if seconds * scale >= 1:
            return f"{_three_digits(seconds * scale)} {unit}"
    return f"{seconds * 1e9:.0f} ns"


def spread(timing: Timing) -> str:
    percent = 50 * (timing.q3 - timing.q1) / timing.median
    return f"{duration(timing.median)}\n±{percent:.0f}%"


def number(value: float) -> str:
    return "-" if math.isnan(value) else _three_digits(value)


def times(value: float) -> str:
    return "-" if math.isnan(value) else f"{_three_digits(value)}x"


def _three_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
