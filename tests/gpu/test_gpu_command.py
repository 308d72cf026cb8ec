"""``make gpu`` on a machine without a GPU: made-up stages, and what holds of the real ones."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bench.__main__ import main as bench
from gpu import __main__ as command
from gpu import stages
from gpu.stages import ROOT, Result, Stage


def script(text):
    return f"{{python}} -c {shlex.quote(text)}"


def run(folder, text, seconds=60, needs=(), limit=60):
    stage = Stage("made-up", "both", seconds, script(text), needs)
    return stages.run(stage, folder, "9.0", limit)


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
        (
            "print('==ERROR== ERR_NVGPUCTRPERM - no permission. See'); exit(1)",
            "skipped",
            "ERR_NVGPUCTRPERM - no permission",
        ),
        ("print('libraries: brought along')", "passed", "libraries: brought along"),
        ("print('WRONG: 3x9\\nWRONG: 3x8'); exit(1)", "failed", "WRONG: 3x8"),
    ],
)
def test_outcome_of_a_stage(tmp_path, text, status, detail):
    (tmp_path / "log.txt").write_text("===== an earlier one\n7 passed in 1.00s\n")
    result = run(tmp_path, text)
    assert (result.status, result.detail) == (status, detail)
    log = (tmp_path / "log.txt").read_text()
    assert log.startswith("===== an earlier one\n") and "\n===== made-up\n$ " in log


def test_time_limit_ends_a_stage_and_what_it_started(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "GRACE_SECONDS", 1)
    text = f"""
import pathlib, signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)  # as of a process that waits for a GPU
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path({str(tmp_path / "pid")!r}).write_text(str(child.pid))
print("3 passed in 1.00s", flush=True)
time.sleep(600)
"""
    result = run(tmp_path, text, limit=5, seconds=5)
    assert result.status == "timed out"
    assert re.fullmatch(r"stopped after \d s; 3 passed in 1.00s", result.detail)
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


@pytest.fixture
def in_the_background():
    """As a shell starts jobs with &: interrupts are ignored, also by their children."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("in_the_background")
def test_interrupted_stage_says_what_it_has_found(tmp_path):
    text = f"""
import pathlib, time
pathlib.Path({str(tmp_path / "made-up.json.part")!r}).touch()  # as while the benchmark writes
try:
    time.sleep(600)
except KeyboardInterrupt:
    print("1 failed, 3 passed in 2.00s")
"""
    result = run(tmp_path, text, limit=5, seconds=5)
    assert result.status == "timed out"
    assert re.fullmatch(r"stopped after \d s; 1 failed, 3 passed in 2.00s", result.detail)
    assert [path.name for path in tmp_path.iterdir()] == ["log.txt"]


