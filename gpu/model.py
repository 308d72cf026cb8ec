"""``python3 -m gpu.model``: what the kernels should take on GPUs that are not here, beside a copy.

PREDICTIONS by gpu/prediction.py, from the launch tables of the CUDA library that is built; with
--measured, a GPU's figures beside them, and what they say of the model's constants.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, fields
from typing import NamedTuple

from bench.common.arguments import add_names
from bench.common.run import write
from bench.common.tables import Table
from bench.common.terminal import print_table, print_text
from bench.weights.measure import DTYPES
from bench.weights.options import shape
from bench.weights.workloads import MODELS, model_workload, weight_workload

from .measured import Corrected, Measured, Run, correct, read
from .prediction import BYTES, CHIPS, Call, Chip, Constants, Prediction, predict
from .stages import LARGE
from .summary import LARGE_MB, LARGE_SPEED

DIRECTIONS = ("forward", "backward", "norms", "update")
NOTICE = (
    "PREDICTIONS of a model: no GPU has run for them, and most of its constants are estimates "
    "(gpu/prediction.py has the formulas, and every constant's source). Of each call in a CUDA "
    "graph: blocks, waves of them, KB of inputs in flight a multiprocessor, microseconds, those of "
    "a copy that moves as many bytes in one launch, the fraction of the copy's speed, and by how "
    "much that is short of the GPU benchmark's target."
)


class Found(NamedTuple):
    chip: Chip
    call: Call
    prediction: Prediction
    measured: Measured | None

    @property
    def target(self) -> float | None:
        """The benchmark's, of a large weight: the fraction of a copy's speed."""
        (rows, cols), *others = self.call.weights
        large = not others and rows * cols * BYTES[self.call.names[0]] >= LARGE_MB * 1e6
        return LARGE_SPEED.get(self.call.direction) if large else None

    @property
    def short(self) -> float:
        """By how much the prediction misses the target, in hundredths as both are printed."""
        return max(0, round((self.target or 0) - self.prediction.of_copy, 2))


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python3 -m gpu.model",
        description="Predicts the kernels' times on GPUs, from the launch tables.",
        allow_abbrev=False,
    )
    weights = "such as 512x4608; default: the GPU benchmark's large weights, and all models"
    parser.add_argument("shapes", nargs="*", type=shape, metavar="ROWSxCOLS", help=weights)
    add_names(parser, "--models", MODELS, "all of a model's weights in one call: {}")
    add_names(parser, "--direction", DIRECTIONS, "{}; default: all", default=list(DIRECTIONS))
    dtypes = "of weights, or weights:outputs: {}; default: float32; of models float32:bfloat16 too"
    add_names(parser, "--dtype", DTYPES, dtypes)
    add_names(parser, "--chips", CHIPS, "{}; default: all, or those that were measured")
    files = "records of python -m bench --device cuda; by default their weights are predicted"
    parser.add_argument("--measured", nargs="+", default=[], metavar="FILE", help=files)
    parser.add_argument("--json", metavar="PATH", help="writes everything that was found")
    return parser


def choose_calls(args: argparse.Namespace, runs: dict[str, Run]) -> list[Call]:
    if runs and not (args.shapes or args.models):
        calls = list(dict.fromkeys(call for run in runs.values() for call in run.figures))
        dtypes = args.dtype or DTYPES
        return [c for c in calls if c.dtype in dtypes and c.direction in args.direction]
    shapes, models = args.shapes, args.models or []
    if not (shapes or models):
        shapes, models = [*LARGE, f"1x{1 << 24}"], MODELS
    chosen = [(weight_workload(text), ["float32"]) for text in shapes]
    chosen += [(model_workload(name), ["float32", "float32:bfloat16"]) for name in models]
    return [
        Call.of(workload, dtype, direction)
        for workload, dtypes in chosen
        for dtype in args.dtype or dtypes
        for direction in args.direction
    ]


def print_chip(chip: Chip, found: list[Found]) -> None:
    """Tables by direction and dtype, of single weights and of models."""
    copies = f"copies {chip.bandwidth:.2f} TB/s ({chip.source})"
    about = f"{chip.name}, {chip.multiprocessors} multiprocessors, {copies}"
    measured = any(each.measured for each in found)
    tables: dict[tuple, Table] = {}
    for each in found:
        call, single = each.call, len(each.call.weights) == 1
        key = (call.direction, call.dtype, single)
        if key not in tables:
            tables[key] = Table(f"PREDICTION: {call.direction}, {call.dtype}: {about}")
            names = ("weight", "entry") if single else ("model", "weights in\nlaunches")
            tables[key].add_columns(*names)
            tables[key].add_columns("blocks", "waves", "KB", "us", "copy", right=True)
            tables[key].add_columns(*(("speed", "short") if single else ("speed",)), right=True)
            if measured:
                tables[key].add_columns("measured", "copy,\nmeasured", "ratio", right=True)
        tables[key].add_row(*cells(each, measured))
    for table in tables.values():
        print_table(table)
    large = [each for each in found if each.target]
    if large:
        short = sum(each.short > 0 for each in large)
        speeds = " and ".join(f"{speed:g} {each}" for each, speed in LARGE_SPEED.items())
        print()
        print_text(
            f"{chip.name}: {short} of {len(large)} weights of {LARGE_MB} MB or more are predicted "
            f"to miss the benchmark's targets, {speeds} of a copy's speed."
        )


def cells(found: Found, measured: bool) -> Iterator[str]:
    p = found.prediction
    single = len(p.plans) == 1
    name = p.plans[0]["name"] if single else f"{len(p.plans)} in {p.launches}"
    yield from (found.call.title, name, str(p.blocks), f"{p.waves:.1f}", f"{p.in_flight:.0f}")
    yield from (f"{p.us:.2f}", f"{p.copy_us:.2f}", f"{p.of_copy:.2f}")
    if single:
        yield f"{found.short:.2f}" if found.short else ""
    if measured:
        us, copy = found.measured or (math.nan, math.nan)
        for value in (us, copy, us / p.us):
            yield "" if math.isnan(value) else f"{value:.2f}"


def print_corrected(chip: Chip, run: Run, corrected: Corrected | None) -> None:
    for line in run.left_out:
        print_text(f"Left out: {line}")
    if corrected and corrected.bandwidth:
        print_text(
            f"{chip.name}, corrected by the measurements: copies {corrected.bandwidth:.2f} TB/s "
            f"instead of {chip.bandwidth:.2f} (by {corrected.largest})."
        )
    if corrected:
        print_text(
            f"{chip.name}, corrected by the measurements: {corrected.more_us:+.2f} us a launch, "
            f"the median of {corrected.count}; then predictions are off by "
            f"{100 * corrected.error:.0f} % in the median and {100 * corrected.worst:.0f} % at "
            f"most ({corrected.worst_of})."
        )


def as_json(found: list[Found], corrected: dict[str, Corrected | None]) -> dict:
    return {
        "schema": 1,
        "notice": NOTICE,
        "constants": {f.name: {"value": f.default, **f.metadata} for f in fields(Constants)},
        "chips": [asdict(chip) for chip in dict.fromkeys(each.chip for each in found)],
        "rows": [row_json(each) for each in found],
        "corrected": {name: each and each._asdict() for name, each in corrected.items()},
    }


def row_json(found: Found) -> dict:
    p = found.prediction
    times = found.measured._asdict() if found.measured else {}
    return {
        "chip": found.chip.name,
        "title": found.call.title,
        "dtype": found.call.dtype,
        "direction": found.call.direction,
        "entries": list(dict.fromkeys(plan["name"] for plan in p.plans)),
        "launches": p.launches,
        "blocks": p.blocks,
        "waves": p.waves,
        "kilobytes_in_flight": p.in_flight,
        "predicted": {"us": p.us, "copy_us": p.copy_us, "of_copy": p.of_copy},
        "target": found.target,
        "measured": {key: None if math.isnan(us) else us for key, us in times.items()} or None,
    }


def main(argv: list[str]) -> None:
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        runs = read(args.measured, DIRECTIONS)
    except ValueError as error:
        parser.error(f"argument --measured: {error}")
    names = args.chips or list(runs or CHIPS)
    if not set(runs) <= set(names):
        others = ", ".join(sorted(set(runs) - set(names)))
        parser.error(f"argument --measured: of {others}, which --chips leaves out")
    calls, found, corrected = choose_calls(args, runs), [], {}
    try:
        for chip in (CHIPS[name] for name in names):
            figures = runs[chip.name].figures if chip.name in runs else {}
            found += [Found(chip, c, predict(c, chip), figures.get(c)) for c in calls]
            if figures:
                corrected[chip.name] = correct(chip, figures)
    except RuntimeError as error:
        parser.error(f"the launch tables are the CUDA library's: {error}")
    print_text(NOTICE)
    for name in names:
        print_chip(CHIPS[name], [each for each in found if each.chip.name == name])
        if name in runs:
            print_corrected(CHIPS[name], runs[name], corrected.get(name))
    if args.json:
        try:
            write(args.json, as_json(found, corrected))
        except OSError as error:
            parser.error(f"argument --json: {args.json}: {error.strerror}")


if __name__ == "__main__":
    main(sys.argv[1:])
