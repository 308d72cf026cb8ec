"""What a run found, as tables for people.

Everything shown is derived here from the timings and checks of a `Row`.
"""

from __future__ import annotations

import math

from .providers import COPY, OURS, Provider
from .record import Row
from .terminal import Console, Table, escape, make_table
from .timing import Timing

TITLES = {
    "no_grad": "forward, no grad",
    "forward": "forward",
    "backward": "backward",
    "both": "forward + backward",
}


def make_console(log_width: int = 132) -> Console:
    """Logs have no width of their own: they get one that holds every table."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=log_width)


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
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, text in lines.items():
        table.add_row(f"[bold]{name}", text)
    console.print(table)


def print_providers(console: Console, rows: list[Row], providers: list[Provider]) -> None:
    """One table: what each provider runs, and the worst that its checks in one dtype found."""
    title = f"providers, checked against float64 in {rows[0].dtype}: the worst of all workloads"
    table = _table(title, "provider", "runs")
    for column in ("error\nforward", "error\ngradient", "saved for backward,\nx weight's bytes"):
        table.add_column(column, justify="right")
    for provider in providers:
        found = [row.checks[provider.name] for row in rows if provider.name in row.checks]
        reasons = {
            row.workload.title: row.skipped[provider.name]
            for row in rows
            if provider.name in row.skipped
        }
        what = provider.what
        if reasons:
            reason = next(iter(reasons.values()))
            what += f"\n[yellow]left out of {', '.join(reasons)}: {escape(reason)}"
        worst = ("", "", "")
        if found:
            worst = (
                f"{max(check.error_forward for check in found):.1e}",
                f"{max(check.error_gradient for check in found):.1e}",
                f"{max(check.saved_ratio for check in found):.2f}",
            )
        table.add_row(provider.name, what, *worst)
    console.print(table)


def print_direction(console: Console, rows: list[Row], peers: list[str]) -> None:
    """One table: the rows of one direction and dtype."""
    first = rows[0]
    title = f"{TITLES[first.direction]}, {first.dtype}: torch_ws, and its speed-up over each peer"
    table = _table(title, "workload", "MB moved")
    for column in (OURS, "GB/s", "x copy"):
        table.add_column(column, justify="right", style="bold" if column == OURS else "")
    for peer in peers:
        table.add_column(f"over\n{peer}", justify="right")
    for column in ("saved\nbytes", "max\nerror"):
        table.add_column(column, justify="right")
    for row in rows:
        check = row.checks[OURS]
        error = check.error_forward if row.direction == "forward" else check.error_gradient
        table.add_row(
            row.workload.title,
            f"{row.bytes / 1e6:.3g}",
            duration(row.times[OURS].median),
            number(row.gigabytes_per_second(OURS)),
            number(row.ratio(OURS, COPY)),
            *(times(row.ratio(peer, OURS)) for peer in peers),
            str(check.saved_bytes),
            f"{error:.0e}",
        )
    console.print(table)


def print_times(console: Console, title: str, rows: list[Row], names: list[str], host=False):
    """Every provider's time: in one direction, or of one workload in several.

    After ±: half the distance between the quartiles, in percent of the median.
    """
    by_direction = len({row.direction for row in rows}) > 1
    table = _table(
        f"{title}: medians, ± quartiles",
        "direction" if by_direction else "workload",
    )
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        timings = row.host_times if host else row.times
        cells = (spread(timings[name]) if name in timings else "-" for name in names)
        label = TITLES[row.direction] if by_direction else row.workload.title
        table.add_row(label, *cells)
    console.print(table)


def print_capabilities(console: Console, rows: list[Row], names: list[str]) -> None:
    """The instruction sets against each other, each as a multiple of the first one's time."""
    table = _table("instruction sets: time, and x the first", "workload", "dtype", "direction")
    for name in names:
        table.add_column(name.replace(" ", "\n"), justify="right")
    for row in rows:
        cells = (
            f"{duration(row.times[name].median)}  {number(row.ratio(name, names[0]))}"
            for name in names
        )
        table.add_row(row.workload.title, row.dtype, TITLES[row.direction], *cells)
    console.print(table)


def _table(title: str, *columns: str) -> Table:
    table = make_table(title)
    for column in columns:
        right = column == "MB moved"
        table.add_column(column, justify="right" if right else "left", no_wrap=column != "runs")
    return table


def duration(seconds: float) -> str:
    for unit, scale in (("s", 1), ("ms", 1e3), ("µs", 1e6)):
        if seconds * scale >= 1:
            return f"{_three_digits(seconds * scale)} {unit}"
    return f"{seconds * 1e9:.0f} ns"


def spread(timing: Timing) -> str:
    percent = 50 * (timing.q3 - timing.q1) / timing.median
    return f"{duration(timing.median)} ±{percent:.0f}%"


def number(value: float) -> str:
    return "-" if math.isnan(value) else _three_digits(value)


def times(value: float) -> str:
    return "-" if math.isnan(value) else f"{_three_digits(value)}x"


def _three_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
