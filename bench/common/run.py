"""What every command does around its measurements, from the report's head to its last notes."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch

from . import machine, report
from .errors import WrongResult
from .terminal import print_text, show_progress

BUSY = 0.5  # running processes beside this one, from which on threads wait for their turn

Row = TypeVar("Row")
Started = Callable[[str], None]  # hears of every part of the work


class Run:
    """One run of a command; making it prints the report's head."""

    def __init__(self, argv: list[str], args: argparse.Namespace, **settings):
        """`settings`: the command's own, for its record."""
        torch.set_num_threads(args.threads)
        self.args = args
        self.head = make_head(
            argv,
            args.device,
            {
                "device": args.device,
                **settings,
                "seconds": args.seconds,
                "threads": args.threads,
                "keeps_freed_memory": args.device == "cpu" and machine.keep_freed_memory(),
            },
        )
        report.print_head(self.head)

    def rows(
        self,
        measure: Callable[[Started], Iterable[Row]],
        total: int,
        as_json: Callable[[list[Row]], dict],
    ) -> Iterator[Row]:
        """Yields each row once the record has it; `complete` says that it was the last.

        A WrongResult ends the process.
        """
        rows = []
        try:
            for row in measure(lambda part: show_progress(f"{len(rows)}/{total}  {part}")):
                rows.append(row)
                if self.args.json:
                    head = {**self.head, "complete": len(rows) == total}
                    write(self.args.json, {**head, **as_json(rows)})
                show_progress()
                yield row
        except WrongResult as error:
            sys.exit(f"python -m bench: error: {error}")
        finally:
            show_progress()

    def finish(self, save_plot: Callable[[str, str], None], wrong: list[str]) -> None:
        """`save_plot` gets the path of --plot and a caption; `wrong` makes the run an error."""
        say_if_busy(self.head)
        if self.args.plot:
            save_plot(self.args.plot, caption(self.head))
        if wrong:  # once, where several rows have one check
            lines = dict.fromkeys(wrong)
            sys.exit("\n".join(f"python -m bench: error: {line}" for line in lines))


def make_head(argv: list[str], device: str, settings: dict) -> dict:
    """How every record begins: the command and what it ran on."""
    return {
        "schema": 1,
        "complete": False,
        "command": shlex.join(["python", "-m", "bench", *argv]),
        **machine.describe(device),
        "settings": settings,
    }


def say_if_busy(head: dict) -> None:
    if head["load"] > BUSY:
        print()
        print_text("Other processes were running (load above): do not quote this.")


def caption(head: dict) -> str:
    """Of a picture: what it was measured on."""
    facts = head["machine"]
    return (
        f"{facts.get('gpu', facts['cpu'])}, threads: {facts['threads']}, {facts['isa']}, "
        f"torch {torch.__version__}, {head['date'][:10]}"
    )


def write(path: str | os.PathLike, found: dict) -> None:
    """At once: whoever reads the file finds all of it, or what was there before.

    A list of numbers has one line.
    """
    text = json.dumps(found, indent=1)
    text = re.sub(r"\[[-+.\deE,\s]+\]", lambda numbers: " ".join(numbers[0].split()), text)
    with open(f"{path}.part", "w", encoding="utf-8") as file:
        file.write(text + "\n")
    os.replace(file.name, path)


def what_runs(competitors: list) -> dict:
    """The record's part about who competes: objects with `name`, `what` and `formula`."""
    return {each.name: {"runs": each.what, "formula": each.formula} for each in competitors}
