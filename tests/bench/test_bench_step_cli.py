"""``python -m bench step``: its statistics, and its command line. Never its timings."""

import dataclasses
import json

import pytest
import torch
import torch_ws
from benchmark import run_main, run_program
from torch import nn

from bench.common.interval import overhead, ratio
from bench.common.timing import Timing
from bench.step import checks as step_checks
from bench.step.variants import variants

SMALL = "step --models tiny --size 8 --batch 1 --micro-batches 1 2 --threads 1 --seconds 0.01"


# --- the statistics


@pytest.mark.parametrize(
    ("rounds", "below"),
    # the sign test's table, two-sided 5 %: how many values lie below the interval
    [(5, 0), (6, 0), (8, 0), (9, 1), (10, 1), (12, 2), (20, 5), (25, 7), (50, 17), (100, 39)],
)
def test_interval_of_the_median(rounds, below):
    plain = Timing.of([2.0] * rounds, 1)
    times = Timing.of([2.0 + 0.02 * k for k in reversed(range(rounds))], 1)  # k percent
    found = overhead(times, plain)
    assert found.median == pytest.approx((rounds - 1) / 2)
    assert found.low == pytest.approx(below)
    assert found.high == pytest.approx(rounds - 1 - below)
    assert (found.q1, found.q3) == pytest.approx(((rounds - 1) / 4, 3 * (rounds - 1) / 4))


def test_comparisons_are_taken_within_rounds():
    drift = [1, 2, 4, 8, 16, 8, 4, 2, 1]
    times, plain = Timing.of([1.03 * t for t in drift], 1), Timing.of(drift, 1)
    assert dataclasses.astuple(overhead(times, plain)) == pytest.approx(5 * (3.0,))
    assert dataclasses.astuple(ratio(times, plain)) == pytest.approx(5 * (1.03,))


# --- the command line


@pytest.mark.slow
def test_command_line(tmp_path):
    pytest.importorskip("matplotlib")
    printed, found, picture = run_program(SMALL, tmp_path)
    assert "tiny U-Net, batch 1 × 2" in printed and "overhead" in printed
    assert (found["settings"]["optimizer"], found["settings"]["clip"]) == ("sgd", "none")
    assert found["settings"]["device"] == "cpu" and found["settings"]["size"] == 8
    assert list(found["variants"]) == list(variants())
    assert found["variants"]["layer"]["formula"] == "paper"
    one, many = found["rows"]
    assert (one["network"], one["batch"], one["accumulate"], one["size"]) == ("tiny", 1, 1, 8)
    assert list(one["variants"]) == [name for name in variants() if name != "held"]
    assert (many["accumulate"], list(many["variants"])) == (
        2,
        ["plain", "control", "plain_default", "plain_foreach", "held", "fused"],
    )
    for row in (one, many):
        for name, entry in row["variants"].items():
            assert 0 < entry["q1_ms"] <= entry["median_ms"] <= entry["q3_ms"]
            images = row["batch"] * row["accumulate"]
            assert entry["images_per_second"] == pytest.approx(images / entry["median_ms"] * 1e3)
            assert entry["rounds"] >= 9 and entry["steps_per_round"] >= 1
            assert entry["peak_bytes"] > 2 * 6716 * 4  # parameters and momentum
            assert entry["gradient_error"]["float32"] <= found["tolerance"]["float32"]
            assert ("overhead_percent" in entry) == (name != "plain")
            if name != "plain":
                overhead = entry["overhead_percent"]
                assert overhead["low"] <= overhead["median"] <= overhead["high"]
                assert overhead["q1"] <= overhead["median"] <= overhead["q3"]

    from matplotlib.image import imread

    pixels = torch.from_numpy(imread(picture)[..., :3]).flatten(0, 1)
    drawn = (pixels != pixels[0]).any(1)
    assert pixels[0].tolist() == [1, 1, 1] and 0.01 < drawn.float().mean() < 0.5
    vermilion = torch.tensor([0xD5, 0x5E, 0x00]) / 255  # the marker of grouped
    assert ((pixels - vermilion).abs().amax(1) < 0.01).sum() > 20


def test_chosen_variants(tmp_path, monkeypatch, capsys):
    path = tmp_path / "found.json"
    arguments = f"{SMALL} --batch 1 3 --variants layer control --autocast --json {path}"
    arguments += " --optimizer adamw --clip agc"
    run_main(arguments, monkeypatch)
    found = json.loads(path.read_text())
    assert [(row["batch"], row["accumulate"]) for row in found["rows"]] == [(1, 1), (3, 1)]
    assert list(found["rows"][0]["variants"]) == ["plain", "control", "layer"]
    assert list(found["rows"][0]["variants"]["layer"]["gradient_error"]) == ["float32", "bfloat16"]
    assert found["settings"]["autocast"] is True
    assert (found["settings"]["optimizer"], found["settings"]["clip"]) == ("adamw", "agc")
    assert "AdamW, clipped by unit to 0.01, bfloat16 autocast" in " ".join(
        capsys.readouterr().out.split()
    )


def test_wrong_gradient_is_recorded_and_the_others_are_measured(tmp_path, monkeypatch, capsys):
    class WithoutGradientOfStd(nn.Conv2d):
        def forward(self, x):
            std, mean = torch.std_mean(self.weight, (1, 2, 3), correction=0, keepdim=True)
            return self._conv_forward(x, (self.weight - mean) / std.detach(), self.bias)

    def wrong(model, skip):
        for conv in model.modules():
            if isinstance(conv, nn.Conv2d) and conv is not model.head:
                conv.__class__ = WithoutGradientOfStd

    monkeypatch.setattr(torch_ws, "convert", wrong)
    path = tmp_path / "found.json"
    arguments = f"{SMALL} --variants formula layer held --json {path}"
    message = "error: layer is wrong on tiny U-Net, batch 1: gradient error"
    with pytest.raises(SystemExit, match=message) as stopped:
        run_main(arguments, monkeypatch)
    assert len(str(stopped.value).splitlines()) == 2  # the other is held
    found = json.loads(path.read_text())
    assert found["complete"]
    one, many = found["rows"]
    assert list(one["variants"]) == ["plain", "formula"] and list(many["variants"]) == ["plain"]
    assert one["skipped"]["layer"].startswith("wrong, gradient error")
    assert "layer left out of tiny U-Net, batch 1: wrong" in capsys.readouterr().out


def test_wrong_plain_step_stops_the_run(monkeypatch):
    monkeypatch.setattr(step_checks, "TOLERANCE", {torch.float32: 0.0})
    with pytest.raises(SystemExit, match="error: plain is wrong on tiny U-Net, batch 1: gradient"):
        run_main(SMALL, monkeypatch)


def test_wrong_peer_is_left_out(tmp_path, monkeypatch, capsys):
    path = tmp_path / "found.json"
    monkeypatch.setattr(torch.nn.functional, "batch_norm", lambda rows, *args, **options: 1 * rows)
    arguments = f"{SMALL} --variants batch_norm layer --json {path}"
    run_main(arguments, monkeypatch)
    (row,) = json.loads(path.read_text())["rows"]
    assert list(row["variants"]) == ["plain", "layer"]
    assert row["skipped"]["batch_norm"].startswith("wrong, gradient error")
    assert "batch_norm left out of tiny U-Net, batch 1: wrong" in capsys.readouterr().out
