"""``make gpu`` on a machine without a GPU: made-up stages, and what holds of the real ones."""

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch_ws

from bench.__main__ import main as bench
from gpu import __main__ as command
from gpu import entries, stages
from gpu.stages import ROOT, Result, Stage


def script(text):
    return f"{{python}} -c {shlex.quote(text)}"


def run(folder, text, seconds=60, needs=(), left=60):
    stage = Stage("made-up", "both", seconds, script(text), needs)
    return stages.run(stage, folder, "9.0", time.monotonic() + left)


@pytest.mark.parametrize(
    ("text", "status", "detail"),
    [
        ("print('fine')", "passed", ""),
        ("raise SystemExit(3)", "failed", "exit status 3"),
        ("raise OSError('torn')", "failed", "exit status 1; OSError: torn"),
        # as the stages' programs write
        ("print('cuda_reason         None')", "passed", ""),
        ("print('cuda_reason  built with CUDA 12.8'); exit(1)", "failed", "built with CUDA 12.8"),
        ("print('1 passed in 1s\\n12 passed in 41.20s')", "passed", "12 passed in 41.20s"),
        ("print('= 1 failed in 6.00s ='); exit(1)", "failed", "1 failed in 6.00s"),
        ("print('python -m bench: error: x'); exit(1)", "failed", "python -m bench: error: x"),
        (
            "print('9 weights, worst 0.1\\n===== ERROR SUMMARY: 0 errors')",
            "passed",
            "0 errors; 9 weights, worst 0.1",
        ),
        ("print('== RACECHECK SUMMARY: 2 hazards'); exit(9)", "failed", "2 hazards"),
        ("print('= Error: Device not supported.'); exit(1)", "skipped", "Device not supported"),
    ],
)
def test_outcome_of_a_stage(tmp_path, text, status, detail):
    (tmp_path / "log.txt").write_text("===== an earlier one\n7 passed in 1.00s\n")
    result = run(tmp_path, text)
    assert (result.status, result.detail) == (status, detail)
    log = (tmp_path / "log.txt").read_text()
    assert log.startswith("===== an earlier one\n") and "\n===== made-up\n$ " in log


def test_time_limit_ends_a_stage_and_what_it_started(tmp_path):
    text = f"""
import pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path({str(tmp_path / "pid")!r}).write_text(str(child.pid))
print("3 passed in 1.00s", flush=True)
time.sleep(600)
"""
    result = run(tmp_path, text, seconds=2)
    assert (result.status, result.detail) == ("timed out", "stopped after 2 s; 3 passed in 1.00s")
    child = Path("/proc", (tmp_path / "pid").read_text(), "stat")

    def gone():
        try:
            return child.read_text().split()[2] == "Z"  # dead, if not yet reaped
        except FileNotFoundError:
            return True

    patience = time.monotonic() + 60  # a busy machine carries out a kill when it gets to it
    while not gone() and time.monotonic() < patience:
        time.sleep(0.05)
    assert gone()


def test_what_a_stage_finds(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", "/some/cuda")
    run(tmp_path, "import os; print(os.environ['PATH'], os.environ['PYTHONPATH'])")
    log = (tmp_path / "log.txt").read_text()
    assert ":/some/cuda/bin " in log and f" {ROOT / 'python'}:" in log


def test_stages_that_cannot_run_are_skipped(tmp_path):
    missing = run(tmp_path, "", needs=("no-such-tool", "json", "env"))  # a module, a program
    assert missing == Result("made-up", "skipped", detail="no-such-tool: not found")
    assert run(tmp_path, "", left=0) == Result("made-up", "skipped", detail="no time left")
    assert not (tmp_path / "log.txt").exists()


@pytest.mark.parametrize(
    ("build", "tests", "statuses", "code"),
    [
        ("", "", ["passed", "passed", "skipped"], 0),
        ("", "exit(1)", ["passed", "failed", "skipped"], 1),
        ("exit(1)", "", ["failed", "skipped", "skipped"], 1),
    ],
)
def test_command(tmp_path, monkeypatch, capsys, build, tests, statuses, code):
    made_up = [
        Stage("build", "both", 60, script(build)),
        Stage("tests", "first", 60, script(tests)),
        Stage("memcheck", "second", 60, script(""), ("no-such-tool",)),
    ]
    monkeypatch.setattr(stages, "STAGES", made_up)
    monkeypatch.setattr(command, "describe", lambda: {"gpu": "a GPU", "architecture": "9.0"})
    out = tmp_path / "new" / "folder"

    def ran(*options):
        returned = command.main(["--out", str(out), *options])
        found = json.loads((out / "summary.json").read_text())["stages"]
        return returned, [stage["name"] for stage in found], [stage["status"] for stage in found]

    assert ran() == (code, ["build", "tests", "memcheck"], statuses)
    assert capsys.readouterr().out.endswith(f"\n{(out / 'summary.txt').read_text()}")
    assert ran("--half", "first") == (code, ["build", "tests"], statuses[:2])
    assert ran("--half", "second")[1:] == (["build", "memcheck"], [statuses[0], "skipped"])
    assert ran("--only", "tests")[1] == ["tests"]
    with pytest.raises(SystemExit):
        command.main(["--only", "tests", "everything"])
    assert "invalid choice: 'everything'" in capsys.readouterr().err


def test_without_a_gpu_nothing_is_done(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        command.main(["--out", str(tmp_path / "out")])
    assert "python3 -m gpu: error: this PyTorch, " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("stage", [s for s in stages.STAGES if " bench " in s.command])
def test_benchmark_understands_its_options(stage, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # refused after the options
    words = shlex.split(stage.command.format(python="python", out=tmp_path))
    with pytest.raises(SystemExit):
        bench(words[words.index("bench") + 1 :])
    assert "argument --device: cuda, but this PyTorch sees no CUDA" in capsys.readouterr().err
    assert f"{tmp_path}/{stage.name}.json" in words


def test_shapes_have_every_row_length_small_and_large():
    shapes = [tuple(map(int, text.split("x"))) for text in stages.SHAPES.split()]
    for cols in stages.ROW_LENGTHS:  # 4 bytes an element
        large = sorted(4 * rows * n for rows, n in shapes if n == cols and 4 * rows * n >= 4e6)
        assert len(large) == 2 and large[0] < 5e6 and 16e6 < large[1] < 20e6
    assert sum(4 * rows * cols < 4e6 for rows, cols in shapes) == len(stages.SMALL.split())


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # to wake others for small references takes longer
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.skipif(not torch_ws.info()["cuda_build"], reason="built without CUDA: no launch table")
def test_every_entry_computes_the_right_things(monkeypatch, capsys):
    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor: tensor)  # by the CPU's kernels
    assert entries.main() == 0
    assert "the worst error 0." in capsys.readouterr().out
    right = torch_ws.standardize
    monkeypatch.setattr(entries, "standardize", lambda *ts, **kw: right(*ts, **kw) * 1.1)
    assert entries.one(torch.randn(4, 9), torch.float32) > 1


def test_gpu_tests_can_be_collected_on_a_bare_machine():
    """Without a GPU, and without what a GPU machine may lack: they fail on first contact else."""
    assert len(stages.NEEDS_GPU) >= 7  # no test file of today's is overlooked
    text = f"""
import sys
for name in ("hypothesis", "rich", "matplotlib", "expecttest"):
    sys.modules[name] = None
import pytest
sys.exit(pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", *{stages.NEEDS_GPU!r}]))
"""
    variables = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=ROOT, capture_output=True, text=True, env=variables
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for path in stages.NEEDS_GPU:
        assert f"{path}: " in done.stdout  # and their number
