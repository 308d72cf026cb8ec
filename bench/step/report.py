"""What ``python -m bench step`` found, as tables for people."""

from __future__ import annotations

from ..common.tables import Table
from ..common.terminal import Console, print_table
from ..weights.report import duration, number, print_skipped
from .measure import Row
from .record import dtype_name
from .variants import PLAIN, Settings, Variant


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
    table = Table("variants, their first gradients checked against float64: the worst of all")
    table.add_column("variant")
    table.add_column("runs", wraps=True)
    for dtype in dtypes:
        table.add_column(f"error\n{dtype_name(dtype)}", right=True)
    for variant in variants:
        checks = [row.checks[variant.name] for row in rows if variant.name in row.checks]
        worst = (f"{max(c.errors[d] for c in checks):.1e}" if checks else "" for d in dtypes)
        table.add_row(variant.name, variant.what, *worst)
    print_table(console, table)
    skipped = {row.cell.title: row.skipped for row in rows}
    print_skipped(console, [variant.name for variant in variants], skipped)


def print_row(console: Console, row: Row, how: str) -> None:
    """One table: every variant of a cell."""
    cell = row.cell
    passes = "one micro-batch" if cell.accumulate == 1 else f"{cell.accumulate} micro-batches"
    timing = row.times[PLAIN]  # all variants have the same rounds
    steps = "1 step" if timing.batch == 1 else f"{timing.batch} steps"
    table = Table(f"{cell.title}: a step of {passes}; {how}; {timing.samples} rounds of {steps}")
    table.add_column("variant")
    headers = ("a step", "images/s", "overhead\n%", "95 %\ninterval", "peak\nMB", "over\nplain")
    for header in headers:
        table.add_column(header, right=True)
    for name, timing in row.times.items():
        found = row.overheads.get(name)
        extra = row.peaks[name] - row.peaks[PLAIN]
        table.add_row(
            name,
            duration(timing.median),
            number(row.images_per_second(name)),
            f"{found.median:+.2f}" if found else "",
            f"{found.low:+.2f} to {found.high:+.2f}" if found else "",
            f"{row.peaks[name] / 1e6:.1f}",
            f"{extra / 1e6:+.1f}" if found else "",
        )
    print_table(console, table)
