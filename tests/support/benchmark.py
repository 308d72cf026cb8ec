"""Runs the benchmark's commands, in this process and in one of their own."""

import json
import subprocess
import sys
from pathlib import Path

import torch

from bench.__main__ import main
from bench.common import machine

ROOT = Path(__file__).parents[2]


def run_main(arguments, monkeypatch):
    # the allocator's settings would outlive the test
    monkeypatch.setattr(machine, "keep_freed_memory", lambda: False)
    threads = torch.get_num_threads()
    try:
        main(arguments.split())
    finally:
        torch.set_num_threads(threads)


def run_program(arguments, folder):
    """``python -m bench``: what it prints for a log, its record, and its picture's path."""
    path, picture = folder / "found.json", folder / "found.png"
    command = [sys.executable, "-m", "bench", *arguments.split()]
    command += ["--json", str(path), "--plot", str(picture)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert all(len(line) <= 80 or str(folder) in line for line in done.stdout.splitlines())
    found = json.loads(path.read_text())
    assert found["schema"] == 1 and found["complete"]
    assert found["command"] == f"python -m bench {arguments} --json {path} --plot {picture}"
    assert found["machine"]["threads"] == found["settings"]["threads"]
    return done.stdout, found, picture
