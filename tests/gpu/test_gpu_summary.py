"""``make gpu``: the targets, and the summary of a run, from files made up here."""

import json

import pytest
from benchmark import run_main

from bench.optimizer import command as optimizer
from bench.weights.workloads import Workload
from gpu.stages import Result, Stage, run
from gpu.summary import render, summarize

MACHINE = {"gpu": "a GPU", "architecture": "9.0"}
N = 23_454_912  # ResNet-50's


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


def write(folder, name, *rows, complete=True):
    (folder / f"{name}.json").write_text(json.dumps({"complete": complete, "rows": rows}))


def summary(folder, *names):
    return summarize(MACHINE, [Result(name, "passed") for name in names], folder)


@pytest.mark.parametrize(
    ("elements", "direction", "ours", "met"),
    [  # copies take 10 us; the target is on the line, or missed by a little
        (1 << 20, "forward", 10 / 0.9, True),
        (1 << 20, "forward", 10 / 0.89, False),
        (1 << 20, "backward", 10 / 0.86, True),
        (1 << 20, "backward", 10 / 0.84, False),
        (1 << 18, "forward", 11.99, True),
        (1 << 18, "backward", 12.1, False),
        (1 << 18, "forward", float("nan"), False),  # not timed
    ],
)
def test_targets_of_single_weights(tmp_path, elements, direction, ours, met):
    write(tmp_path, "weights", row("64x9", elements, direction, ours, copy=10))
    (target,) = summary(tmp_path, "weights")["targets"]
    assert target["met"] == met and "copy 10.00" in target["note"]  # the faster of the two copies


@pytest.mark.parametrize("speed", [1.0, 0.7])  # an H200's memory, and an H100's
def test_targets_of_the_model(tmp_path, speed):
    """In units of a copy of all bytes, whose bandwidth the largest of the weights tells."""
    peers = {"formula": 900.0, "batch_norm": 360, "layer_norm": 200}
    forward, backward, to_bf16 = (per * N / 4.3e6 / speed for per in (8, 12, 6))  # us at 4.3 TB/s
    large = row("1x16777216", 1 << 24, "forward", 50, (8 << 24) / 4.3e6 / speed)
    write(tmp_path, "weights", row("64x147", 9408, "forward", 2, copy=2), large)
    bf16 = row("ResNet-50", N, "forward", 1.21 * to_bf16, 99, "float32:bfloat16", 90)
    bf16["bytes"] = 6 * N
    write(
        tmp_path,
        "model",
        row("ResNet-50", N, "forward", 1.07 * forward, 99, host=90, **peers),
        row("ResNet-50", N, "backward", 1.19 * backward, 99, host=101, formula=1600),
        bf16,
    )
    write(tmp_path, "compile", row("ResNet-50", N, "forward", 45, 44, compile=89))
    found = summary(tmp_path, "weights", "model", "compile")["targets"][2:]
    expected = {
        "ResNet-50, float32, forward: of copy's time": (1.07, True),
        "ResNet-50, float32, forward: host": (90, True),
        "ResNet-50, float32, forward: formula takes": (900 / (1.07 * forward), False),
        "ResNet-50, float32, forward: batch_norm takes": (360 / (1.07 * forward), False),
        "ResNet-50, float32, forward: layer_norm takes": (200 / (1.07 * forward), speed == 1),
        "ResNet-50, float32, backward: of copy's time": (1.19, True),
        "ResNet-50, float32, backward: host": (101, False),
        "ResNet-50, float32, backward: formula takes": (1600 / (1.19 * backward), speed == 1),
        "ResNet-50, float32:bfloat16, forward: of copy's time": (1.21, False),
        "ResNet-50, float32:bfloat16, forward: host": (90, True),
        "ResNet-50, float32, forward: compile takes": (89 / 45, False),
    }
    assert {each["what"]: each["met"] for each in found} == {
        w: met for w, (_, met) in expected.items()
    }
    for each in found:
        assert each["measured"] == pytest.approx(expected[each["what"]][0])


