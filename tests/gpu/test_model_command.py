"""``python3 -m gpu.model``: what it prints, and figures of a GPU beside it, from made-up files."""

import json
import math
from dataclasses import replace

import pytest
import torch_ws
from benchmark import run_main

from bench.weights.workloads import model_workload, weight_workload
from gpu import measured, model, prediction
from gpu.prediction import CHIPS, Call, Constants, predict

needs_table = pytest.mark.skipif(
    not torch_ws.info()["cuda_build"], reason="built without CUDA: no launch table"
)
DIRECTIONS = ("forward", "backward")
H200, H100 = CHIPS["H200"], CHIPS["H100"]


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")  # no table has to be cut


def call(text, direction="forward", dtype="float32"):
    return Call.of(weight_workload(text), dtype, direction)


def words(capsys):
    return " ".join(capsys.readouterr().out.split())


@needs_table
def test_tables(capsys, tmp_path):
    path = tmp_path / "found.json"
    options = ["--models", "resnet50", "--chips", "H200", "--json", str(path)]
    model.main(["512x512x3x3", "8x8", *options])
    output = words(capsys)
    assert output.startswith("PREDICTIONS of a model: no GPU has run for them")
    # a table for each direction: of weights, of the model, of the model with outputs in bfloat16
    assert output.count("PREDICTION: ") == output.count("H200, 132 multiprocessors") == 12
    found = json.loads(path.read_text())
    rows = {(row["title"], row["dtype"], row["direction"]): row for row in found["rows"]}
    assert len(rows) == len(found["rows"]) == 16
    expected = predict(call("512x4608"), H200)
    row = rows["512x512x3x3", "float32", "forward"]
    assert row["predicted"]["us"] == expected.us and row["target"] == 0.9
    assert f" {expected.us:.2f} {expected.copy_us:.2f} {expected.of_copy:.2f} " in output
    assert rows["8x8", "float32", "forward"]["target"] is None  # a launch's latency, not memory
    resnet = Call.of(model_workload("resnet50"), "float32", "backward")
    expected = predict(resnet, H200)
    row = rows["ResNet-50", "float32", "backward"]
    assert (row["predicted"]["us"], row["launches"]) == (expected.us, expected.launches)
    assert set(found["constants"]["node"]) == {"value", "unit", "source"}
    short = round(0.85 - predict(call("512x4608", "backward"), H200).of_copy, 2) > 0
    short += round(0.9 - predict(call("512x4608"), H200).of_copy, 2) > 0
    assert f"H200: {short} of 2 weights of 4 MB or more are predicted to miss" in output


@needs_table
def test_without_arguments_the_benchmarks_weights_on_all_chips(capsys):
    model.main([])
    output = capsys.readouterr().out
    for chip in CHIPS:
        assert output.count(f": {chip}, ") == 12  # four directions, each of three tables
    assert output.count("\n1x16777216 ") == 16 and output.count("\nResNet-50 ") == 32


def write(path, found, gpu="NVIDIA H100 80GB HBM3", multiprocessors=132, many=True):
    """A record of the benchmark; found[workload, kind, direction]: our time and a copy's, in us."""
    runs = f"torch_ws.{'standardize_many(weights)' if many else 'standardize(w)'}"
    rows = [
        {
            "workload": name,
            "title": name,
            "kind": kind,
            "dtype": "float32",
            "direction": direction,
            "providers": {
                provider: {"median_us": time}
                for provider, time in (("torch_ws", us), ("copy", copy))
                if time
            },
        }
        for (name, kind, direction), (us, copy) in found.items()
    ]
    machine = {"gpu": gpu, "gpu_multiprocessors": multiprocessors}
    record = {"machine": machine, "providers": {"torch_ws": {"runs": runs}}, "rows": rows}
    path.write_text(json.dumps(record))
    return str(path)


@needs_table
def test_measured_figures_correct_the_model(tmp_path, capsys):
    """A GPU that differs by two constants: the copy's bandwidth, and what a launch takes."""
    chip, c = replace(H100, bandwidth=3.3), Constants(prologue=Constants().prologue + 0.3)
    figures = {}
    for name in ("64x576", "512x4608", "2048x4608", "64x147"):
        for direction in DIRECTIONS:
            found = predict(call(name, direction), chip, c)
            figures[name, "weight", direction] = (found.us, found.copy_us)
    figures["8x8", "overhead", "forward"] = (1, 1)
    figures["64x64", "weight", "forward"] = (None, 2)  # wrong, so it was not timed
    path, out = write(tmp_path / "weights.json", figures), tmp_path / "found.json"
    model.main(["--measured", path, "--json", str(out)])
    output = words(capsys)
    found = json.loads(out.read_text())
    assert {row["chip"] for row in found["rows"]} == {"H100"} and len(found["rows"]) == 9
    (row,) = (r for r in found["rows"] if (r["title"], r["direction"]) == ("64x147", "forward"))
    us, copy = figures["64x147", "weight", "forward"]
    assert row["measured"] == {"us": us, "copy_us": copy}
    assert f" {us:.2f} {copy:.2f} {us / row['predicted']['us']:.2f} " in output
    corrected = found["corrected"]["H100"]
    assert corrected["bandwidth"] == pytest.approx(3.3) and corrected["count"] == 8
    assert corrected["largest"] == "2048x4608, float32, backward"
    assert corrected["more_us"] == pytest.approx(0.3, abs=0.05) and corrected["worst"] < 0.1
    assert "copies 3.30 TB/s instead of 3.00" in output and "+0.30 us a launch" in output


