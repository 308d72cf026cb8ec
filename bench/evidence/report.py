"""What ``python -m bench evidence`` found, as tables for people; from what is recorded."""

from __future__ import annotations

from collections import Counter

from ..common.tables import Table
from ..common.terminal import print_table, print_text
from .verdict import SHOWS

MANY = 4  # measures, from which on two sides have a table of their own
TITLES = {
    "convergence": "faster convergence",
    "landscape": "a smoother landscape",
    "learning-rate": "less sensitive to the learning rate",
    "micro-batch": "micro-batches",
    "initialization": "less sensitive to initialization; without normalization",
    "similarity": "weight similarity knows networks of one task",
    "long": "six times as many steps",
}


def print_comparisons(found: dict) -> None:
    """A table a panel, and how many verdicts there are of each kind."""
    comparisons = found["comparisons"]
    seeds = found["settings"]["seeds"]
    for panel, title in TITLES.items():
        rows = [c for c in comparisons if c["panel"] == panel]
        if rows:
            _print_panel(f"{title}; {seeds} seed{'s' if seeds > 1 else ''}", rows)
    counts = Counter(c["verdict"] for c in comparisons)
    print()
    print_text(", ".join(f"{verdict}: {count}" for verdict, count in counts.most_common()) + ".")
    print_text("Intervals are not corrected for the number of comparisons.")


def _print_panel(title, rows):
    """One table; sides that have many measures get one of their own, with their names above it."""
    counts = Counter(row["what"] for row in rows)
    for what, count in counts.items():
        if count >= MANY:
            own = [row for row in rows if row["what"] == what]
            _print_rows(f"{title}; {what}", {row["measure"]: row for row in own})
    rest = [row for row in rows if counts[row["what"]] < MANY]
    if rest:
        _print_rows(title, {f"{row['what']}: {row['measure']}": row for row in rest})


def _print_rows(title, rows):
    table = Table(title)
    table.add_columns("comparison", wraps=True)
    table.add_columns("without", "with", "difference\nor ratio", "95 %\ninterval", right=True)
    table.add_columns("verdict")
    for name, row in rows.items():
        table.add_row(name, *cells(row))
    print_table(table)


def as_markdown(found: dict) -> str:
    """One table of all comparisons, for a page."""
    lines = ["| | without | with | difference or ratio, 95 % | verdict |", "|---|---|---|---|---|"]
    for panel, title in TITLES.items():
        rows = [c for c in found["comparisons"] if c["panel"] == panel]
        if rows:
            lines.append(f"| **{title}** | | | | |")
            lines += map(markdown_row, rows)
    return "\n".join(lines) + "\n"


def markdown_row(row: dict) -> str:
    without, with_, difference, interval, verdict = cells(row)
    change = difference if interval == "-" else f"{difference} [{interval.replace(' to ', ', ')}]"
    verdict = verdict if verdict == SHOWS else f"**{verdict}**"
    return f"| {row['what']}: {row['measure']} | {without} | {with_} | {change} | {verdict} |"


def cells(row: dict) -> tuple[str, str, str, str, str]:
    """A comparison's numbers and its verdict; ratios end in x."""
    if row["difference"] is None:
        return ("-",) * 4 + (row["verdict"],)
    write = _ratio if row["is_ratio"] else _difference
    unit = f" {row['unit']}" if row["unit"] else ""
    interval = "-" if row["low"] is None else f"{write(row, 'low')} to {write(row, 'high')}"
    sides = [f"{_number(row, row[side])}{unit}" for side in ("without", "with")]
    return (*sides, write(row, "difference"), interval, row["verdict"])


def _number(row, value):
    if row["unit"] == "%":
        return f"{value:.1f}"
    return f"{value:.{3 if abs(value) < 10 else 1 if abs(value) < 100 else 0}f}"


def _difference(row, name):
    return f"{'+' if row[name] >= 0 else '-'}{_number(row, abs(row[name]))}"


def _ratio(row, name):
    return f"{row[name]:.2f}x"
