"""The benchmark: its checks, what it times, and its command line. Never its timings."""

import json
import math

import pytest
import torch
import torch_ws
from benchmark import run_main, run_program

from bench.common import timing
from bench.weights import providers
from bench.weights.calls import make_call
from bench.weights.checks import check, error, run_counting_saved
from bench.weights.measure import DTYPES
from bench.weights.workloads import make_tensors, moved_bytes, weight_workload


def provider(name):
    return providers.ours() if name == providers.OURS else providers.peers()[name]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float32:bfloat16"])
@pytest.mark.parametrize("name", ["torch_ws", "formula", "batch_norm", "layer_norm"])
def test_provider_computes_its_formula(name, dtype):
    tensors = make_tensors(weight_workload("16x8x3x3"), *DTYPES[dtype], "cpu")
    function = provider(name).make(DTYPES[dtype][1])
    assert [y.dtype for y in function(tensors.weights)] == [DTYPES[dtype][1]]
    assert check(function, provider(name).formula, tensors).passed


@pytest.mark.parametrize("name", ["torch_ws", "formula", "batch_norm", "layer_norm"])
def test_check_refuses_another_formula(name):
    tensors = make_tensors(weight_workload("16x8x3x3"), torch.float32, torch.float32, "cpu")
    function = provider(name).make(torch.float32)
    wrong = {"paper", "qiao", "timm", "nnabla"} - {provider(name).formula}
    assert not any(check(function, formula, tensors).passed for formula in wrong)


def test_check_looks_at_the_gradient():
    tensors = make_tensors(weight_workload("16x8"), torch.float32, torch.float32, "cpu")

    def without_gradient_of_the_std(weights):
        (w,) = weights
        std = w.std(dim=1, correction=0, keepdim=True).detach()
        return [(w - w.mean(1, keepdim=True)) / (std + 1e-5)]

    found = check(without_gradient_of_the_std, "paper", tensors)
    assert found.error_forward <= found.tolerance < found.error_gradient
    assert not found.passed


def test_check_refuses_nan():
    tensors = make_tensors(weight_workload("16x8"), torch.float32, torch.float32, "cpu")
    assert not check(lambda weights: [w * math.nan for w in weights], "paper", tensors).passed
    assert math.isnan(error(torch.tensor([1.0, math.nan]), torch.tensor([1.0, 1.0])))


@pytest.mark.slow
def test_compile_computes_its_formula():
    tensors = make_tensors(weight_workload("8x8"), torch.float32, torch.float32, "cpu")
    try:
        function = providers.peers()["compile"].make(torch.float32)
        function(tensors.weights)
    except Exception as reason:  # no compiler here, which the benchmark reports as skipped
        pytest.skip(str(reason).partition("\n")[0])
    assert check(function, "qiao", tensors).passed


def test_saved_bytes():
    w = torch.randn(4, 6, requires_grad=True)
    cases = {
        "the weight alone": (lambda ws: [ws[0].sin()], 0),
        "a view of it": (lambda ws: [ws[0].view(-1)[3:].sin()], 0),
        "its own result": (lambda ws: [ws[0].exp()], w.nbytes),
        "one result, saved by two nodes": (lambda ws: [(e := ws[0].exp()) * e], w.nbytes),
        "two results": (lambda ws: [ws[0].exp().exp()], 2 * w.nbytes),
    }
    assert {name: run_counting_saved(f, [w])[0] for name, (f, _) in cases.items()} == {
        name: expected for name, (_, expected) in cases.items()
    }


def test_torch_ws_saves_the_weight_alone():
    tensors = make_tensors(weight_workload("8x8"), torch.float32, torch.float32, "cpu")
    assert check(providers.ours().make(torch.float32), "paper", tensors).saved_bytes == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float32:bfloat16"])