def test_without_a_copy_the_model_has_no_target_of_it(tmp_path):
    write(tmp_path, "model", row("ResNet-50", N, "forward", 45, 44, host=90))
    found = summary(tmp_path, "model")
    assert [each["what"] for each in found["targets"]] == ["ResNet-50, float32, forward: host"]
    assert found["missing"] == ["model: its bytes' copy, which the weights' stage measures"]


def test_wrong_results_are_said_first(tmp_path):
    wrong = row("64x64", 4096, "forward", 1, copy=1)
    del wrong["providers"]["torch_ws"]
    wrong["skipped"] = {"torch_ws": "wrong, error 1.0e-02 forward"}
    write(tmp_path, "weights", wrong, row("64x9", 576, "forward", 1, copy=1))
    found = summarize(MACHINE, [Result("weights", "failed", 9, "exit status 1")], tmp_path)
    line = "weights: 64x64, float32, forward: wrong, error 1.0e-02 forward"
    assert found["wrong"] == [line] and not found["missing"] and not found["passed"]
    assert [target["met"] for target in found["targets"]] == [False, True]  # not timed, so not met
    assert f"WRONG: {line}" in render(found).splitlines()


def test_the_summary_reads_what_the_benchmark_writes(tmp_path):
    options = "--shapes 8x8 --providers elementwise --direction forward backward --seconds 0.01"
    command = f"{{python}} -m bench {options} --json {{out}}/weights.json"
    result = run(Stage("weights", "first", 60, command), tmp_path, "", 60)
    found = summarize(MACHINE, [result], tmp_path)
    assert result.status == "passed" and not found["missing"]
    rows = json.loads((tmp_path / "weights.json").read_text())["rows"]
    for target, of_bench in zip(found["targets"], rows, strict=True):
        times = {name: entry["median_us"] for name, entry in of_bench["providers"].items()}
        copy = min(times["copy"], times["elementwise"])
        assert target["measured"] == times["torch_ws"] / copy
        assert target["what"].startswith("8x8, float32, ")


def test_the_training_step(tmp_path):
    """From what the command writes: what each variant adds to the plain step."""
    options = (
        "step --models tiny --size 8 --batch 1 --micro-batches 1 --variants layer --seconds 0.01"
    )
    command = f"{{python}} -m bench {options} --json {{out}}/step.json"
    result = run(Stage("step", "second", 60, command), tmp_path, "", 60)
    found = summarize(MACHINE, [result], tmp_path)
    (line,) = found["training"]
    assert result.status == "passed" and not found["missing"] and not found["targets"]
    (measured,) = json.loads((tmp_path / "step.json").read_text())["rows"]
    overhead = measured["variants"]["layer"]["overhead_percent"]
    assert line.startswith(f"tiny U-Net, batch 1: layer   {overhead['median']:+6.2f} % (")
    assert f"Training step: {line}" in render(found).splitlines()


