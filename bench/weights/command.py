"""``python -m bench [standardize]``: the kernels and their peers, weight by weight.

Every provider is first checked against float64, forward and gradient, on the tensors that are then
timed; torch_ws's own wrong results are left out of the times, and the exit status is then 1.
common/timing.py says how times are taken, providers.py what runs, workloads.py on what.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from ..common.errors import wrong_results
from ..common.run import Run, Started
from . import plot, record, report
from .measure import Session, measure
from .options import choose_providers, choose_workloads, parse
from .providers import COPY, OURS, Provider
from .record import Row
from .workloads import OVERHEAD_SHAPE, weight_workload

OVERHEAD_DIRECTIONS = ["no_grad", "forward", "both"]


def print_results(args: argparse.Namespace, providers: list[Provider], rows: list[Row]) -> None:
    names = [provider.name for provider in providers]
    main_rows, overhead = split_overhead(rows)
    lowered = [name for name in names if name.startswith(f"{OURS} ")]
    compared = [name for name in names if name not in lowered]
    peer_names = [name for name in compared if name not in (OURS, COPY)]
    for dtype in dict.fromkeys(row.dtype for row in rows):
        report.print_providers([row for row in rows if row.dtype == dtype], providers)
        for direction in args.direction:
            found = [r for r in main_rows if (r.dtype, r.direction) == (dtype, direction)]
            if not found:
                continue
            report.print_direction(found, peer_names)
            title = f"{report.TITLES[direction]}, {dtype}"
            report.print_times(title, found, compared)
            if args.device == "cuda":
                report.print_times(f"host, {title}", found, compared, host=True)
    if overhead:
        title = f"the cost of a call, one weight of {OVERHEAD_SHAPE} in {overhead[0].dtype}"
        report.print_times(title, overhead, compared, host=args.device == "cuda")
    groups = [(dtype, direction) for dtype in args.dtype for direction in args.direction]
    for group in groups if lowered else ():
        found = [row for row in main_rows if (row.dtype, row.direction) == group]
        report.print_capabilities(found, lowered)


def split_overhead(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """The rows of weights and models, and those of a call's overhead."""
    overhead = [row for row in rows if row.workload.kind == "overhead"]
    return [row for row in rows if row not in overhead], overhead


def main(argv: list[str]) -> None:
    args = parse(argv)
    workloads, overhead = choose_workloads(args)
    plan = [(w, dtype, args.direction) for dtype in args.dtype for w in workloads]
    if overhead:
        workload = weight_workload(OVERHEAD_SHAPE, "overhead")
        plan.append((workload, args.dtype[0], OVERHEAD_DIRECTIONS))
    providers = choose_providers(args)
    run = Run(argv, args)
    session = Session(providers, args.device, args.seconds)

    def measure_all(started: Started) -> Iterator[Row]:
        for workload, dtype, directions in plan:
            yield from measure(session, workload, dtype, directions, started)

    total = sum(len(directions) for *_, directions in plan)
    rows = list(run.rows(measure_all, total, lambda rows: record.as_json(rows, providers)))
    print_results(args, providers, rows)
    wrong = wrong_results(
        rows, lambda name: name.startswith(OURS), lambda row: f"{row.title} in {row.dtype}"
    )
    run.finish(lambda path, caption: plot.save(path, split_overhead(rows)[0], caption), wrong)
