"""What a run of the benchmark leaves behind: without rich, and when it is stopped."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch_ws

from bench import machine, options, standardize
from bench.providers import COPY, ELEMENTWISE

ROOT = Path(__file__).parents[2]


def test_runs_without_rich_and_matplotlib(tmp_path):
    script = """
import sys
sys.modules["rich"] = sys.modules["matplotlib"] = None
from bench.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
    arguments = ["--shapes", "8x8", "16x9", "--providers", "layer_norm", "--seconds", "0.01"]
    path = tmp_path / "found.json"
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments, "--json", str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    assert "forward, float32: torch_ws, and its speed-up over each peer\n" in done.stdout
    assert "\nworkload  torch_ws  GB/s  x copy" in done.stdout
    lines = done.stdout.splitlines()
    assert all(len(line) <= 80 or str(tmp_path) in line for line in lines)
    found = json.loads(path.read_text())
    assert found["complete"] and len(found["rows"]) == 4


def test_a_stopped_run_leaves_the_rows_it_has(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "keep_freed_memory", lambda: False)
    right, path = torch_ws.standardize, tmp_path / "found.json"

    def wrong_on_the_second(weight, **options):
        return right(weight, **options) * (1.01 if weight.shape == (16, 9) else 1)

    monkeypatch.setattr(torch_ws, "standardize", wrong_on_the_second)
    arguments = f"--shapes 8x8 16x9 --providers layer_norm --seconds 0.01 --json {path}"
    assert standardize.main(arguments.split()) == 1
    found = json.loads(path.read_text())
    assert not found["complete"]
    assert [row["workload"] for row in found["rows"]] == ["8x8", "8x8"]
    assert [p.name for p in tmp_path.iterdir()] == ["found.json"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--device cpu", {COPY}),
        ("--device cuda", {COPY, ELEMENTWISE}),
        ("--device cpu --providers layer_norm", {COPY}),
        ("--device cuda --providers layer_norm", {COPY, ELEMENTWISE}),
        ("--device cpu --providers elementwise", {COPY, ELEMENTWISE}),
    ],
)
def test_copies_that_are_timed(arguments, expected):
    args = options.make_parser().parse_args(arguments.split())
    names = {provider.name for provider in options.choose_providers(args)}
    assert names & {COPY, ELEMENTWISE} == expected