def test_the_optimizers_step(tmp_path, monkeypatch):
    """From what the command writes, and would on a GPU: targets of the copy and of the host."""
    small = Workload("resnet50", "small", "model", ((8, 64),))
    monkeypatch.setattr(optimizer, "model_workload", lambda name: small)
    path = tmp_path / "optimizer.json"
    options = "--optimizer sgd adamw --dtype float32 --variants fused grouped --seconds 0.01"
    run_main(f"optimizer {options} --json {path}", monkeypatch)
    record = json.loads(path.read_text())
    sgd, adamw = (row["updates"] for row in record["rows"])
    sgd["fused"] |= {"host": {"median_ms": 0.11}, "method": "graph"}
    sgd["grouped"] |= {"method": "events"}
    sgd["fused"]["x_copy"]["median"] = 1.19
    adamw["fused"]["x_copy"]["median"] = 1.21
    path.write_text(json.dumps(record))
    found = summary(tmp_path, "optimizer")
    title = "small, SGD with momentum, float32"
    assert [(each["what"], each["measured"], each["met"]) for each in found["targets"]] == [
        (f"{title}: of copy's time", 1.19, True),
        (f"{title}: host", pytest.approx(110), False),
        ("small, AdamW, float32: of copy's time", 1.21, False),
        ("small, AdamW, float32: host", None, False),
    ]
    times = [1e3 * sgd[name]["median_ms"] for name in ("fused", "copy", "grouped", "torch_fused")]
    note = "us: {:.1f}, copy {:.1f}, grouped {:.1f}, torch_fused {:.1f}".format(*times)
    assert found["targets"][0]["note"] == note
    assert found["missing"] == [
        f"optimizer: {title}: grouped is in no CUDA graph, its time has gaps in it"
    ]
    # neither a wrong update nor a copy that had no memory ends the summary
    del sgd["fused"], adamw["copy"]
    adamw["fused"]["x_copy"] = None
    record["rows"][0]["skipped"] = {"fused": "wrong, in epsilons: weight 9"}
    record["rows"][1]["skipped"] = {"copy": "out of memory"}
    path.write_text(json.dumps(record))
    found = summary(tmp_path, "optimizer")
    assert [each["measured"] for each in found["targets"]] == 4 * [None]
    assert found["wrong"] == [f"optimizer: {title}: wrong, in epsilons: weight 9"]
    assert found["missing"][1:] == ["optimizer: copy was left out: out of memory"]
    assert f"WRONG: {found['wrong'][0]}" in render(found).splitlines()


def test_what_was_not_measured_is_said(tmp_path):
    skipping, stopped = (row(name, 100, "forward", 1, copy=1) for name in ("ResNet-50", "a"))
    skipping["skipped"] = {"compile": "no compiler"}
    stopped["providers"]["copy"]["method"] = "events"
    write(tmp_path, "compile", skipping)
    write(tmp_path, "weights", stopped, complete=False)
    assert summary(tmp_path, "weights", "model", "compile")["missing"] == [
        "model: nothing was measured",
        "weights: a, float32, forward: copy is in no CUDA graph, its time has gaps in it",
        "weights: only 1 rows, then it stopped",
        "compile: compile was left out: no compiler",
    ]


def test_figures_of_an_earlier_run_are_not_read(tmp_path):
    for name in ("weights", "model", "compile"):
        write(tmp_path, name, row("stale", N, "forward", 1, copy=1))
    dies = run(Stage("weights", "first", 60, "false"), tmp_path, "9.0", 60)
    found = summarize(MACHINE, [dies, Result("model", "skipped")], tmp_path)
    assert found["targets"] == [] and found["missing"] == ["weights: nothing was measured"]


def test_summary(tmp_path):
    small = row("64x64", 4096, "forward", 1, copy=1)
    write(tmp_path, "weights", row("116736x9", 1_050_624, "forward", 13, copy=10, host=8), small)
    write(tmp_path, "model", row("ResNet-50", N, "forward", 45, 44, host=120))
    results = [
        Result("weights", "passed", 61),
        Result("model", "passed", 50),
        Result("tests", "failed", 100, "1 failed, 9 passed in 99s"),
        Result("memcheck", "skipped", detail="compute-sanitizer: not found"),
    ]
    found = summarize(MACHINE, results, tmp_path)
    assert found["passed"] is False
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    lines = render(found).splitlines()
    assert "tests        FAILED      100 s  1 failed, 9 passed in 99s" in lines
    assert "memcheck     SKIPPED       0 s  compute-sanitizer: not found" in lines
    (weight,) = (line for line in lines if line.startswith("116736x9"))
    assert "0.77x" in weight and ">= 0.9x" in weight and "MISSED" in weight
    (host,) = (line for line in lines if "host" in line and "ResNet-50," in line)
    assert "120.00 us" in host and "<= 100 us" in host and "MISSED" in host
    assert "copy         840 GB/s, read and written" in lines  # of the largest
    assert lines[-1] == "Stages: 2 passed, 1 failed, 1 skipped; targets: 2 met, 2 missed"
    assert max(map(len, lines)) <= 140