@pytest.mark.parametrize("direction", ["forward", "backward", "both"])
def test_copy_moves_the_bytes_of_the_model(dtype, direction):
    weight, out = (d.itemsize for d in DTYPES[dtype])
    per_element = {
        "forward": weight + out,
        "backward": 2 * weight + out,
        "both": 3 * weight + 2 * out,
    }
    workload = weight_workload("16x8x3x3")
    moved = moved_bytes(direction, workload.elements, *DTYPES[dtype])
    assert moved == per_element[direction] * 16 * 8 * 9
    tensors = make_tensors(workload, *DTYPES[dtype], "cpu")
    copies = make_call(provider("copy"), None, tensors, direction).run(None)
    assert 2 * sum(copy.nbytes for copy in copies) == moved  # every byte read and written


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float32:bfloat16"])
def test_elementwise_moves_the_tensors_of_the_direction(dtype):
    tensors = make_tensors(weight_workload("16x8x3x3"), *DTYPES[dtype], "cpu")
    (w,), (g,) = tensors.weights, tensors.grads

    def run(direction):
        return make_call(provider("elementwise"), None, tensors, direction).run(None)

    assert torch.equal(run("forward")[0].abs(), w.to(g.dtype).abs())
    assert torch.equal(run("backward")[0], w + g)
    assert [t.dtype for t in run("both")] == [g.dtype, w.dtype]


@pytest.mark.parametrize("direction", ["no_grad", "forward", "backward", "both"])
def test_call_computes_its_direction(direction):
    tensors = make_tensors(weight_workload("16x8"), torch.float32, torch.float32, "cpu")
    function = provider("layer_norm").make(torch.float32)
    call = make_call(provider("layer_norm"), function, tensors, direction)
    (found,) = call.run(call.prepare())
    (output,) = function(tensors.weights)
    (gradient,) = torch.autograd.grad(output, tensors.weights, tensors.grads)
    expected = output if direction in ("no_grad", "forward") else gradient
    torch.testing.assert_close(found, expected.detach() if direction == "no_grad" else expected)
    assert found.requires_grad == (direction == "forward")


def test_rounds_sample_everyone_in_changing_order():
    taken = []
    samplers = {name: lambda name=name: taken.append(name) or 1.0 for name in "abc"}
    times = timing.interleave(samplers, seconds=0)
    assert {len(samples) for samples in times.values()} == {timing.MIN_ROUNDS}
    rounds = [tuple(taken[i : i + 3]) for i in range(0, len(taken), 3)]
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert len(set(rounds)) > 1


def test_timing_quartiles():
    found = timing.Timing.of([5.0, 1.0, 4.0, 2.0, 3.0], batch=7)
    assert found == timing.Timing(median=3.0, q1=2.0, q3=4.0, samples=5, batch=7)


# --- the command line


@pytest.mark.slow
def test_command_line(tmp_path):
    """The whole program on the smallest weight, and what it leaves in its files."""
    arguments = "--shapes 8x8 --providers layer_norm --seconds 0.01 --threads 1"
    printed, found, picture = run_program(arguments, tmp_path)
    assert "speed-up over each peer" in printed and "8x8" in printed
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert found["settings"]["threads"] == 1
    assert found["machine"]["isa"] == torch_ws.cpu_capability()
    assert found["versions"]["torch"] == torch.__version__
    assert list(found["providers"]) == ["torch_ws", "layer_norm", "copy"]
    assert [row["direction"] for row in found["rows"]] == ["forward", "both"]
    for row in found["rows"]:
        assert (row["workload"], row["dtype"], row["elements"]) == ("8x8", "float32", 64)
        assert row["bytes"] == 64 * {"forward": 8, "both": 20}[row["direction"]]
        times = {name: entry["median_us"] for name, entry in row["providers"].items()}
        assert list(times) == ["torch_ws", "layer_norm", "copy"]
        for name, entry in row["providers"].items():
            assert 0 < entry["q1_us"] <= entry["median_us"] <= entry["q3_us"]
            assert entry["samples"] >= timing.MIN_ROUNDS and entry["calls_per_sample"] >= 1
            assert entry["x_copy"] == pytest.approx(times[name] / times["copy"])
            assert entry["torch_ws_is_faster"] == pytest.approx(times[name] / times["torch_ws"])
            gigabytes = row["bytes"] / (times[name] * 1e-6) / 1e9
            assert entry["gigabytes_per_second"] == pytest.approx(gigabytes)
        assert row["providers"]["torch_ws"]["saved_bytes"] == 0
        assert row["providers"]["layer_norm"]["saved_bytes"] == 64  # mean and rstd of 8 rows
        assert 0 < row["providers"]["torch_ws"]["error_gradient"] < 1e-6


