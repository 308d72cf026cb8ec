"""The benchmark's tables: within the terminal's width no word and no number is cut."""

import argparse
import dataclasses
import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from bench.common.interval import Interval
from bench.common.report import print_head
from bench.common.tables import Table
from bench.common.timing import Timing
from bench.evidence.report import print_comparisons
from bench.optimizer import report as optimizer_report
from bench.optimizer.checks import Check as OptimizerCheck
from bench.step import report as step_report
from bench.step.checks import Check as StepCheck
from bench.step.measure import Cell
from bench.step.measure import Row as StepRow
from bench.step.variants import Settings, Variant
from bench.weights import command as standardize
from bench.weights import report
from bench.weights.checks import Check
from bench.weights.providers import Provider
from bench.weights.record import Row
from bench.weights.workloads import Workload, model_shapes, parse_shape

RESULTS = Path(__file__).parents[2] / "bench" / "results"


def test_table():
    table = Table("times")
    table.add_columns("workload")
    table.add_columns("over\ncopy", right=True)
    table.add_row("8x8", "1.0")
    table.add_row("512x512", "10.0\n±5%")
    lines = ["          over", "workload  copy", "─" * 14, "8x8        1.0"]
    lines += ["512x512   10.0", "           ±5%"]
    for width in (14, 80):  # as wide as it is, or wider
        assert table.render(width) == "\n".join(lines)


def test_a_table_that_is_too_wide_goes_on_below():
    table = Table("times")
    table.add_columns("name", "first", "second", "third")
    table.add_row("a", "1.25 µs", "2.25 µs", "3.25 µs")
    parts = [
        f"name  first    second\n{'─' * 22}\na     1.25 µs  2.25 µs",
        f"name  third\n{'─' * 13}\na     3.25 µs",
    ]
    assert table.render(30) == "\n\n".join(parts)  # all in one need 31
    assert "\n\n" not in table.render(31)
    assert table.render(1).count("µs") == 3  # no column beside the first fits: one in each part


def test_prose_wraps_at_spaces_alone():
    table = Table("peers")
    for header, options in (("peer", {}), ("runs", {"wraps": True}), ("n", {"right": True})):
        table.add_columns(header, **options)
    table.add_row("copy", "clone() of a well-known-and-long-word in one", "1")
    head = f"{'peer  runs':32}n\n{'─' * 33}\n"
    first, rest = "copy  clone() of a", "\n      well-known-and-long-word\n      in one"
    assert table.render(33) == f"{head}{first:32}1{rest}"
    narrower = table.render(20)  # the column is as narrow as its longest word
    assert narrower == f"peer  runs\n{'─' * 30}\n{first}{rest}\n\npeer  n\n{'─' * 7}\ncopy  1"


def timing(entry, unit, samples, batch):
    times = (entry[f"{name}_{unit}"] for name in ("median", "q1", "q3"))
    scale = {"us": 1e-6, "ms": 1e-3}[unit]
    return Timing(*(time * scale for time in times), entry[samples], entry[batch])


def weights_row(found):
    """A Row of standardize from what was recorded of it."""
    kind, name = found["kind"], found["workload"]
    shapes = model_shapes(name) if kind == "model" else [parse_shape(name)]
    entries = found["providers"]
    keys = ("error_forward", "error_gradient", "saved_bytes")
    return Row(
        Workload(name, found["title"], kind, tuple(shapes)),
        found["dtype"],
        found["direction"],
        found["bytes"],
        {name: timing(e, "us", "samples", "calls_per_sample") for name, e in entries.items()},
        {
            name: Check(e[keys[0]], e[keys[1]], 1.0, e[keys[2]], 4 * found["elements"])
            for name, e in entries.items()
            if keys[0] in e
        },
        found["skipped"],
    )