def test_what_a_stage_finds(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", "/some/cuda")
    run(tmp_path, "import os; print(os.environ['PATH'], os.environ['PYTHONPATH'])")
    log = (tmp_path / "log.txt").read_text()
    assert ":/some/cuda/bin " in log and f" {ROOT / 'python'}:" in log


def test_stages_that_cannot_run_are_skipped(tmp_path):
    missing = run(tmp_path, "", needs=("no-such-tool", "json", "env"))  # a module, a program
    assert missing == Result("made-up", "skipped", detail="no-such-tool: not found")
    for limit in (0, stages.LEAST_SECONDS - 1):  # too little to import PyTorch in
        assert run(tmp_path, "", limit=limit) == Result("made-up", "skipped", detail="no time left")
    assert not (tmp_path / "log.txt").exists()
    assert run(tmp_path, "", seconds=5, limit=8).status == "passed"  # all that it may have


def test_long_output_is_cut_in_its_middle(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "LOG_BYTES", 100)
    text = "print('first', 'x' * 1000, '\\n1 passed in 1.00s\\n', 'y' * 1000, 'last')"
    assert run(tmp_path, text).detail == "1 passed in 1.00s"  # of all of it
    run(tmp_path, "print('after')")
    log = (tmp_path / "log.txt").read_text()
    head, tail = re.split(r"\n\.\.\. 19\d\d left out \.\.\.\n", log)
    assert head.endswith("\nfirst " + "x" * 44) and tail.startswith("y" * 44 + " last\n")
    assert tail.endswith("\nafter\n")


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


def files_only(stage):
    """The stage, but a program that does nothing beyond writing the files that its own would."""
    files = [word for word in shlex.split(stage.command) if word.startswith("{out}/")]
    writes = "import pathlib, sys; [pathlib.Path(p).touch() for p in sys.argv[1:]]"
    return stage._replace(command=f"{script(writes)} {' '.join(files)}", needs=())


@pytest.mark.parametrize(
    ("half", "expected"),
    [
        ("first", {"weights.json", "weights.png", "model.json", "model.png", "optimizer.json"}),
        ("second", {"compile.json", "compile.png", "step.json", "step.png", "counters.csv"}),
    ],
)
def test_a_half_leaves_eight_files_at_most(tmp_path, monkeypatch, half, expected):
    monkeypatch.setattr(stages, "STAGES", [files_only(stage) for stage in stages.STAGES])
    monkeypatch.setattr(command, "describe", lambda: {"gpu": "a GPU", "architecture": "9.0"})
    monkeypatch.setattr(command.summary, "MEASURES", {})  # the files have nothing in them
    assert command.main(["--out", str(tmp_path), "--half", half]) == 0
    assert {p.name for p in tmp_path.iterdir()} <= expected | {
        "log.txt",
        "summary.txt",
        "summary.json",
    }
    found = list(tmp_path.iterdir())
    assert len(found) <= 8 and all(path.is_file() for path in found)


@pytest.mark.parametrize("half", ["first", "second"])
def test_a_half_has_five_minutes(half):
    seconds = sum(s.seconds for s in stages.STAGES if s.half == half and s.name != "build")
    assert seconds + stages.LOADING_SECONDS <= stages.HALF_SECONDS
    assert stages.HALF_SECONDS + stages.GRACE_SECONDS < 300


@pytest.mark.parametrize(
    ("seconds", "minutes", "expected"),
    [
        # the last has what is left over; earlier ones leave later ones their seconds
        ((20, 30, 10), 2, (80, 110, 120)),
        # the first may take what it needs, and the last has nothing
        ((80, 30, 10), 1, (60, 50, 60)),
        ((20, 30, 10), 0.5, (20, 30, 30)),
    ],
)
def test_limits_of_stages(tmp_path, monkeypatch, seconds, minutes, expected):
    """Of stages that take no time."""
    names, found = ("build", "tests", "package"), []
    made_up = [Stage(n, "both", s, "") for n, s in zip(names, seconds, strict=True)]
    monkeypatch.setattr(stages, "STAGES", made_up)
    monkeypatch.setattr(command, "describe", lambda: {"gpu": "a GPU", "architecture": "9.0"})
    monkeypatch.setattr(command.time, "monotonic", lambda: 1000.0)

    def run(stage, out, architecture, limit):
        found.append(limit)
        return Result(stage.name, "passed")

    monkeypatch.setattr(stages, "run", run)
    command.main(["--out", str(tmp_path), "--minutes", str(minutes)])
    assert tuple(found) == expected


def test_what_was_found_is_there_when_the_machine_goes_away(tmp_path, monkeypatch):
    looks = f"""
import json, pathlib
out = pathlib.Path({str(tmp_path)!r})
assert [s["name"] for s in json.loads((out / "summary.json").read_text())["stages"]] == ["build"]
assert "build  " in (out / "summary.txt").read_text()
assert "found by the first" in (out / "log.txt").read_text()
"""
    made_up = [
        Stage("build", "both", 60, script("print('found by the first')")),
        Stage("tests", "first", 60, script(looks)),
    ]
    monkeypatch.setattr(stages, "STAGES", made_up)
    monkeypatch.setattr(command, "describe", lambda: {"gpu": "a GPU", "architecture": "9.0"})
    assert command.main(["--out", str(tmp_path)]) == 0


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


def test_gpu_tests_can_be_collected_on_a_bare_machine():
    """Without a GPU, and without what a GPU machine may lack: they fail on first contact else."""
    tests = stages.NEEDS_GPU + stages.NEEDS_MEMORY
    assert len(tests) >= 8  # no test file of today's is overlooked
    text = f"""
import sys
for name in ("hypothesis", "rich", "matplotlib", "expecttest"):
    sys.modules[name] = None
import pytest
sys.exit(pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", *{tests!r}]))
"""
    variables = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=ROOT, capture_output=True, text=True, env=variables
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for test in tests:
        assert f"{test.partition('::')[0]}: " in done.stdout  # and their number
    assert stages.NEEDS_MEMORY == ["tests/cuda/test_cuda_limits.py"]
