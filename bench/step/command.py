"""``python -m bench step``: what weight standardization costs in training, of whole networks.

A step is forward and backward of one or several micro-batches and one step of the optimizer.
networks.py has the networks, step_variants.py the ways to standardize, step_checks.py their check,
and step_measure.py says how overheads are taken.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Callable

import torch

from ..common import machine
from ..common.terminal import Console, make_console, make_progress, print_text
from ..weights import report
from ..weights.command import BUSY
from ..weights.record import write
from . import record as step_record
from . import report as step_report
from .measure import Cell, Row, WrongGradient, measure
from .options import (
    check_arguments,
    choose_cells,
    choose_settings,
    choose_variants,
    make_parser,
)
from .variants import Settings, Variant


def run(
    args: argparse.Namespace,
    cells: list[Cell],
    variants: list[Variant],
    settings: Settings,
    console: Console,
    save: Callable[[list[Row]], None],
) -> list[Row]:
    """`save` gets the rows after each of them."""
    rows = []
    with make_progress(console) as progress:
        task = progress.add_task("", total=len(cells))

        def started(part: str) -> None:
            progress.update(task, description=part)

        for cell in cells:
            row = measure(cell, variants, settings, args.seconds, started)
            rows.append(row)
            save(rows)
            step_report.print_row(console, row, step_report.describe(settings, args.size))
            progress.advance(task)
    return rows


def main(argv: list[str]) -> int:
    parser = make_parser()
    args = parser.parse_args(argv)
    check_arguments(parser, args)
    torch.set_num_threads(args.threads)
    variants, missing = choose_variants(args)
    settings = choose_settings(args)
    cells = choose_cells(args, variants)
    command = shlex.join(["python", "-m", "bench", "step", *argv])
    recorded = {
        **dataclasses.asdict(settings),
        "size": args.size,
        "seconds": args.seconds,
        "threads": args.threads,
        "keeps_freed_memory": args.device == "cpu" and machine.keep_freed_memory(),
    }
    facts = machine.describe(args.device)
    console = make_console()
    report.print_head(console, facts, command, recorded)
    for name, reason in missing.items():
        print_text(console, f"{name} is left out: {reason}", "yellow")

    def save(rows: list[Row]) -> None:
        if args.json:
            complete = len(rows) == len(cells)
            found = step_record.as_json(rows, variants, facts, command, recorded, complete)
            write(args.json, found)

    try:
        rows = run(args, cells, variants, settings, console, save)
    except WrongGradient as error:
        print(f"python -m bench: error: {error}", file=sys.stderr)
        return 1
    step_report.print_variants(console, rows, variants)
    if facts["load"] > BUSY:
        console.print()
        text = "Other processes were running (load above): do not quote this."
        print_text(console, text, "yellow")
    if args.plot:
        from . import plot as step_plot

        caption = (
            f"{facts['machine'].get('gpu', facts['machine']['cpu'])}, threads: {args.threads}, "
            f"torch {torch.__version__}, {facts['date'][:10]}"
        )
        step_plot.save(args.plot, rows, step_report.describe(settings, args.size), caption)
    return 0
