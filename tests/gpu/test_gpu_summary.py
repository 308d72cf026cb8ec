"""``make gpu``: the targets, and the summary of a run, from files made up here."""

import json

import pytest

from bench.common import machine
from bench.weights import command as standardize
from gpu import summary, targets
from gpu.stages import Result


def row(title, elements, direction, ours, copy, dtype="float32", host=None, **peers):
    times = {"torch_ws": ours, "copy": copy, "elementwise": copy * 1.5, **peers}
    providers = {name: {"median_us": time} for name, time in times.items()}
    if host is not None:
        providers["torch_ws"]["host"] = {"median_us": host}
    return {
        "title": title,
        "elements": elements,
        "direction": direction,
        "dtype": dtype,
        "bytes": elements * (8 if direction == "forward" else 12),
        "providers": providers,
        "skipped": {},
    }


def write(folder, name, rows, complete=True):
    found = {"complete": complete, "rows": rows}
    (folder / f"{name}.json").write_text(json.dumps(found))


@pytest.mark.parametrize(
    ("elements", "direction", "ours", "met"),
    [  # copies take 10 us; the target is on the line, or missed by a little
        (1 << 20, "forward", 10 / 0.9, True),
        (1 << 20, "forward", 10 / 0.89, False),
        (1 << 20, "backward", 10 / 0.86, True),
        (1 << 20, "backward", 10 / 0.84, False),
        (1 << 18, "forward", 11.99, True),
        (1 << 18, "backward", 12.1, False),
    ],
)
def test_targets_of_single_weights(tmp_path, elements, direction, ours, met):
    write(tmp_path, "weights", [row("64x9", elements, direction, ours, copy=10)])
    measured = targets.read(tmp_path, ["weights"])
    assert [verdict.met for verdict in measured.verdicts] == [met]
    weight = measured.weights[0]
    assert (weight.ours, weight.copy) == (ours, 10)  # the faster of the two copies


def test_the_summary_reads_what_the_benchmark_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "keep_freed_memory", lambda: False)
    arguments = ["--shapes", "8x8", "--providers", "elementwise", "--seconds", "0.01"]
    arguments += ["--direction", "forward", "backward", "--json", str(tmp_path / "weights.json")]
    standardize.main(arguments)
    measured = targets.read(tmp_path, ["weights"])
    assert not measured.missing and measured.bandwidth > 0
    found = json.loads((tmp_path / "weights.json").read_text())["rows"]
    for weight, row in zip(measured.weights, found, strict=True):
        times = {name: entry["median_us"] for name, entry in row["providers"].items()}
        assert weight.ours == times["torch_ws"]
        assert weight.copy == min(times["copy"], times["elementwise"])
        assert (weight.shape, weight.megabytes) == ("8x8", 256e-6)


def test_a_weight_without_a_time_misses_its_target(tmp_path):
    without = row("64x9", 1 << 20, "forward", 1, copy=10)
    del without["providers"]["torch_ws"]
    write(tmp_path, "weights", [without])
    assert not targets.read(tmp_path, ["weights"]).verdicts[0].met


def test_targets_of_the_model(tmp_path):
    n = 23_454_912
    peers = {"formula": 900.0, "batch_norm": 360, "layer_norm": 200}
    write(
        tmp_path,
        "model",
        [
            row("ResNet-50", n, "forward", 45, 44, host=90, **peers),
            row("ResNet-50", n, "backward", 71, 66, host=101, formula=1500),
            row("ResNet-50", n, "forward", 36, 33, dtype="float32:bfloat16", host=90),
        ],
    )
    write(tmp_path, "compile", [row("ResNet-50", n, "forward", 45, 44, compile=89)])
    found = {v.what: v for v in targets.read(tmp_path, ["model", "compile"]).model}
    verdicts = {
        "ResNet-50, float32, forward: GPU": (45, True),
        "ResNet-50, float32, forward: host": (90, True),
        "ResNet-50, forward: formula takes": (20, True),
        "ResNet-50, forward: batch_norm takes": (8, True),
        "ResNet-50, forward: layer_norm takes": (200 / 45, True),
        "ResNet-50, float32, backward: GPU": (71, False),
        "ResNet-50, float32, backward: host": (101, False),
        "ResNet-50, backward: formula takes": (1500 / 71, True),
        "ResNet-50, float32:bfloat16, forward: GPU": (36, True),
        "ResNet-50, float32:bfloat16, forward: host": (90, True),
        "ResNet-50, forward: compile takes": (89 / 45, False),
    }
    assert {what: (v.measured, v.met) for what, v in found.items()} == verdicts


def test_copy_bandwidth_is_that_of_the_largest(tmp_path):
    rows = [row("a", 1000, "forward", 1, copy=1), row("b", 10**8, "forward", 1, copy=200)]
    write(tmp_path, "weights", rows)
    assert targets.read(tmp_path, ["weights"]).bandwidth == pytest.approx(8 * 10**8 / 200e-6 / 1e9)


def test_what_was_not_measured_is_said(tmp_path):
    skipping = row("ResNet-50", 100, "forward", 1, copy=1)
    skipping["skipped"] = {"compile": "no compiler"}
    write(tmp_path, "compile", [skipping])
    stopped = row("a", 100, "forward", 1, copy=1)
    stopped["providers"]["copy"]["method"] = "events"
    write(tmp_path, "weights", [stopped], complete=False)
    write(tmp_path, "model", [row("stale", 100, "forward", 1, copy=1)])  # of an earlier run
    measured = targets.read(tmp_path, ["weights", "compile"])
    assert not any("stale" in verdict.what for verdict in measured.verdicts)
    assert measured.missing == [
        "weights: only 1 rows, then it stopped",
        "weights: a, float32, forward: copy is in no CUDA graph, its time has gaps in it",
        "compile: compile was left out: no compiler",
    ]
    (tmp_path / "model.json").unlink()
    assert targets.read(tmp_path, ["model"]).missing == ["model: nothing was measured"]


def test_summary(tmp_path):
    write(tmp_path, "weights", [row("116736x9", 1_050_624, "forward", 13, copy=10, host=8)])
    write(tmp_path, "model", [row("ResNet-50", 23_454_912, "forward", 45, 44, host=120)])
    results = [
        Result("build", "passed", 61),
        Result("tests", "failed", 100, "1 failed, 9 passed in 99s"),
        Result("memcheck", "skipped", detail="no compute-sanitizer"),
    ]
    measured = targets.read(tmp_path, ["weights", "model"])
    text = summary.render({"gpu": "a GPU", "architecture": "9.0"}, results, measured)
    lines = text.splitlines()
    assert "tests        FAILED      100 s  1 failed, 9 passed in 99s" in lines
    assert "memcheck     SKIPPED            no compute-sanitizer" in lines
    (weight,) = (line for line in lines if line.startswith("116736x9"))
    assert "0.77x speed" in weight and ">= 0.90  MISSED" in weight
    (host,) = (line for line in lines if "host" in line and "ResNet-50," in line)
    assert "120.0 us" in host and "<= 100 us  MISSED" in host
    assert lines[-1] == "Stages: 1 passed, 1 failed, 1 skipped; targets: 1 met, 2 missed"
    assert max(map(len, lines)) <= 120
    found = summary.as_json({"gpu": "a GPU", "architecture": "9.0"}, results, measured)
    assert found["passed"] is False and len(found["targets"]) == 3
    assert json.loads(json.dumps(found, allow_nan=False)) == found
