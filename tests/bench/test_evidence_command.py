"""``python -m bench evidence``: its command line, its record, killed and resumed."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from benchmark import ROOT
from idx_files import random_parts, write_parts

from bench.__main__ import main
from bench.evidence import command, plot, report
from bench.evidence.data import load
from bench.evidence.journal import FILE
from bench.evidence.panels import PANELS, comparisons, settings
from bench.evidence.run import run

ARGUMENTS = "--steps 2 --seeds 1 --long"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_parts(tmp_path_factory.mktemp("images"), random_parts())


def program(images, out, arguments):
    command = [sys.executable, "-m", "bench", "evidence", "--data", str(images), "--out", str(out)]
    return subprocess.Popen(
        [*command, *arguments.split()],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=heed_interrupts,
    )


def heed_interrupts():
    """Also where the tests were started in the background, whose children ignore ^C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def finished(images, out, arguments):
    process = program(images, out, arguments)
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert stderr == ""
    return stdout, json.loads((out / "evidence.json").read_text())


# --- what is refused before anything is done


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--seeds 0", "argument --seeds: invalid count value: '0'"),
        ("--steps 0", "argument --steps: invalid count value: '0'"),
        ("--workers 0", "argument --workers: invalid count value: '0'"),
        ("--only speed", "argument --only: invalid choice: 'speed'"),
        ("--out README.md", "argument --out: README.md cannot be written"),
        ("--data nowhere", "Fashion-MNIST not found in nowhere. On Debian and Ubuntu: apt-get"),
        ("--data {images} --out {out} --resume", "--resume: there is no {out}/runs.jsonl"),
    ],
)
def test_refuses(arguments, message, images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    names = {"images": images, "out": tmp_path / "out"}
    with pytest.raises(SystemExit) as status:
        main(["evidence", *arguments.format(**names).split()])
    assert status.value.code == 2
    error = capsys.readouterr().err
    assert message.format(**names) in error
    assert not (tmp_path / "out").exists()


# --- one panel, in this process


@pytest.fixture
def in_this_process(images, monkeypatch):
    """Which settings were run by the last command."""
    data, made = load(images), []

    def run_all(wanted, given, workers):
        made[:] = wanted
        return ((setting, run(setting, data)) for setting in wanted)

    monkeypatch.setattr(command, "run_all", run_all)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the processes
    yield made
    torch.set_num_threads(threads)


def test_more_seeds_take_up_the_runs_of_fewer(in_this_process, images, tmp_path, capsys):
    arguments = f"evidence --data {images} --out {tmp_path} --steps 2 --only initialization"

    def found_with(more):
        main(f"{arguments} {more}".split())
        return json.loads((tmp_path / "evidence.json").read_text())

    one = found_with("--seeds 1")
    assert {setting.seed for setting in in_this_process} == {0} and len(in_this_process) == 12
    assert {c["verdict"] for c in one["comparisons"]} == {"one seed"}
    assert "\none seed: 9.\n" in capsys.readouterr().out
    two = found_with("--seeds 2 --resume")
    assert {setting.seed for setting in in_this_process} == {1} and len(in_this_process) == 12
    assert "12 runs in" in capsys.readouterr().out
    for a, b in zip(one["comparisons"], two["comparisons"], strict=True):
        assert b["values_with"][0] == a["values_with"][0] and len(b["values_with"]) == 2
    in_this_process.clear()
    again = found_with("--seeds 2 --resume")
    assert in_this_process == [] and "runs in" not in capsys.readouterr().out
    assert again["comparisons"] == two["comparisons"]


def test_progress(in_this_process, images, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(command, "show_progress", lambda text="": shown.append(text))
    arguments = "--steps 1 --seeds 1 --only initialization"
    main(f"evidence --data {images} --out {tmp_path} {arguments}".split())
    assert shown[0] == f"[{20 * '-'}] 0 of 12 runs  "
    assert re.fullmatch(r"\[#{10}-{10}\] 6 of 12 runs, 0:0\d left  \S.*, seed 0", shown[6])
    assert shown[12].startswith(f"[{20 * '#'}] 12 of 12 runs, 0:00 left  ")
    assert shown[13] == ""


# --- all of it, on random images


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    return (out, *finished(images, out, ARGUMENTS))


@pytest.mark.slow
def test_every_panel_is_run_recorded_printed_and_drawn(whole):
    out, printed, found = whole
    planned = comparisons(PANELS, 2)
    assert [(c["panel"], c["what"], c["measure"]) for c in found["comparisons"]] == [
        (c.panel, c.what, c.measure.title) for c in planned
    ]
    keys = {json.dumps(run["setting"], sort_keys=True) for run in found["runs"]}
    assert keys == {setting.key for setting in settings(planned, 1)}
    assert len(found["runs"]) == len(keys)
    for comparison in found["comparisons"]:
        assert len(comparison["values_with"]) == len(comparison["values_without"]) == 1
        assert comparison["verdict"] in ("one seed", "not finite")
    assert found["complete"] and len(found["data"]["warnings"]) == 4
    assert printed.count("Warning:") == 4
    assert all(title in " ".join(printed.split()) for title in report.TITLES.values())
    assert (out / "evidence.png").read_bytes().startswith(b"\x89PNG")
    assert set(plot.DRAWINGS) == set(report.TITLES) == set(PANELS)


def without_times(found):
    runs = [{k: v for k, v in run.items() if k != "seconds"} for run in found["runs"]]
    return {"comparisons": found["comparisons"], "runs": runs}


def journal_with(lines, process, folder):
    """The journal of a running program, once it has so many lines."""
    journal = folder / FILE
    while not journal.exists() or len(journal.read_bytes().splitlines()) < lines:
        assert process.poll() is None
        time.sleep(0.01)
    return journal


@pytest.mark.slow
def test_killed_and_resumed_gives_the_same(in_this_process, images, tmp_path):
    """As in this process, with two; and that of the killed one ends."""
    arguments = "--steps 2 --seeds 1 --only initialization"
    main(f"evidence --data {images} --out {tmp_path / 'whole'} {arguments}".split())
    whole = json.loads((tmp_path / "whole" / "evidence.json").read_text())
    process = program(images, tmp_path, f"{arguments} --workers 1")
    journal = journal_with(4, process, tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    lines = journal.read_bytes().splitlines()
    _, found = finished(images, tmp_path, f"{arguments} --workers 2 --resume")
    assert journal.read_bytes().splitlines()[: len(lines)] == lines
    assert without_times(found) == without_times(whole)
    deadline = time.monotonic() + 60
    while any_of_session(process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_command(images, tmp_path):
    """As the system does where memory is short. Its run is lost, the others are kept."""
    process = program(images, tmp_path, "--steps 60 --seeds 2 --only initialization --workers 1")
    journal = journal_with(2, process, tmp_path)
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        pid = int(path.parent.name)
        if os.getsid(pid) == process.pid and b"spawn_main" in path.read_bytes():
            os.kill(pid, signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 2
    why = "a process was ended from outside, perhaps for its memory: --resume goes on"
    assert stderr == f"python -m bench evidence: error: {why}\n"
    assert len(journal.read_bytes().splitlines()) >= 2


def any_of_session(session):
    """Whether a process of a session still runs; its leader was its number."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if (
                os.getsid(int(path.name)) == session
                and "State:\tZ" not in (path / "status").read_text()
            ):
                return True
        except (OSError, ProcessLookupError):
            continue
    return False


@pytest.mark.slow
def test_stopped_by_the_user_says_how_to_go_on(images, tmp_path):
    process = program(images, tmp_path, "--steps 60 --seeds 2 --only initialization")
    journal = journal_with(2, process, tmp_path)
    os.killpg(process.pid, signal.SIGINT)  # as ^C in a terminal does
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    count = len(journal.read_bytes().splitlines()) - 1
    assert stderr == f"\nstopped; {journal} has {count} runs: --resume goes on\n"
