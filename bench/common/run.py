"""What every command does around its measurements, from the report's head to its last notes."""

from __future__ import annotations

import argparse
import json
import os
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
        self.head = {
            "schema": 1,
            "complete": False,
            "command": shlex.join(["python", "-m", "bench", *argv]),
            **machine.describe(args.device),
            "settings": {
                "device": args.device,
                **settings,
                "seconds": args.seconds,
                "threads": args.threads,
                "keeps_freed_memory": args.device == "cpu" and machine.keep_freed_memory(),
            },
        }
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
        if self.head["load"] > BUSY:
            print()
            print_text("Other processes were running (load above): do not quote this.")
        if self.args.plot:
            facts = self.head["machine"]
            caption = (
                f"{facts.get('gpu', facts['cpu'])}, threads: {facts['threads']}, {facts['isa']}, "
                f"torch {torch.__version__}, {self.head['date'][:10]}"
            )
            save_plot(self.args.plot, caption)
        if wrong:  # once, where several rows have one check
            lines = dict.fromkeys(wrong)
            sys.exit("\n".join(f"python -m bench: error: {line}" for line in lines))


def write(path: str, found: dict) -> None:
    """At once: whoever reads the file finds all of it, or what was there before."""
    with open(f"{path}.part", "w", encoding="utf-8") as file:
        file.write(json.dumps(found, indent=1) + "\n")
    os.replace(file.name, path)


def what_runs(competitors: list) -> dict:
    """The record's part about who competes: objects with `name`, `what` and `formula`."""
    return {each.name: {"runs": each.what, "formula": each.formula} for each in competitors}
