"""What ``python -m bench step`` found, as tables for people."""

from __future__ import annotations

from ..common.optimizers import AGC, KINDS, MAX_NORM
from ..common.report import duration, number, print_competitors
from ..common.tables import Table
from ..common.terminal import print_table
from .checks import dtype_name
from .measure import Row
from .variants import PLAIN, Settings, Variant

CLIPPED = {
    "none": [],
    "norm": [f"clipped to a norm of {MAX_NORM:g}"],
    "agc": [f"clipped by unit to {AGC:g}"],
}


def describe(settings: Settings, size: int) -> str:
    """How all networks of a run are trained, in words."""
    parts = [f"{size}x{size} pixels", KINDS[settings.optimizer].title]
    parts += CLIPPED[settings.clip]
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


def print_variants(rows: list[Row], variants: list[Variant]) -> None:
    """What each variant runs, and the worst gradient error of its checks."""
    dtypes = dict.fromkeys(d for row in rows for c in row.checks.values() for d in c.errors)
    worst = {
        f"error\n{dtype_name(dtype)}": (lambda check, dtype=dtype: check.errors[dtype], ".1e")
        for dtype in dtypes
    }
    title = "variants, gradients of two steps checked against float64: the worst of all"
    print_competitors(title, "variant", variants, rows, worst)


def print_row(row: Row, how: str) -> None:
    """One table: every variant of a cell."""
    cell = row.cell
    passes = "one micro-batch" if cell.accumulate == 1 else f"{cell.accumulate} micro-batches"
    timing = row.times[PLAIN]  # all variants have the same rounds
    steps = "1 step" if timing.batch == 1 else f"{timing.batch} steps"
    table = Table(f"{row.title}: a step of {passes}; {how}; {timing.samples} rounds of {steps}")
    table.add_columns("variant")
    headers = ("a step", "images/s", "overhead\n%", "95 %\ninterval", "peak\nMB", "over\nplain")
    table.add_columns(*headers, right=True)
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
    print_table(table)
