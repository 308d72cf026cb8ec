"""What ``python -m bench optimizer`` found, as tables for people."""

from __future__ import annotations

from ..common.interval import Interval
from ..common.report import print_competitors, spread
from ..common.tables import Table
from ..common.terminal import print_table
from ..weights.checks import TOLERANCE
from .measure import Row
from .variants import COPY, TORCH, Variant


def print_variants(rows: list[Row], variants: list[Variant]) -> None:
    """What each variant runs, and the worst error of its checks."""
    title = (
        f"variants, two updates checked against float64: the worst error in epsilons of its "
        f"dtype; {TOLERANCE} are allowed, but for torch's norm"
    )
    worst = {"error": (lambda check: check.error, ".1f")}
    print_competitors(title, "variant", variants, rows, worst)


def print_row(row: Row) -> None:
    """One table: every variant of a row; the times' ± are quartiles, in percent."""
    rounds = next(iter(row.times.values())).samples
    table = Table(
        f"{row.title}: {len(row.workload.shapes)} weights, {row.workload.elements / 1e6:.1f} M "
        f"elements, {row.bytes / row.workload.elements:.0f} bytes each; {rounds} rounds"
    )
    table.add_columns("variant")
    headers = ("an update", f"x {TORCH}", "95 %\ninterval", "x copy", "95 %\ninterval")
    table.add_columns(*headers, *(["host"] if row.host_times else []), right=True)
    for name, timing in row.times.items():
        ratios = (cell for other in (TORCH, COPY) for cell in _cells(row.ratio(name, other)))
        host = [spread(row.host_times[name])] if row.host_times else []
        table.add_row(name, spread(timing), *ratios, *host)
    print_table(table)


def _cells(ratio: Interval | None) -> tuple[str, str]:
    if ratio is None:
        return "-", "-"
    return f"{ratio.median:.2f}", f"{ratio.low:.2f} to {ratio.high:.2f}"
