"""``python -m bench [standardize]``: the kernels and their peers, weight by weight.

Every provider is first checked against float64, forward and gradient, on the tensors that are then
timed. timing.py says how times are taken, providers.py what runs, workloads.py on what.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable

import torch

from ..common import machine
from ..common.terminal import Console, make_console, make_progress, print_text
from . import record, report
from .measure import Session, WrongResult, measure
from .options import check_arguments, choose_providers, choose_workloads, make_parser
from .providers import COPY, OURS
from .record import Row
from .workloads import OVERHEAD_SHAPE, Workload, weight_workload

BUSY = 0.5  # running processes beside this one, from which on threads wait for their turn
OVERHEAD_DIRECTIONS = ["no_grad", "forward", "both"]


def run(
    args: argparse.Namespace,
    session: Session,
    workloads: list[Workload],
    overhead: bool,
    console: Console,
    save: Callable[[list[Row], bool], None],
) -> list[Row]:
    """`save` gets the rows after each of them, and whether all are there."""
    plan = [(w, dtype, args.direction) for dtype in args.dtype for w in workloads]
    if overhead:
        plan.append(
            (weight_workload(OVERHEAD_SHAPE, "overhead"), args.dtype[0], OVERHEAD_DIRECTIONS)
        )
    rows = []
    with make_progress(console) as progress:
        total = sum(len(directions) for *_, directions in plan)
        task = progress.add_task("", total=total)

        def started(step: str) -> None:
            progress.update(task, description=step)

        for workload, dtype, directions in plan:
            for row in measure(session, workload, dtype, directions, started):
                rows.append(row)
                save(rows, len(rows) == total)
                progress.advance(task)
    return rows


def print_results(
    args: argparse.Namespace, session: Session, rows: list[Row], console: Console
) -> None:
    names = [provider.name for provider in session.providers]
    main_rows = [row for row in rows if row.workload.kind != "overhead"]
    overhead = [row for row in rows if row.workload.kind == "overhead"]
    lowered = [name for name in names if name.startswith(f"{OURS} ")]
    compared = [name for name in names if name not in lowered]
    peer_names = [name for name in compared if name not in (OURS, COPY)]
    for dtype in dict.fromkeys(row.dtype for row in rows):
        report.print_providers(console, [r for r in rows if r.dtype == dtype], session.providers)
        for direction in args.direction:
            found = [r for r in main_rows if (r.dtype, r.direction) == (dtype, direction)]
            if not found:
                continue
            report.print_direction(console, found, peer_names)
            title = f"{report.TITLES[direction]}, {dtype}"
            report.print_times(console, title, found, compared)
            if args.device == "cuda":
                report.print_times(console, f"host, {title}", found, compared, host=True)
    if overhead:
        title = f"the cost of a call, one weight of {OVERHEAD_SHAPE} in {overhead[0].dtype}"
        report.print_times(console, title, overhead, compared, host=args.device == "cuda")
    groups = [(dtype, direction) for dtype in args.dtype for direction in args.direction]
    for group in groups if lowered else ():
        found = [row for row in main_rows if (row.dtype, row.direction) == group]
        report.print_capabilities(console, found, lowered)


def main(argv: list[str]) -> int:
    parser = make_parser()
    args = parser.parse_args(argv)
    check_arguments(parser, args)
    torch.set_num_threads(args.threads)
    workloads, overhead = choose_workloads(args)
    providers = choose_providers(args)
    command = shlex.join(["python", "-m", "bench", *argv])
    settings = {
        "device": args.device,
        "seconds": args.seconds,
        "threads": args.threads,
        "keeps_freed_memory": args.device == "cpu" and machine.keep_freed_memory(),
    }
    facts = machine.describe(args.device)
    console = make_console()
    report.print_head(console, facts, command, settings)
    session = Session(providers, args.device, args.seconds)

    def save(rows: list[Row], complete: bool) -> None:
        if args.json:
            found = record.as_json(rows, providers, facts, command, settings, complete)
            record.write(args.json, found)

    try:
        rows = run(args, session, workloads, overhead, console, save)
    except WrongResult as error:
        print(f"python -m bench: error: {error}", file=sys.stderr)
        return 1
    print_results(args, session, rows, console)
    if facts["load"] > BUSY:
        console.print()
        text = "Other processes were running (load above): do not quote this."
        print_text(console, text, "yellow")
    if args.plot:
        from . import plot

        main_rows = [row for row in rows if row.workload.kind != "overhead"]
        caption = (
            f"{facts['machine']['cpu']}, threads: {args.threads}, {facts['machine']['isa']}, "
            f"torch {torch.__version__}, {facts['date'][:10]}"
        )
        plot.save(args.plot, main_rows, caption)
    return 0
