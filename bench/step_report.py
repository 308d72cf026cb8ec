"""What ``python -m bench step`` found, as tables for people."""

from __future__ import annotations

from .report import duration, number
from .step_measure import Overhead, Row
from .step_record import dtype_name
from .step_variants import PLAIN, Settings, Variant
from .terminal import Console, escape, make_table


def describe(settings: Settings, size: int) -> str:
    """How all networks of a run are trained, in words."""
    parts = [f"{size}x{size} pixels", "SGD with momentum"]
    parts.append("bfloat16 autocast" if settings.autocast else "float32")
    parts += [
        text
        for text, is_on in (
            ("channels_last", settings.channels_last),
            ("torch.compile", settings.compile),
        )
        if is_on
    ]
    return ", ".join(parts)


def print_variants(console: Console, rows: list[Row], variants: list[Variant]) -> None:
    """What each variant runs, and the worst gradient error of its checks."""
    dtypes = list(dict.fromkeys(d for row in rows for c in row.checks.values() for d in c.errors))
    table = make_table("variants, their first gradients checked against float64: the worst of all")
    table.add_column("variant", no_wrap=True)
    table.add_column("runs")
    for dtype in dtypes:
        table.add_column(f"error\n{dtype_name(dtype)}", justify="right")
    for variant in variants:
        checks = [row.checks[variant.name] for row in rows if variant.name in row.checks]
        what = variant.what
        for row in rows:
            if variant.name in row.skipped:
                reason = escape(row.skipped[variant.name])
                what += f"\n[yellow]left out of {row.cell.title}: {reason}"
        worst = (f"{max(c.errors[d] for c in checks):.1e}" if checks else "" for d in dtypes)
        table.add_row(variant.name, what, *worst)
    console.print(table)


def print_row(console: Console, row: Row, how: str) -> None:
    """One table: every variant of a cell."""
    cell = row.cell
    passes = "one micro-batch" if cell.accumulate == 1 else f"{cell.accumulate} micro-batches"
    table = make_table(f"{cell.title}: a step of {passes}; {how}")
    table.add_column("variant", no_wrap=True)
    for column in (
        "a step",
        "images/s",
        "overhead\nof plain",
        "95 %\ninterval",
        "quartiles\nof rounds",
        "rounds\nx steps",
        "peak\nMB",
        "over\nplain",
    ):
        table.add_column(column, justify="right")
    for name, timing in row.times.items():
        found = row.overheads.get(name)
        extra = row.peaks[name] - row.peaks[PLAIN]
        table.add_row(
            name,
            duration(timing.median),
            number(row.images_per_second(name)),
            *(_overhead(found) if found else ("", "", "")),
            f"{timing.samples} x {timing.batch}",
            f"{row.peaks[name] / 1e6:.1f}",
            f"{extra / 1e6:+.1f}" if found else "",
        )
    console.print(table)


def _overhead(found: Overhead) -> tuple[str, str, str]:
    return (
        f"{found.median:+.2f} %",
        f"{found.low:+.2f} to {found.high:+.2f}",
        f"{found.q1:+.2f} to {found.q3:+.2f}",
    )
