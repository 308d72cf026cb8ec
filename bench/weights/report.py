"""What a run found, as tables for people.

Everything shown is derived here from the timings and checks of a `Row`.
"""

from __future__ import annotations

from collections.abc import Callable

from ..common.errors import WRONG
from ..common.report import duration, number, print_competitors, spread, times
from ..common.tables import Table
from ..common.terminal import print_table
from ..common.timing import Timing
from .providers import COPY, OURS, Provider
from .record import Row

TITLES = {
    "no_grad": "forward, no grad",
    "forward": "forward",
    "backward": "backward",
    "both": "forward + backward",
}


def print_providers(rows: list[Row], providers: list[Provider]) -> None:
    """What each provider runs, and the worst that its checks in one dtype found."""
    title = (
        f"providers, checked against float64 in {rows[0].dtype}: the worst of all workloads; what "
        "they save for backward, in multiples of the weight"
    )
    worst = {
        "error\nforward": (lambda check: check.error_forward, ".1e"),
        "error\ngradient": (lambda check: check.error_gradient, ".1e"),
        "saved": (lambda check: check.saved_ratio, ".2f"),
    }
    print_competitors(title, "provider", providers, rows, worst)


def median(timing: Timing) -> str:
    return duration(timing.median)


def cell(row: Row, times: dict[str, Timing], name: str, text: Callable[[Timing], str]) -> str:
    return text(times[name]) if name in times else WRONG if row.is_wrong(name) else "-"


def print_direction(rows: list[Row], peers: list[str]) -> None:
    """One table: the rows of one direction and dtype."""
    first = rows[0]
    table = Table(
        f"{TITLES[first.direction]}, {first.dtype}: torch_ws, and its speed-up over each peer"
    )
    table.add_columns("workload")
    table.add_columns(OURS, "GB/s", "x copy", *(f"over\n{peer}" for peer in peers), right=True)
    for row in rows:
        table.add_row(
            row.title,
            cell(row, row.times, OURS, median),
            number(row.gigabytes_per_second(OURS)),
            number(row.ratio(OURS, COPY)),
            *(times(row.ratio(peer, OURS)) for peer in peers),
        )
    print_table(table)


def print_times(title: str, rows: list[Row], names: list[str], host=False):
    """Every provider's time: in one direction, or of one workload in several.

    Below it, after ±: half the distance between the quartiles, in percent of the median.
    """
    by_direction = len({row.direction for row in rows}) > 1
    table = Table(f"{title}: medians, ± quartiles")
    table.add_columns("direction" if by_direction else "workload")
    table.add_columns(*names, right=True)
    for row in rows:
        timings = row.host_times if host else row.times
        cells = (cell(row, timings, name, spread) for name in names)
        label = TITLES[row.direction] if by_direction else row.title
        table.add_row(label, *cells)
    print_table(table)


def print_capabilities(rows: list[Row], names: list[str]) -> None:
    """The instruction sets against each other in one dtype and direction."""
    table = Table(
        f"instruction sets, {TITLES[rows[0].direction]}, {rows[0].dtype}: time, and x the first"
    )
    table.add_columns("workload")
    table.add_columns(*(name.replace(" ", "\n") for name in names), right=True)
    for row in rows:
        cells = (
            f"{cell(row, row.times, name, median)}  {number(row.ratio(name, names[0]))}"
            for name in names
        )
        table.add_row(row.title, *cells)
    print_table(table)
