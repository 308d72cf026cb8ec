"""What the reports use of rich, as plain text: for machines where it is not installed."""

from __future__ import annotations

import re

MARKUP = re.compile(r"\[(?:bold|yellow)\]")


class Table:
    def __init__(self, title: str = "", show_header: bool = True, **style):
        self.title, self.show_header = title, show_header
        self.columns: list[tuple[str, str]] = []  # header, justification
        self.rows: list[list[str]] = []

    def add_column(self, header: str = "", justify: str = "left", **style) -> None:
        self.columns.append((_one_line(header), justify))

    def add_row(self, *cells: str) -> None:
        self.rows.append([_one_line(cell) for cell in cells])

    def __str__(self) -> str:
        columns = self.columns or [("", "left")] * max(map(len, self.rows), default=0)
        rows = [[header for header, _ in columns], *self.rows] if self.show_header else self.rows
        widths = [max((len(row[i]) for row in rows), default=0) for i in range(len(columns))]
        lines = [f"\n{self.title}"] if self.title else []
        for row in rows:
            cells = (
                cell.rjust(width) if justify == "right" else cell.ljust(width)
                for cell, width, (_, justify) in zip(row, widths, columns, strict=True)
            )
            lines.append("  ".join(cells).rstrip())
        return "\n".join(lines)


class Console:
    is_terminal = False

    def __init__(self, **options):
        pass

    def print(self, found: Table | str) -> None:
        print(MARKUP.sub("", str(found)), flush=True)


class Progress:
    """None: what is printed is printed at the end."""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def add_task(self, description: str, total: int) -> None:
        pass

    def update(self, task: None, description: str) -> None:
        pass

    def advance(self, task: None) -> None:
        pass


def escape(text: str) -> str:
    return text


def _one_line(text: str) -> str:
    return MARKUP.sub("", text).replace("\n", " ")