def print_weights(found):
    rows = [weights_row(row) for row in found["rows"]]
    rows[0].skipped["compile"] = "no compiler in /a/folder/with/a/name/that/is/longer/than/the/rest"
    providers = [Provider(n, p["runs"]) for n, p in found["providers"].items()]
    directions = [d for d in report.TITLES if any(row.direction == d for row in rows)]
    dtypes = list(dict.fromkeys(row.dtype for row in rows))
    args = argparse.Namespace(direction=directions, dtype=dtypes, device="cpu")
    standardize.print_results(args, providers, rows)


def step_row(found):
    entries = found["variants"]
    return StepRow(
        Cell(found["network"], found["batch"], found["accumulate"], found["size"]),
        {name: timing(e, "ms", "rounds", "steps_per_round") for name, e in entries.items()},
        {n: Interval(**e["overhead_percent"]) for n, e in entries.items() if n != "plain"},
        {
            name: StepCheck({getattr(torch, d): v for d, v in e["gradient_error"].items()})
            for name, e in entries.items()
        },
        {name: entry["peak_bytes"] for name, entry in entries.items()},
    )


def print_step(found):
    rows = [step_row(row) for row in found["rows"]]
    how = step_report.describe(Settings(), 64)
    for row in rows:
        step_report.print_row(row, how)
    variants = [Variant(name, v["runs"]) for name, v in found["variants"].items()]
    step_report.print_variants(rows, variants)


@dataclasses.dataclass
class OptimizerRow:
    """A Row of optimizer, whose ratios were recorded where the rounds were not."""

    found: dict

    @property
    def title(self):
        return f"{self.found['title']}"

    @property
    def workload(self):
        shapes = tuple(model_shapes(self.found["model"]))
        return Workload(self.found["model"], self.found["title"], "model", shapes)

    @property
    def bytes(self):
        return self.found["bytes"]

    @property
    def times(self):
        entries = self.found["updates"].items()
        return {name: timing(e, "ms", "rounds", "calls_per_round") for name, e in entries}

    @property
    def host_times(self):
        entries = self.found["updates"].items()
        return {
            name: timing({**e, **e["host"]}, "ms", "rounds", "calls_per_round")
            for name, e in entries
            if "host" in e
        }

    @property
    def checks(self):
        entries = self.found["updates"].items()
        return {name: OptimizerCheck(e["errors"]) for name, e in entries if "errors" in e}

    @property
    def skipped(self):
        return self.found["skipped"]

    def ratio(self, name, other):
        key = {"copy": "x_copy", "torch_fused": "x_torch_fused"}[other]
        interval = self.found["updates"][name][key]
        return interval and Interval(**interval)


def print_optimizer(found):
    rows = [OptimizerRow(row) for row in found["rows"]]
    for row in rows:
        optimizer_report.print_row(row)
    updates = found["updates"].items()
    optimizer_report.print_variants(rows, [Variant(name, v["runs"]) for name, v in updates])


PRINTERS = {
    "variants": print_step,
    "updates": print_optimizer,
    "providers": print_weights,
    "comparisons": print_comparisons,
}


def printed(path, columns, monkeypatch, capsys):
    found = json.loads(path.read_text())
    monkeypatch.setenv("COLUMNS", str(columns))
    print_head(found)
    [printer] = [PRINTERS[key] for key in PRINTERS if key in found]
    printer(found)
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
@pytest.mark.parametrize(
    "columns",
    [
        80,  # of a log
        30,  # of hardly any terminal: all tables go on below, words are longer than a line
    ],
)
def test_recorded_results_have_every_word_and_number(path, columns, monkeypatch, capsys):
    lines = printed(path, columns, monkeypatch, capsys)
    assert columns < 80 or max(map(len, lines)) <= columns
    words = Counter(" ".join(lines).split())
    wide = printed(path, 10_000, monkeypatch, capsys)
    whole = Counter(word for word in " ".join(wide).split() if not word.startswith("─"))
    assert not whole - words  # each as often; what is repeated is the parts' first column
