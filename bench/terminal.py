"""Tables and a progress bar for people: rich's, or plain text where rich is not installed."""

from __future__ import annotations

try:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
    )
    from rich.table import Table
except ImportError:
    from .plain import Console, Progress, Table, escape

    box = None

__all__ = ["Console", "Progress", "Table", "escape", "make_progress", "make_table"]


def make_table(title: str) -> Table:
    style = box.SIMPLE_HEAD if box else None
    return Table(title=title, title_justify="left", title_style="bold", box=style)


def make_progress(console: Console) -> Progress:
    """A bar on terminals alone."""
    if not console.is_terminal:
        return Progress(disable=True) if box else Progress()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), console=console, transient=True)
