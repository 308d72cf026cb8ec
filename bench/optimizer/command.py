"""``python -m bench optimizer``: the update of a model's weights alone, by torch_ws and torch.

variants.py says who updates, checks.py how each is checked before it is timed. Gradients are given:
what is timed is the optimizer's step, and what standardization needs beside it.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..common.errors import wrong_results
from ..common.run import Run, Started
from ..weights.workloads import model_workload
from . import plot, record, report
from .measure import Row, measure
from .options import choose_variants, parse


def main(argv: list[str]) -> None:
    args = parse(argv)
    variants = choose_variants(args)
    plan = [
        (model_workload(name), kind, dtype)
        for name in args.models
        for kind in args.optimizer
        for dtype in args.dtype
    ]
    run = Run(["optimizer", *argv], args)

    def measure_all(started: Started) -> Iterator[Row]:
        for each in plan:
            yield measure(*each, variants, args.device, args.seconds, started)

    rows = []
    for row in run.rows(measure_all, len(plan), lambda rows: record.as_json(rows, variants)):
        report.print_row(row)
        rows.append(row)
    report.print_variants(rows, variants)
    ours = {variant.name for variant in variants if variant.is_ours}
    wrong = wrong_results(rows, ours.__contains__)
    run.finish(lambda path, caption: plot.save(path, rows, caption), wrong)
