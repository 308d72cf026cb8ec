"""What the reports use of rich, without it: for logs, and machines where it is not installed."""

from __future__ import annotations


class Console:
    is_terminal = False

    def __init__(self, **options):
        pass

    def print(self, text: str = "", style: str | None = None) -> None:
        print(text, flush=True)


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