@needs_table
def test_measured_beside_the_weights_that_are_asked_for(tmp_path, capsys):
    workload = model_workload("resnet50")
    figures = {("resnet50", "model", "forward"): (50, 300)}
    path = write(tmp_path / "model.json", figures)
    asked = ["--direction", "forward", "--dtype", "float32", "--measured", path]
    model.main(["64x64", "--models", "resnet50", *asked])
    output = words(capsys)
    us = predict(Call.of(workload, "float32", "forward"), H100).us
    assert f"50.00 300.00 {50 / us:.2f} " in output
    # a model's copies, which are many launches, say nothing of the bandwidth
    assert "instead of" not in output and f"{50 - us:+.2f} us a launch" in output
    write(tmp_path / "model.json", figures, many=False)
    model.main(asked)
    output = words(capsys)
    assert "Left out: resnet50" in output and "50.00" not in output


@needs_table
def test_reads_what_the_benchmark_writes(tmp_path, capsys):
    from bench.__main__ import main as bench

    path = tmp_path / "weights.json"
    options = ["--shapes", "8x8", "--direction", "both", "forward", "--seconds", "0.01"]
    bench([*options, "--providers", "elementwise", "--json", str(path)])
    record = json.loads(path.read_text())
    record["machine"] |= {"gpu": "NVIDIA B200", "gpu_multiprocessors": 148}
    path.write_text(json.dumps(record))
    capsys.readouterr()
    model.main(["--measured", str(path)])
    us = record["rows"][1]["providers"]["torch_ws"]["median_us"]
    output = words(capsys)
    assert output.count("PREDICTION: forward, float32: B200") == 1 and f" {us:.2f} " in output


@needs_table
def test_reads_what_the_optimizers_command_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measured, "model_workload", weight_workload)
    monkeypatch.setattr(
        "bench.optimizer.command.model_workload", lambda _: weight_workload("64x576")
    )
    path = tmp_path / "optimizer.json"
    options = "--optimizer sgd adamw --variants fused norms --seconds 0.01"
    run_main(f"optimizer {options} --json {path}", monkeypatch)
    record = json.loads(path.read_text())
    record["machine"] |= {"gpu": "NVIDIA H200", "gpu_multiprocessors": 132}
    for row in record["rows"]:
        row["model"] = "64x576"
    path.write_text(json.dumps(record))
    found = measured.read([str(path)], ("update", "norms"))["H200"]
    expected = {}
    for row, dtype in zip(record["rows"], ("float32", "float32:bfloat16"), strict=False):
        us = {name: 1e3 * entry["median_ms"] for name, entry in row["updates"].items()}
        expected[call("64x576", "update", dtype)] = (us["fused"], us["copy"])
        expected[call("64x576", "norms", dtype)] = (
            us["norms"],
            pytest.approx(math.nan, nan_ok=True),
        )
    assert found.figures == expected
    assert [line.split(" of ")[0] for line in found.left_out] == [
        "64x576, AdamW, float32",
        "64x576, AdamW, bfloat16",
    ]
    capsys.readouterr()
    model.main(["--measured", str(path)])
    output = words(capsys)
    assert "PREDICTION: update, float32:bfloat16: H200" in output and "Left out: 64x576" in output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["512"], "a shape is written like 512x128x3x3, not '512'"),
        (["9x1"], "one element a channel has no standard deviation"),
        (["--chips", "V100"], "argument --chips: invalid choice: 'V100'"),
        (["--measured", "none.json"], "none.json: No such file or directory"),
        (["--measured", "text.json"], "text.json: no record of python -m bench"),
        (["--measured", "list.json"], "list.json: no record of python -m bench"),
        (["--measured", "cpu.json"], "cpu.json: measured on the CPU, which is none of A100, H100"),
        (["--measured", "gh200.json"], "measured on NVIDIA GH200 480GB (132 multiprocessors)"),
        (["--measured", "pcie.json"], "measured on NVIDIA H100 PCIe (114 multiprocessors)"),
        (["--measured", "h100.json", "--chips", "H200"], "of H100, which --chips leaves out"),
    ],
)
def test_what_is_wrong_is_said_in_words(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.json").write_text("no JSON")
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "cpu.json").write_text('{"machine": {}, "rows": []}')
    write(tmp_path / "h100.json", {})
    write(tmp_path / "gh200.json", {}, gpu="NVIDIA GH200 480GB")
    write(tmp_path / "pcie.json", {}, gpu="NVIDIA H100 PCIe", multiprocessors=114)
    with pytest.raises(SystemExit) as raised:
        model.main(arguments)
    assert raised.value.code == 2 and words in capsys.readouterr().err


@needs_table
def test_a_file_that_cannot_be_written_is_said(tmp_path, capsys):
    with pytest.raises(SystemExit):
        model.main(["8x8", "--json", str(tmp_path / "none" / "found.json")])
    assert "argument --json" in capsys.readouterr().err


def test_without_the_cuda_library(monkeypatch, capsys):
    def launch_plan(*args, **options):
        raise RuntimeError("no CUDA kernels: libws_cuda.so: no such file")

    monkeypatch.setattr(prediction._C, "launch_plan", launch_plan)
    with pytest.raises(SystemExit):
        model.main(["8x8"])
    assert "no CUDA kernels: libws_cuda.so" in capsys.readouterr().err
