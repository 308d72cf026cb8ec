"""Small checkpoints, and the command in a process of its own."""

import math
import os
import subprocess
import sys

import torch


def save(tmp_path, **tensors):
    from safetensors.torch import save_file

    path = tmp_path / "w.safetensors"
    save_file({name.replace("__", "."): t for name, t in tensors.items()}, path)
    return str(path)


def run(*arguments, **environment):
    command = [sys.executable, "-m", "torch_ws.inspect", *map(str, arguments)]
    # of what would make rich take a file for a terminal
    inherited = {k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "TTY_COMPATIBLE")}
    return subprocess.run(command, capture_output=True, text=True, env={**inherited, **environment})


def refused(path, capsys, *arguments):
    """What it says, in one line and with exit status 2."""
    from torch_ws.inspect.command import main

    assert main([str(path), *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err[:-1].isprintable()
    return err


def damaged(tmp_path):
    bad = torch.randn(64, 9, 2)
    bad[3, 2, 0], bad[3, 4, 1], bad[5, 0, 0] = math.nan, math.nan, -math.inf
    dead = torch.randn(10, 5, 3)
    dead[1], dead[4] = 2.0, dead[4] * 1e-7
    return save(
        tmp_path,
        bad__weight=bad,
        dead__weight=dead,
        one__weight=torch.randn(8, 1, 1, 1),
        quantized__weight=torch.zeros(3, 3, 3, dtype=torch.int8),
        small__weight=torch.randn(3, 3, 3).to(torch.float8_e4m3fn),
        none__weight=torch.zeros(3, 0, 3),
    )
