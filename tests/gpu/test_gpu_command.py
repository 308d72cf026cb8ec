"""``make gpu`` on a machine without a GPU: stages with commands of ours, and the plan."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch_ws

from bench.weights.options import make_parser as bench_parser
from bench.weights.workloads import parse_shape
from gpu import __main__ as command
from gpu import plan, sanitize, targets
from gpu.stages import ROOT, Result, Stage, run_together

MACHINE = {"gpu": "a GPU", "architecture": "9.0"}


def python(script):
    return [sys.executable, "-c", script]


def run(stages, folder, seconds=60):
    return run_together(stages, folder, time.monotonic() + seconds)


# --- stages


def test_outcomes_of_a_stage(tmp_path):
    def read(log):
        return log.splitlines()[-1], "cannot here" in log

    stages = {
        "good": (Stage("good", python("print('fine')"), 60), "passed", ""),
        "read": (Stage("read", python("print('7 of 7')"), 60, read=read), "passed", "7 of 7"),
        "bad": (Stage("bad", python("raise SystemExit(3)"), 60), "failed", "exit status 3"),
        "absent": (Stage("absent", ["no-such-program"], 60), "failed", "no-such-program"),
        "unable": (Stage("unable", [], 60, unable="no tool"), "skipped", "no tool"),
        "refused": (
            Stage("refused", python("print('cannot here'); raise SystemExit(1)"), 60, read=read),
            "skipped",
            "cannot here",
        ),
    }
    for name, (stage, status, detail) in stages.items():
        (result,) = run([stage], tmp_path)
        assert (result.name, result.status) == (name, status)
        assert detail in result.detail
    assert (tmp_path / "good.log").read_text().endswith("fine\n")
    assert not (tmp_path / "unable.log").exists()


def test_time_limit_ends_a_stage_and_what_it_started(tmp_path):
    script = f"""
import pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path({str(tmp_path / "pid")!r}).write_text(str(child.pid))
print("before", flush=True)
time.sleep(600)
"""
    (result,) = run([Stage("slow", python(script), 2)], tmp_path)
    assert result.status == "timed out" and result.detail.startswith("stopped after 2")
    assert "before" in (tmp_path / "slow.log").read_text()
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


def test_no_stage_starts_after_the_deadline(tmp_path):
    (result,) = run([Stage("late", python(""), 60)], tmp_path, seconds=-1)
    assert result == Result("late", "skipped", detail="no time left")


def test_stages_of_a_group_run_at_once(tmp_path):
    # each waits for the other to have started
    script = """
import pathlib, sys, time
mine, other = (pathlib.Path(sys.argv[1], name) for name in sys.argv[2:])
mine.touch()
while not other.exists():
    time.sleep(0.01)
