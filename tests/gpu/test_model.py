"""``python3 -m gpu.model``: its predictions against estimates by hand, what every entry of the
launch tables keeps in flight, and figures of a GPU beside them, from files made up here.
"""

import json
from dataclasses import replace
from itertools import product

import pytest
import torch_ws

from bench.weights.workloads import model_workload, weight_workload
from gpu import model, prediction
from gpu.launch_table import PAIRS, STEPS, entries
from gpu.prediction import CHIPS, Call, Constants, predict
from gpu.stages import LARGE

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


def plan(blocks, resident, threads=128, access="vector", form="rows", **more):
    made_up = {"name": "made up", "team": threads, "elements": 40, "team_rows": 1, "rows": 1}
    fixed = {"blocks": blocks, "resident": resident, "threads": threads, "access": access}
    return {**made_up, **fixed, "form": form, "chunks": 1, **more}


@pytest.mark.parametrize(
    ("shape", "direction", "made_up", "chip", "low", "high"),
    [
        # Between one wave and a half of them, in blocks of a row: memory, and a life that a copy's
        # blocks do not have.
        ("512x4608", "forward", plan(512, 5), H200, 0.85, 0.92),
        ("512x4608", "forward", plan(512, 5), H100, 0.88, 0.95),
        ("512x4608", "backward", plan(512, 4), H200, 0.83, 0.90),
        ("512x4608", "backward", plan(512, 4), H100, 0.87, 0.93),
        # Half of the multiprocessors have a block, and no more than one.
        ("64x18432", "forward", plan(64, 1, threads=512), H200, 0.70, 0.82),
        ("64x18432", "forward", plan(64, 1, threads=512), H100, 0.78, 0.88),
        # Two launches, 12 bytes an element. The first one held two blocks, which a plan cannot say.
        (
            "64x65536",
            "forward",
            plan(512, 1, threads=512, form="split", chunks=8, elements=16),
            H200,
            0.50,
            0.68,
        ),
        # Flat rows: six passes over 81 rows of 25, four over 13 of 147.
        (
            "167776x25",
            "forward",
            plan(2072, 5, access="flat", team=8, elements=8, rows=81),
            H200,
            0.27,
            0.45,
        ),
        (
            "28536x147",
            "forward",
            plan(2196, 5, access="flat", team=32, elements=8, rows=13),
            H200,
            0.27,
            0.45,
        ),
    ],
)
def test_fraction_of_a_copy_as_estimated_by_hand(shape, direction, made_up, chip, low, high):
    """Of the launch table before it was revised, where the estimates were made block by block."""
    assert low <= predict(call(shape, direction), chip, plans=[made_up]).of_copy <= high


def test_a_small_weight_costs_its_latencies():
    found = predict(call("64x576"), H200, plans=[plan(64, 5, elements=24)])
    assert 3.0 <= found.us <= 3.5 and 1.9 <= found.copy_us <= 2.2


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_more_of_what_a_multiprocessor_has_is_never_slower(direction):
    def us(chip=H200, resident=2, **constants):
        # twenty waves of two blocks: none of the terms is zero
        made_up = plan(5280, resident, access="flat", team=8, elements=8, rows=81)
        c = Constants(**constants)
        return predict(call("427680x25", direction), chip, c, [made_up]).us

    assert us() > us(resident=3) > us(resident=4)  # fewer blocks wait
    assert us() > us(replace(H200, bandwidth=5))
    assert us() > us(link=200) and us() > us(issuing=1) and us() > us(latency=0.3)
    assert us(replace(H200, multiprocessors=66)) > us()


def test_a_list_shares_a_launch():
    one = predict(call("512x4608"), H200, plans=[plan(512, 5)])
    two = Call("two", ((512, 4608), (512, 4608)), "forward", "float32")
    shared = predict(two, H200, plans=[plan(512, 5), plan(512, 5)])
    apart = predict(two, H200, plans=[plan(512, 5), plan(512, 5, threads=512)])
    assert (shared.launches, shared.blocks, apart.launches) == (1, 1024, 2)
    assert one.us < shared.us < 2 * one.us and apart.us > shared.us
    # the same blocks as one weight of both
    both = predict(call("1024x4608"), H200, plans=[plan(1024, 5)])
    assert shared.us == pytest.approx(both.us) and shared.in_flight == both.in_flight


def test_a_split_row_is_read_again_from_the_cache_if_it_fits_half_of_it():
    def us(chip):
        made_up = plan(1024, 2, threads=512, form="split", chunks=16, elements=16)
        return predict(call("64x131072"), chip, plans=[made_up]).us

    weight = 64 * 131072 * 4 / 1e6
    assert us(replace(H200, cache=2 * weight)) < us(replace(H200, cache=2 * weight - 1))
    rows = predict(call("64x131072"), H200, plans=[plan(64, 1, threads=512)])
    assert rows.us < us(H200)  # read once


def test_bytes_of_a_call_are_the_benchmarks():
    from bench.weights.measure import DTYPES
    from bench.weights.workloads import moved_bytes

    for dtype, types in DTYPES.items():
        for direction in DIRECTIONS:
            expected = moved_bytes(direction, 4 * 9, *types)
            assert call("4x9", direction, dtype).moved == expected


