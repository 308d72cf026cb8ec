"""What a run found, as tables for people.

Everything shown is derived here from the timings and checks of a `Row`.
"""

from __future__ import annotations

import math

from ..common.tables import Table
from ..common.terminal import Console, print_table, print_text
from ..common.timing import Timing
from .providers import COPY, OURS, Provider
from .record import Row

TITLES = {
    "no_grad": "forward, no grad",
    "forward": "forward",
    "backward": "backward",
    "both": "forward + backward",
}


def print_head(console: Console, facts: dict, command: str, settings: dict) -> None:
    machine, versions = facts["machine"], facts["versions"]
    caches = ", ".join(f"{name} {size}" for name, size in machine["caches"].items())
    lines = {
        "machine": f"{machine['cpu']}, cores: {machine['cores']}, threads: {machine['threads']}",
        "caches": caches or "unknown",
        "kernels": machine["isa"],
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        "date": facts["date"],
        "command": command,
        "load": f"{facts['load']:.1f} running processes in the minute before",
        "method": f"interleaved rounds, medians and their ratios, {settings['seconds']:g} s a row",
    }
    if settings["keeps_freed_memory"]:
        lines["method"] += "; freed memory is kept, so no time goes into fresh pages"
    if "gpu" in machine:
        lines["gpu"] = f"{machine['gpu']}, L2 {machine['gpu_l2_bytes'] / 2**20:.0f} MiB"
    for name, text in lines.items():
        print_text(console, text, label=f"{name:10}")


def print_providers(console: Console, rows: list[Row], providers: list[Provider]) -> None:
    """One table: what each provider runs, and the worst that its checks in one dtype found."""
    table = Table(
        f"providers, checked against float64 in {rows[0].dtype}: the worst of all workloads; what "
        "they save for backward, in multiples of the weight"
    )
    table.add_column("provider")
    table.add_column("runs", wraps=True)
    for header in ("error\nforward", "error\ngradient", "saved"):
        table.add_column(header, right=True)
    for provider in providers:
        found = [row.checks[provider.name] for row in rows if provider.name in row.checks]
        worst = ("", "", "")
        if found:
            worst = (
                f"{max(check.error_forward for check in found):.1e}",
                f"{max(check.error_gradient for check in found):.1e}",
                f"{max(check.saved_ratio for check in found):.2f}",
            )
        table.add_row(provider.name, provider.what, *worst)
    print_table(console, table)
    skipped = {row.workload.title: row.skipped for row in rows}
    print_skipped(console, [provider.name for provider in providers], skipped)


def print_skipped(console: Console, names: list[str], skipped: dict[str, dict[str, str]]) -> None:
    """Who was left out of what, and why there first. `skipped`: a title -> names and reasons."""
    for name in names:
        reasons = {title: found[name] for title, found in skipped.items() if name in found}
        if reasons:
            reason = next(iter(reasons.values()))
            print_text(console, f"{name} left out of {', '.join(reasons)}: {reason}", "yellow")


def print_direction(console: Console, rows: list[Row], peers: list[str]) -> None:
    """One table: the rows of one direction and dtype."""
    first = rows[0]
    table = Table(
        f"{TITLES[first.direction]}, {first.dtype}: torch_ws, and its speed-up over each peer"
    )
    table.add_column("workload")
    for header in (OURS, "GB/s", "x copy", *(f"over\n{peer}" for peer in peers)):
        table.add_column(header, right=True)
    for row in rows:
        table.add_row(
            row.workload.title,
            duration(row.times[OURS].median),
            number(row.gigabytes_per_second(OURS)),
            number(row.ratio(OURS, COPY)),
            *(times(row.ratio(peer, OURS)) for peer in peers),
        )
    print_table(console, table)


def print_times(console: Console, title: str, rows: list[Row], names: list[str], host=False):
    """Every provider's time: in one direction, or of one workload in several.

    Below it, after ±: half the distance between the quartiles, in percent of the median.
    """
    by_direction = len({row.direction for row in rows}) > 1
    table = Table(f"{title}: medians, ± quartiles")
    table.add_column("direction" if by_direction else "workload")
    for name in names:
        table.add_column(name, right=True)
    for row in rows:
        timings = row.host_times if host else row.times
        cells = (spread(timings[name]) if name in timings else "-" for name in names)
        label = TITLES[row.direction] if by_direction else row.workload.title
        table.add_row(label, *cells)
    print_table(console, table)


def print_capabilities(console: Console, rows: list[Row], names: list[str]) -> None:
    """The instruction sets against each other in one dtype and direction."""
    table = Table(
        f"instruction sets, {TITLES[rows[0].direction]}, {rows[0].dtype}: time, and x the first"
    )
    table.add_column("workload")
    for name in names:
        table.add_column(name.replace(" ", "\n"), right=True)
    for row in rows:
        cells = (
            f"{duration(row.times[name].median)}  {number(row.ratio(name, names[0]))}"
            for name in names
        )
        table.add_row(row.workload.title, *cells)
    print_table(console, table)


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