"""
    stages = [
        Stage(mine, [*python(script), str(tmp_path), mine, other], 60)
        for mine, other in (("a", "b"), ("b", "a"))
    ]
    assert [result.status for result in run(stages, tmp_path)] == ["passed", "passed"]


def test_environment_of_a_stage(tmp_path):
    script = "import os; print(os.environ['WS_TEST'], 'HOME' in os.environ or os.environ)"
    run([Stage("env", python(script), 60, {"WS_TEST": "here"})], tmp_path)
    assert "\nhere" in (tmp_path / "env.log").read_text()


# --- the plan


def stages_of(names=plan.NAMES, out=Path("out")):
    return [stage for group in plan.make(out, "9.0", list(names)) for stage in group]


def test_plan_has_every_stage_once_and_only_those_asked_for():
    assert sorted(stage.name for stage in stages_of()) == sorted(plan.NAMES)
    assert [stage.name for stage in stages_of(["model", "build"])] == ["build", "model"]


def test_build_is_for_this_gpu_alone():
    (build,) = stages_of(["build"])
    assert build.environment["TORCH_CUDA_ARCH_LIST"] == "9.0"
    assert build.environment["WS_CUDA"] == "on"
    assert build.environment["PYTHONPATH"].split(os.pathsep)[0] == str(ROOT / "python")


def test_tests_are_those_that_need_a_gpu():
    names = {path.name for path in plan.gpu_tests()}
    assert {"test_cuda.py", "test_cuda_many.py"} <= names and "test_cuda_stand_in.py" not in names


@pytest.mark.parametrize("name", ["weights", "model", "compile"])
def test_benchmark_understands_its_options(name, tmp_path):
    (stage,) = stages_of([name], tmp_path)
    arguments = stage.command[stage.command.index("bench") + 1 :]
    args = bench_parser().parse_args(arguments)
    assert args.device == "cuda" and args.json == f"{tmp_path}/{name}.json"
    assert args.many == (name != "weights")


def test_shapes_have_every_row_length_small_and_large():
    shapes = [parse_shape(text) for text in plan.shapes()]
    for cols in plan.ROW_LENGTHS:
        bytes_ = sorted(4 * rows * cols for rows, other in shapes if other == cols)
        large = [size for size in bytes_ if size >= targets.LARGE_BYTES]
        assert len(large) == 2 and large[0] < 5e6 and 16e6 < large[1] < 20e6
    assert (1, 1 << 24) in shapes
    assert sum(4 * rows * cols < targets.LARGE_BYTES for rows, cols in shapes) == len(plan.SMALL)


def test_what_is_missing_is_said(monkeypatch):
    found = importlib.util.find_spec
    absent = ("pytest", "pybind11", "matplotlib")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in absent else found(name)
    )
    monkeypatch.setattr("shutil.which", lambda name, path=None: None)
    stages = {stage.name: stage for stage in stages_of()}
    assert stages["tests"].unable == "pytest: not importable"
    assert stages["build"].unable == "cmake, ninja: not on PATH"
    assert stages["memcheck"].unable.startswith("no compute-sanitizer")
    assert "--plot" not in stages["weights"].command
    monkeypatch.setattr("shutil.which", lambda name, path=None: f"/bin/{name}")
    stages = {stage.name: stage for stage in stages_of()}
    assert stages["build"].unable == "pybind11: not importable"
    assert stages["racecheck"].command[:3] == ["/bin/compute-sanitizer", "--tool", "racecheck"]


def test_reading_of_the_build():
    (build,) = stages_of(["build"])
    reason = "built with CUDA 12.8, but torch 2.11.0 has 13.0"
    assert build.read(f"cuda_loaded         False\ncuda_reason         {reason}\n") == (
        reason,
        False,
    )
    assert build.read("cuda_loaded         True\ncuda_reason         None\n") == ("", False)


@pytest.mark.parametrize(
    ("log", "detail"),
    [
        ("...\n12 passed, 3 skipped in 41.20s\n", "12 passed, 3 skipped in 41.20s"),
        (
            "==== 1 failed, 2 passed in 1.00s (0:00:01) ====",
            "1 failed, 2 passed in 1.00s (0:00:01)",
        ),
        ("2 skipped in 0.10s\n", "2 skipped in 0.10s"),
        ("Killed", ""),
    ],
)
def test_reading_of_pytest(log, detail):
    (tests,) = stages_of(["tests"])
    assert tests.read(log) == (detail, False)


@pytest.mark.parametrize(
    ("log", "detail", "unable"),
    [
        (
            "9 weights, the worst error 0.1 of what is allowed\n"
            "========= ERROR SUMMARY: 0 errors\n",
            "0 errors; 9 weights, the worst error 0.1 of what is allowed",
            False,
        ),
        (
            "========= RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)\n",
            "2 hazards displayed (2 errors, 0 warnings)",
            False,
        ),
        (
            "========= Error: Device not supported. Please refer to the guide\n"
            "========= ERROR SUMMARY: 1 error\n",
            "compute-sanitizer: Device not supported",
            True,
        ),
    ],
)
def test_reading_of_compute_sanitizer(log, detail, unable):
    (memcheck,) = stages_of(["memcheck"])
    assert memcheck.read(log) == (detail, unable)


@pytest.mark.skipif(not torch_ws.info()["cuda_build"], reason="built without CUDA: no launch table")
def test_what_the_sanitizer_watches_computes_the_right_things(monkeypatch, capsys):
    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor: tensor)  # by the CPU's kernels
    assert sanitize.main() == 0
    assert "the worst error 0." in capsys.readouterr().out
    right = torch_ws.standardize
    monkeypatch.setattr(sanitize, "standardize", lambda *ts, **kw: right(*ts, **kw) * 1.1)
    weight = torch.randn(4, 9)
    assert sanitize.one(weight, torch.float32) > 1


# --- the command


def test_without_a_gpu_nothing_is_done(tmp_path):
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-m", "gpu", "--out", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("python3 -m gpu: error: this PyTorch, ")
    assert "sees no CUDA device" in done.stderr and not out.exists()


@pytest.mark.parametrize(
    ("build", "tests", "statuses", "code"),
    [
        ("pass", "pass", ["passed", "passed", "skipped"], 0),
        ("pass", "raise SystemExit(1)", ["passed", "failed", "skipped"], 1),
        ("raise SystemExit(1)", "pass", ["failed", "skipped", "skipped"], 1),
    ],
)
def test_command(tmp_path, monkeypatch, capsys, build, tests, statuses, code):
    stages = [
        Stage("build", python(build), 60),
        Stage("tests", python(tests), 60),
        Stage("memcheck", [], 60, unable="no compute-sanitizer"),
    ]
    monkeypatch.setattr(command, "describe", lambda: MACHINE)
    monkeypatch.setattr(plan, "make", lambda *arguments: [[stage] for stage in stages])
    assert command.main(["--out", str(tmp_path / "new" / "folder")]) == code
    found = json.loads((tmp_path / "new" / "folder" / "summary.json").read_text())
    assert [stage["status"] for stage in found["stages"]] == statuses
    text = (tmp_path / "new" / "folder" / "summary.txt").read_text()
    assert capsys.readouterr().out.endswith(f"\n{text}")


def test_unknown_stage(capsys):
    with pytest.raises(SystemExit):
        command.main(["--only", "tests", "everything"])
    assert "invalid choice: 'everything'" in capsys.readouterr().err


def test_makefile_has_the_command():
    assert "\ngpu:\n\t$(PYTHON) -m gpu --out $(OUT)" in (ROOT / "Makefile").read_text()


def test_gpu_tests_can_be_collected_on_a_bare_machine():
    """Without a GPU, and without what a GPU machine may lack: they fail on first contact else."""
    files = [str(path) for path in plan.gpu_tests()]
    script = f"""
import sys
for name in ("hypothesis", "rich", "matplotlib", "expecttest"):
    sys.modules[name] = None
import pytest
sys.exit(pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", *{files!r}]))
"""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(python(script), cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    for path in plan.gpu_tests():
        assert f"tests/cuda/{path.name}: " in done.stdout  # and their number