# KB of inputs that every entry keeps in flight a multiprocessor, of its shortest rows, where all
# multiprocessors are full. An H200 needs 36 bytes/ns for about 1 us, read and written, and blocks
# wait for memory during half of their lives.
IN_FLIGHT = 48
FULL = 1 << 22  # rows
# The least of what has fewer, by the weight's dtype, access and form.
EXCEPTIONS = {
    # Flat rows of 217: shared memory has 9 of them. Vector rows of 16: one of a thread's four
    # vectors. Scalar rows of 2049: 5 elements a thread, of 512 threads.
    ("float32", "flat", "rows"): 47,
    ("float32", "vector", "rows"): 25,
    ("float32", "scalar", "rows"): 8,
    # A float64 takes the registers of two others, so entries hold half of the elements; and the row
    # that is an entry's shortest fills half of them.
    ("float64", "flat", "rows"): 30,
    ("float64", "vector", "rows"): 16,
    ("float64", "vector", "cluster"): 37,
    ("float64", "scalar", "rows"): 8,
    ("float64", "scalar", "split"): 33,
    # 16-bit elements: as many are in registers as of float32, with half of the bytes.
    ("float16", "flat", "rows"): 23,
    ("float16", "vector", "rows"): 12,
    ("float16", "vector", "cluster"): 31,
    ("float16", "scalar", "rows"): 4,
    ("float16", "scalar", "split"): 25,
    ("bfloat16", "flat", "rows"): 23,
    ("bfloat16", "vector", "rows"): 12,
    ("bfloat16", "vector", "cluster"): 31,
    ("bfloat16", "scalar", "rows"): 4,
    ("bfloat16", "scalar", "split"): 25,
}


@needs_table
def test_bytes_in_flight_of_every_entry():
    found = {}
    for (weight, out), direction, step in product(PAIRS, DIRECTIONS, STEPS):
        for entry in entries(direction, weight, out, FULL, step):
            shortest = Call("", ((FULL, entry.shortest),), direction, f"{weight}:{out}")
            kilobytes = round(predict(shortest, H200, plans=[entry.plan]).in_flight)
            key = (weight, entry.plan["access"], entry.plan["form"])
            found[key] = min(kilobytes, found.get(key, kilobytes))
    assert {key: least for key, least in found.items() if least < IN_FLIGHT} == EXCEPTIONS
    assert ("float32", "vector", "rows") in found and ("float32", "vector", "cluster") in found


# The fraction of a copy's speed that is predicted of the large weights: forward on an H200 and an
# H100, backward on both.
PREDICTED = {
    "116512x9": (0.67, 0.75, 0.60, 0.71),
    "41944x25": (0.78, 0.84, 0.72, 0.82),
    "38840x27": (0.78, 0.84, 0.72, 0.82),
    "21400x49": (0.77, 0.83, 0.72, 0.81),
    "7136x147": (0.72, 0.81, 0.65, 0.77),
    "16384x64": (0.83, 0.86, 0.83, 0.86),
    "1824x576": (0.83, 0.86, 0.83, 0.86),
    "912x1152": (0.79, 0.82, 0.77, 0.81),
    "456x2304": (0.79, 0.82, 0.77, 0.81),
    "232x4608": (0.79, 0.82, 0.77, 0.81),
    "64x18432": (0.74, 0.78, 0.74, 0.78),
    "16x65536": (0.73, 0.77, 0.72, 0.77),
    "466040x9": (0.71, 0.83, 0.62, 0.78),
    "167776x25": (0.82, 0.91, 0.75, 0.88),
    "155352x27": (0.82, 0.91, 0.75, 0.88),
    "85600x49": (0.82, 0.91, 0.75, 0.88),
    "28536x147": (0.79, 0.89, 0.72, 0.86),
    "65536x64": (0.92, 0.94, 0.93, 0.95),
    "7288x576": (0.92, 0.94, 0.92, 0.95),
    "3648x1152": (0.90, 0.93, 0.89, 0.92),
    "1824x2304": (0.90, 0.93, 0.89, 0.92),
    "912x4608": (0.90, 0.93, 0.90, 0.93),
    "232x18432": (0.87, 0.90, 0.88, 0.91),
    "64x65536": (0.87, 0.90, 0.88, 0.91),
    "1x16777216": (0.54, 0.57, 0.51, 0.54),
}


@needs_table
def test_no_large_weight_is_predicted_to_be_slower_than_before():
    assert PREDICTED.keys() == {*LARGE, f"1x{1 << 24}"}
    for shape, before in PREDICTED.items():
        pairs = product(DIRECTIONS, (H200, H100))
        found = [predict(call(shape, direction), chip).of_copy for direction, chip in pairs]
        slower = [f for f, least in zip(found, before, strict=True) if round(f, 2) < least]
        assert not slower, (shape, found)


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
    assert output.count("PREDICTION: ") == output.count("H200, 132 multiprocessors") == 6
    found = json.loads(path.read_text())
    rows = {(row["title"], row["dtype"], row["direction"]): row for row in found["rows"]}
    assert len(rows) == len(found["rows"]) == 8
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
        assert output.count(f": {chip}, ") == 6
    assert output.count("\n1x16777216 ") == 8 and output.count("\nResNet-50 ") == 16


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
