"""How the reports are printed: in rich's styles, and with its progress bar, where it is there."""

from __future__ import annotations

import shutil

from . import plain
from .tables import Table, wrapped

try:
    from rich.console import Console
except ImportError:
    from .plain import Console

__all__ = ["Console", "make_console", "make_progress", "print_table", "print_text"]


def make_console() -> Console:
    """Prints lines as they are: tables.py has made them fit."""
    return Console(markup=False, emoji=False, highlight=False, soft_wrap=True)


def width() -> int:
    """Of the terminal, or what COLUMNS says; 80 for a log."""
    return shutil.get_terminal_size().columns


def print_text(console: Console, text: str, style: str | None = None, label: str = "") -> None:
    """A paragraph, to the right of the label if there is one."""
    console.print(wrapped(text, width(), label), style=style)


def print_table(console: Console, table: Table) -> None:
    console.print()
    print_text(console, table.title, "bold")
    console.print(table.render(width()))


def make_progress(console: Console):
    """A bar on terminals alone."""
    if not console.is_terminal:
        return plain.Progress()
    from rich import progress

    columns = [progress.TextColumn("{task.description}"), progress.BarColumn()]
    columns += [progress.MofNCompleteColumn(), progress.TimeElapsedColumn()]
    return progress.Progress(*columns, console=console, transient=True)
