"""``python -m bench step``: what weight standardization costs in training, of whole networks.

A step is forward and backward of one or several micro-batches, gradient clipping where --clip names
one, one step of the optimizer, and zero_grad.
networks.py has the networks, variants.py the ways to standardize, checks.py their check, and
measure.py says how overheads are taken.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from ..common.errors import wrong_results
from ..common.run import Run, Started
from . import plot, record, report
from .measure import Row, measure
from .options import choose_cells, choose_settings, choose_variants, parse


def main(argv: list[str]) -> None:
    args = parse(argv)
    variants = choose_variants(args)
    settings = choose_settings(args)
    cells = choose_cells(args, variants)
    run = Run(["step", *argv], args, **dataclasses.asdict(settings), size=args.size)

    def measure_all(started: Started) -> Iterator[Row]:
        for cell in cells:
            yield measure(cell, variants, settings, args.seconds, started)

    rows, how = [], report.describe(settings, args.size)
    for row in run.rows(measure_all, len(cells), lambda rows: record.as_json(rows, variants)):
        report.print_row(row, how)
        rows.append(row)
    report.print_variants(rows, variants)
    ours = {variant.name for variant in variants if variant.is_ours}
    wrong = wrong_results(rows, ours.__contains__)
    run.finish(lambda path, caption: plot.save(path, rows, how, caption), wrong)
