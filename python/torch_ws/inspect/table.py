"""A table as lines of text, in time that is linear in its cells.

rich's own tables measure and wrap every cell several times, which takes longer for thousands of
layers than to read them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest

from rich.cells import cell_len, chop_cells
from rich.text import Span, Text

GAP = "  "
NARROWEST = 10  # of the first column, which is folded where a table is too wide
WIDEST = 1000  # of it: a name can be as long as its file, and all other lines are filled up to it


@dataclass
class Column:
    header: str  # of one line or more
    cells: list[Text | str]
    right: bool = False  # aligned, as numbers are

    @cached_property
    def width(self) -> int:
        return max(cell_len(str(text)) for text in (*self.header.split("\n"), *self.cells))


def table_width(columns: Iterable[Column]) -> int:
    return sum(len(GAP) + column.width for column in columns)


def table_lines(columns: list[Column], styles: list[str], width: float) -> Iterator[Text]:
    """Between empty lines, the headers, a rule and the rows, each in its style."""
    widths = [column.width for column in columns]
    others = sum(len(GAP) + width for width in widths[1:])
    widths[0] = int(min(widths[0], max(NARROWEST, width - others - len(GAP)), WIDEST))

    def line(cells: Iterable[Text | str], style: str) -> Text:
        text, spans = " ", []
        for i, (cell, column, width) in enumerate(zip(cells, columns, widths, strict=True)):
            padding = " " * (width - cell_len(str(cell)))
            text += GAP * bool(i) + padding * column.right
            if isinstance(cell, Text):
                spans.append(Span(len(text), len(text) + len(cell), cell.style))
            text += str(cell) + padding * (not column.right)
        return Text(text, style, spans=spans)

    yield Text()
    headers = (reversed(column.header.split("\n")) for column in columns)
    for cells in reversed(list(zip_longest(*headers, fillvalue=""))):
        yield line(cells, "bold")
    yield Text(" " + "─" * (widths[0] + others))
    for style, first, *rest in zip(styles, *(column.cells for column in columns), strict=True):
        name, *more = chop_cells(first, widths[0]) or [""]
        yield line((name, *rest), style)
        for name in more:
            yield line((name, *[""] * len(rest)), style)
    yield Text()
