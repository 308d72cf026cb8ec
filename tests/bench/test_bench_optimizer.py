"""``python -m bench optimizer``: its variants, checks and command line. Never its timings."""

import dataclasses
import json

import pytest
import torch
import torch_ws
from benchmark import run_main
from torch.utils._python_dispatch import TorchDispatchMode

from bench.common import cuda_timing, optimizers
from bench.common.timing import Timing
from bench.optimizer import command, record, report
from bench.optimizer.checks import NUMBERS, check
from bench.optimizer.measure import DTYPES, GRADIENTS, measure
from bench.optimizer.variants import Update, moved_bytes, variants
from bench.weights.workloads import Tensors, Workload, make_tensors

# Every shape twice. AGC clips rows of 512 alone where they are plain, and standardized of 16 none.
SHAPES = ((16, 3, 7, 7), (16, 16, 3, 3), (64, 16, 1, 1), (8, 512, 1, 1))
SMALL = Workload("resnet50", "small", "model", 2 * SHAPES)


def tensors(dtype="float32"):
    found = make_tensors(SMALL, torch.float32, DTYPES[dtype], "cpu")
    return Tensors(found.weights, [GRADIENTS * grad for grad in found.grads])


# --- the variants and their checks


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", optimizers.KINDS)
@pytest.mark.parametrize("name", [name for name in variants() if name != "copy"])
def test_check_accepts(name, kind, dtype):
    found = check(variants()[name], tensors(dtype), kind)
    assert found.passed and found.error > 0
    written = {
        "norms": {"squared_norms"},
        "clip_grad_norm": {"grad"},
    }.get(name, {"weight", *optimizers.KINDS[kind].states})
    if name.startswith("fused"):
        written |= {"standardized"}
    assert set(found.errors) == written


@pytest.mark.parametrize(
    ("kind", "number"),
    [(kind, number) for kind, numbers in NUMBERS.items() for number in numbers],
)
@pytest.mark.parametrize("name", ["fused", "torch_fused", "grouped"])
def test_check_refuses_other_numbers(name, kind, number):
    right = variants()[name]

    def make(tensors, kind, numbers):
        return right.make(tensors, kind, {**numbers, number: 1.01 * numbers[number]})

    assert not check(dataclasses.replace(right, make=make), tensors(), kind).passed


@pytest.mark.parametrize(("name", "other"), [("fused_agc", "fused"), ("torch_agc", "torch_fused")])
@pytest.mark.parametrize("kind", optimizers.KINDS)
def test_check_looks_at_the_clipping(name, other, kind):
    wrong = dataclasses.replace(variants()[name], make=variants()[other].make)
    assert not check(wrong, tensors(), kind).passed
    wrong = dataclasses.replace(variants()[other], make=variants()[name].make)
    assert not check(wrong, tensors(), kind).passed


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spoil", [lambda t: t * 1.3, lambda t: t * float("nan")])
@pytest.mark.parametrize("result", ["weight", "momentum_buffer", "standardized"])
def test_check_looks_at_everything_that_is_written(result, spoil, dtype):
    right = variants()["fused"]

    def make(tensors, kind, numbers):
        update, calls = right.make(tensors, kind, numbers), []

        def run():
            update.run()
            calls.append(None)
            if len(calls) == 2:
                update.results[result][2].copy_(spoil(update.results[result][2]))

        return Update(run, update.results)

    assert not check(dataclasses.replace(right, make=make), tensors(dtype), "sgd").passed


