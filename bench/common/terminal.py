"""How the reports are printed: plain text, in a log as on a terminal."""

from __future__ import annotations

import shutil
import sys

from .tables import Table, wrapped


def width() -> int:
    """Of the terminal, or what COLUMNS says; 80 for a log."""
    return shutil.get_terminal_size().columns


def print_text(text: str, label: str = "") -> None:
    """A paragraph, to the right of the label if there is one."""
    print(wrapped(text, width(), label), flush=True)


def print_table(table: Table) -> None:
    print()
    print_text(table.title)
    print(table.render(width()), flush=True)


def show_progress(text: str = "") -> None:
    """In a line of the terminal that the next text takes the place of; nothing in a log."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text[: width() - 1]}", end="", file=sys.stderr, flush=True)
