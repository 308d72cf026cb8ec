"""What goes wrong while a command checks and times."""

from collections.abc import Callable, Iterable

WRONG = "wrong"  # begins the reason where a result failed its check


class WrongResult(Exception):
    """What all others are compared with failed its check."""


def reason_of(error: Exception) -> str:
    """One line, for the report."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def wrong_results(
    rows: Iterable, is_ours: Callable[[str], bool], place: Callable = lambda row: row.title
) -> list[str]:
    """Which of torch_ws's results were wrong, and by how much: a line each."""
    return [
        f"{name} is wrong on {place(row)}: {why.removeprefix(f'{WRONG}, ')}"
        for row in rows
        for name, why in row.skipped.items()
        if why.startswith(WRONG) and is_ours(name)
    ]