def test_fused_is_the_call_of_fuse(monkeypatch):
    """The numbers that `fuse` gives the op for a model of the same weights, and the variant."""
    calls = []
    for module in ("torch_ws.training.fused_update", "bench.optimizer.variants"):
        monkeypatch.setattr(f"{module}.raw_update_many", lambda *each: calls.append(each))
    given = tensors()
    layers = [torch_ws.WSConv2d(w.shape[1], w.shape[0], w.shape[2:]) for w in given.weights]
    model = torch.nn.ModuleList(layers)
    for kind in optimizers.KINDS:
        optimizer = optimizers.make_optimizer(kind, model.parameters(), "fused")
        handle = torch_ws.fuse(model, optimizer, agc=optimizers.AGC)
        loss = sum(layer(torch.randn(1, layer.in_channels, 9, 9)).sum() for layer in layers)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        variants()["fused_agc"].make(given, kind, {}).run()
        handle.remove()
        fused, ours = (call[8:] for call in calls)
        names = ("channel_dims", "formulas", "rule", "flags", "clips", "steps")
        for name, a, b in zip(names, fused, ours, strict=False):
            if name != "flags":  # 1: SGD's first
                assert list(a) == list(b), name
        calls.clear()


class Traffic(TorchDispatchMode):
    """Bytes that operations in place read and write."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sources = args[1:] if func is torch.ops.aten.copy_.default else args
        self.bytes += result.nbytes + sum(tensor.nbytes for tensor in sources)
        return result


@pytest.mark.parametrize(
    ("kind", "dtype", "bytes_"),
    [("sgd", "float32", 24), ("sgd", "bfloat16", 20), ("adamw", "float32", 32)],
)
def test_copy_moves_the_bytes_of_fused(kind, dtype, bytes_):
    update = variants()["copy"].make(tensors(dtype), kind, {})
    with Traffic() as traffic:
        update.run()
    assert traffic.bytes == moved_bytes(kind, SMALL.elements, DTYPES[dtype])
    assert traffic.bytes == bytes_ * SMALL.elements


def test_clip_by_unit():
    """A unit after the other, in Python's numbers."""
    torch.manual_seed(0)
    parameters = [torch.randn(shape, dtype=torch.float64) for shape in ((4, 3, 2), (2, 5), (6,))]
    parameters[0][1] = 0  # below eps
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter) * 0.02
    parameters[0].grad[2] *= 1e-3  # is not clipped
    without = torch.ones(2)  # has no gradient
    expected = []
    for parameter in parameters:
        units = [parameter] if parameter.dim() == 1 else list(parameter)
        grads = [parameter.grad] if parameter.dim() == 1 else list(parameter.grad)
        found = []
        for unit, grad in zip(units, grads, strict=True):
            limit = 0.01 * max(unit.square().sum().item() ** 0.5, 1e-3)
            found.append(grad * min(1.0, limit / grad.square().sum().item() ** 0.5))
        expected.append(torch.stack(found).reshape(parameter.shape))
    optimizers.clip_by_unit([*parameters, without])
    torch.testing.assert_close([p.grad for p in parameters], expected, rtol=1e-12, atol=0)


