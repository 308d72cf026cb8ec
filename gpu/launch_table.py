"""Row lengths that reach every entry of the launch tables, from the tables themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch_ws import _C

# (weight, out): every pair that has a kernel
PAIRS = [
    ("float64", "float64"),
    ("float32", "float32"),
    ("float16", "float16"),
    ("bfloat16", "bfloat16"),
    ("float32", "float16"),
    ("float32", "bfloat16"),
]
ROWS = (3, 130)  # a table may have more threads share a row where there are few rows
STEPS = (8, 1)  # rows of a multiple of 8 elements, for vector accesses, and of odd numbers
NO_LIMIT = 1 << 40


@dataclass(frozen=True)
class Entry:
    plan: dict  # of _C.launch_plan
    shortest: int  # rows of so many elements
    longest: int

    @property
    def limited(self) -> bool:
        return self.plan["max_cols"] < NO_LIMIT


def entries(
    direction: str, weight: str, out: str, rows: int, step: int, cluster: int = 16
) -> Iterator[Entry]:
    """Of a chip that has clusters of so many blocks."""
    types = {"direction": direction, "weight": weight, "out": out}
    cols = 8 if step == 8 else 3
    while True:
        plan = _C.launch_plan(rows, cols, cluster=cluster, **types)
        # two tiles and a half, where a row may have any length
        longest = cols + 5 * plan["team"] * plan["elements"] // 2 // step * step
        if plan["max_cols"] < NO_LIMIT:
            longest = max(cols, plan["max_cols"] - (step == 1 and plan["max_cols"] % 2 == 0))
        entry = Entry(plan, cols, longest)
        yield entry
        if not entry.limited:
            return
        cols = (plan["max_cols"] // step + 1) * step | (step == 1)


def lengths(direction: str, weight: str, out: str, rows: int) -> list[int]:
    """The shortest and the longest row of every entry for so many rows."""
    found = [entry for step in STEPS for entry in entries(direction, weight, out, rows, step)]
    return sorted({cols for entry in found for cols in (entry.shortest, entry.longest)})