def test_instruction_sets(tmp_path, monkeypatch, capsys):
    before = torch_ws.cpu_capability()
    path = tmp_path / "found.json"
    arguments = f"--shapes 8x8 --providers layer_norm --isa default --seconds 0.01 --json {path}"
    run_main(arguments, monkeypatch)
    assert torch_ws.cpu_capability() == before
    assert "instruction sets" in capsys.readouterr().out
    row = json.loads(path.read_text())["rows"][0]
    assert list(row["providers"]) == ["torch_ws", "torch_ws default", "layer_norm", "copy"]


def test_overhead(tmp_path, monkeypatch):
    path = tmp_path / "found.json"
    arguments = f"--only overhead --providers batch_norm --seconds 0.01 --json {path}"
    run_main(arguments, monkeypatch)
    rows = json.loads(path.read_text())["rows"]
    assert [row["direction"] for row in rows] == ["no_grad", "forward", "both"]
    assert {row["workload"] for row in rows} == {"8x8"}


def test_wrong_result_is_recorded_and_the_others_are_measured(tmp_path, monkeypatch, capsys):
    right = torch_ws.standardize

    def wrong_on_the_first(weight, **options):
        return right(weight, **options) * (1.01 if weight.shape == (8, 8) else 1)

    monkeypatch.setattr(torch_ws, "standardize", wrong_on_the_first)
    path = tmp_path / "found.json"
    arguments = f"--shapes 8x8 16x9 --providers layer_norm --seconds 0.01 --json {path}"
    arguments += f" --plot {tmp_path / 'found.png'}"
    message = "^python -m bench: error: torch_ws is wrong on 8x8 in float32: error 1.0e-02 forward"
    with pytest.raises(SystemExit, match=message) as stopped:
        run_main(arguments, monkeypatch)
    assert len(str(stopped.value).splitlines()) == 1  # said once, not for every direction
    found = json.loads(path.read_text())
    assert found["complete"]
    for row in found["rows"]:
        is_wrong = row["workload"] == "8x8"
        timed = [] if is_wrong else ["torch_ws"]
        assert list(row["providers"]) == [*timed, "layer_norm", "copy"]
        assert row["skipped"].get("torch_ws", "").startswith("wrong, error 1.0e-02") == is_wrong
    lines = capsys.readouterr().out.splitlines()
    (line,) = (line for line in lines if line.startswith("torch_ws left out of 8x8"))
    assert "wrong, error 1.0e-02 forward" in line
    cells = [line.split()[1] for line in lines if line.startswith("8x8 ")]
    assert cells == 4 * ["wrong"]  # torch_ws's column of every table, two for each direction
    assert (tmp_path / "found.png").exists()


def test_wrong_instruction_set_is_recorded(monkeypatch, capsys):
    right = torch_ws.standardize

    def wrong_when_lowered(weight, **options):
        lowered = torch_ws.cpu_capability() == "default"
        return right(weight, **options) * (1.01 if lowered else 1)

    monkeypatch.setattr(torch_ws, "standardize", wrong_when_lowered)
    if torch_ws.cpu_capability() == "default":
        pytest.skip("nothing to lower here")
    with pytest.raises(SystemExit, match="error: torch_ws default is wrong on 8x8 in float32"):
        run_main("--shapes 8x8 --providers layer_norm --isa default --seconds 0.01", monkeypatch)
    assert "wrong  -" in capsys.readouterr().out  # in the table of instruction sets


def test_wrong_peer_is_left_out(tmp_path, monkeypatch, capsys):
    path = tmp_path / "found.json"
    monkeypatch.setattr(torch.nn.functional, "layer_norm", lambda w, *args, **options: w * 1.0)
    arguments = f"--shapes 8x8 --providers layer_norm --seconds 0.01 --json {path}"
    run_main(arguments, monkeypatch)
    found = json.loads(path.read_text())
    for row in found["rows"]:
        assert list(row["providers"]) == ["torch_ws", "copy"]
        assert row["skipped"]["layer_norm"].startswith("wrong, error")
    assert "left out of 8x8: wrong" in capsys.readouterr().out