# --- the command line


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the command on small weights; its record."""
    monkeypatch.setattr(command, "model_workload", lambda name: SMALL)
    path = tmp_path / "found.json"

    def run(arguments):
        run_main(f"optimizer --seconds 0.01 --threads 1 {arguments} --json {path}", monkeypatch)
        return json.loads(path.read_text())

    run.path = path
    return run


def test_command_line(run, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "found.png"
    found = run(f"--plot {picture}")
    printed = capsys.readouterr().out
    assert all(len(line) <= 80 or str(tmp_path) in line for line in printed.splitlines())
    assert "small, AdamW, bfloat16: 8 weights" in printed
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert found["complete"] and list(found["updates"]) == list(variants())
    assert [(row["optimizer"], row["dtype"]) for row in found["rows"]] == [
        (kind, dtype) for kind in ("sgd", "adamw") for dtype in ("float32", "bfloat16")
    ]
    for row in found["rows"]:
        assert row["elements"] == SMALL.elements and not row["skipped"]
        assert list(row["updates"]) == list(variants())
        for name, entry in row["updates"].items():
            assert 0 < entry["q1_ms"] <= entry["median_ms"] <= entry["q3_ms"]
            assert entry["rounds"] >= 9 and entry["calls_per_round"] >= 1
            for other in ("copy", "torch_fused"):
                ratio = entry[f"x_{other}"]
                assert 0 < ratio["low"] <= ratio["median"] <= ratio["high"]
                assert name != other or set(ratio.values()) == {1.0}
            assert ("errors" in entry) == (name != "copy")


def test_chosen_variants(run):
    found = run("--optimizer adamw --dtype float32 --variants norms fused")
    (row,) = found["rows"]
    assert list(row["updates"]) == ["fused", "torch_fused", "norms", "copy"]
    assert (row["optimizer"], row["bytes"]) == ("adamw", 32 * SMALL.elements)


def test_wrong_result_is_recorded_and_the_others_are_measured(run, monkeypatch, capsys):
    monkeypatch.setattr("bench.optimizer.variants.raw_update_many", lambda *arguments: None)
    message = "error: fused is wrong on small, SGD with momentum, float32: in"
    with pytest.raises(SystemExit, match=message):
        run("--optimizer sgd --dtype float32 --variants fused norms")
    (row,) = json.loads(run.path.read_text())["rows"]
    assert list(row["updates"]) == ["torch_fused", "norms", "copy"]
    assert row["skipped"]["fused"].startswith("wrong, in epsilons: weight ")
    assert "fused left out of small" in capsys.readouterr().out


def test_a_pytorch_without_the_baseline(run, monkeypatch):
    def refuse(kind, parameters, implementation, **numbers):
        raise RuntimeError("`fused=True` requires another device")

    monkeypatch.setattr("bench.optimizer.variants.make_optimizer", refuse)
    (row,) = run("--optimizer sgd --dtype float32 --variants fused")["rows"]
    assert list(row["updates"]) == ["fused", "copy"]
    assert row["updates"]["fused"]["x_torch_fused"] is None
    assert row["skipped"]["torch_fused"] == "`fused=True` requires another device"


# --- on a GPU


def test_on_cuda(monkeypatch, capsys):
    """What the timer of CUDA graphs gets, and what becomes of its times, which are made up here."""
    devices, runs, before = [], [], []
    right = variants()["fused"]

    def make(tensors, kind, numbers):
        update = right.make(tensors, kind, numbers)
        number = len(runs)
        runs.append(0)

        def run():
            runs[number] += 1
            update.run()

        return Update(run, update.results)

    def timed(calls, seconds):
        before.extend(runs)
        for sets in calls.values():
            for call in sets:
                call.run(call.prepare())
        kernels, host = (dict.fromkeys(calls, Timing.of([t, t, t], 1)) for t in (2e-3, 1e-5))
        return kernels, host, dict.fromkeys(calls, "graph")

    def on_the_cpu(workload, dtype, out_dtype, device):
        devices.append(device)
        return make_tensors(workload, dtype, out_dtype, "cpu")

    monkeypatch.setattr(cuda_timing, "sets_needed", lambda nbytes: 3)
    monkeypatch.setattr(cuda_timing, "measure", timed)
    monkeypatch.setattr("bench.optimizer.measure.make_tensors", on_the_cpu)
    chosen = [dataclasses.replace(right, make=make)]
    row = measure(SMALL, "sgd", "float32", chosen, "cuda", 1, lambda part: None)
    assert devices == ["cuda"]
    # the check's; then each set's own, which has made its states when a graph is captured
    assert (before, runs) == ([2, 1, 1, 1], [2, 2, 2, 2])
    (found,) = record.as_json([row], chosen)["rows"]
    entry = found["updates"]["fused"]
    assert (entry["median_ms"], entry["host"]["median_ms"], entry["method"]) == (2, 0.01, "graph")
    report.print_row(row)
    fused, spread = (line.split() for line in capsys.readouterr().out.splitlines()[-2:])
    assert fused[:3] == ["fused", "2.00", "ms"] and fused[-2:] == ["10.0", "µs"]
    assert spread == ["±0%", "±0%"]
