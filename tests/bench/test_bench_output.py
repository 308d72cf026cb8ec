"""What a run of the benchmark leaves behind: in a log, on a terminal, and when it is stopped."""

import json
import sys
from pathlib import Path

import pytest
import torch_ws
from benchmark import run_main
from other_process import run

from bench.common.terminal import show_progress
from bench.weights import options
from bench.weights.providers import COPY, ELEMENTWISE

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_runs_without_rich_and_matplotlib(tmp_path):
    script = """
import sys
sys.modules["rich"] = sys.modules["matplotlib"] = None
root, *arguments = sys.argv[1:]
sys.path.insert(0, root)
from bench.__main__ import main
main(arguments)
"""
    arguments = ["--shapes", "8x8", "16x9", "--providers", "layer_norm", "--seconds", "0.01"]
    path = tmp_path / "found.json"
    lines = run(script, ROOT, *arguments, "--json", path)
    assert "forward, float32: torch_ws, and its speed-up over each peer" in lines
    assert any(line.startswith("workload  torch_ws  GB/s  x copy") for line in lines)
    found = json.loads(path.read_text())
    assert found["complete"] and len(found["rows"]) == 4


def test_progress_is_the_last_line_of_a_terminal(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "10")
    show_progress("checking")
    assert capsys.readouterr() == ("", "")  # nothing in a log
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    show_progress("checking resnet50")
    show_progress()
    back = "\r\033[K"  # to the line's beginning, and clears it
    assert capsys.readouterr() == ("", f"{back}checking {back}")


def test_a_stopped_run_leaves_the_rows_it_has(tmp_path, monkeypatch):
    right, path = torch_ws.standardize, tmp_path / "found.json"

    def fails_on_the_second(weight, **options):
        if weight.shape == (16, 9):
            raise RuntimeError("torn")
        return right(weight, **options)

    monkeypatch.setattr(torch_ws, "standardize", fails_on_the_second)
    arguments = f"--shapes 8x8 16x9 --providers layer_norm --seconds 0.01 --json {path}"
    with pytest.raises(RuntimeError, match="torn"):
        run_main(arguments, monkeypatch)
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


def test_common_imports_from_no_command():
    files = (ROOT / "bench" / "common").glob("*.py")
    texts = {path.name: path.read_text(encoding="utf-8") for path in files}
    assert texts and not [name for name, text in texts.items() if "from .." in text]
