"""Tables as text of a given width, in which no word and no number is ever cut.

A table that is too wide goes on below with its other columns, each part beginning with the first
column again. Columns of prose wrap at their spaces instead.
"""

from __future__ import annotations

import textwrap
from itertools import zip_longest
from typing import NamedTuple

GAP = 2  # spaces between columns


class Column(NamedTuple):
    header: str  # of one line or several
    right: bool  # justified
    wraps: bool


class Table:
    """Cells may have several lines; a column that wraps has prose."""

    def __init__(self, title: str):
        self.title = title
        self.columns: list[Column] = []
        self.rows: list[tuple[str, ...]] = []

    def add_columns(self, *headers: str, right: bool = False, wraps: bool = False) -> None:
        self.columns += [Column(header, right, wraps) for header in headers]

    def add_row(self, *cells: str) -> None:
        self.rows.append(cells)

    def render(self, width: int) -> str:
        """The table below its title; its lines are longer than `width` only if a word is."""
        widths = self._widths(width)
        parts = [[0]]
        for i in range(1, len(self.columns)):
            used = sum(widths[j] + GAP for j in parts[-1])
            if len(parts[-1]) > 1 and used + widths[i] > width:
                parts.append([0])
            parts[-1].append(i)
        return "\n\n".join("\n".join(self._part(part, widths)) for part in parts)

    def _widths(self, width):
        cells = [[column.header for column in self.columns], *self.rows]
        widths = [
            max(len(line) for cell in column for line in cell.split("\n"))
            for column in zip(*cells, strict=True)
        ]
        for i, column in enumerate(self.columns):
            if column.wraps:
                others = sum(widths) - widths[i] + GAP * (len(widths) - 1)
                longest = max((len(word) for row in cells for word in row[i].split()), default=0)
                widths[i] = min(widths[i], max(width - others, longest))
        return widths

    def _part(self, part, widths):
        """The lines of some of the columns."""
        headers = [self.columns[i].header.split("\n") for i in part]
        height = max(map(len, headers))
        yield from self._lines([[""] * (height - len(h)) + h for h in headers], part, widths)
        yield "─" * (sum(widths[i] for i in part) + GAP * (len(part) - 1))
        for row in self.rows:
            cells = (wrapped(row[i], widths[i]) if self.columns[i].wraps else row[i] for i in part)
            yield from self._lines([cell.split("\n") for cell in cells], part, widths)

    def _lines(self, cells, part, widths):
        for line in zip_longest(*cells, fillvalue=""):
            justified = (
                text.rjust(widths[i]) if self.columns[i].right else text.ljust(widths[i])
                for text, i in zip(line, part, strict=True)
            )
            yield (" " * GAP).join(justified).rstrip()


def wrapped(text: str, width: int, label: str = "") -> str:
    """Prose in lines of `width` to the right of a label; a longer word has a line of its own."""
    return textwrap.fill(
        text,
        width,
        initial_indent=label,
        subsequent_indent=" " * len(label),
        break_long_words=False,
        break_on_hyphens=False,
    )
