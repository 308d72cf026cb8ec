"""What the benchmark's command lines refuse, before anything is measured."""

import pytest
import torch
import torch_ws
from benchmark import run_main

COMMANDS = ("standardize", "step", "optimizer")
REFUSED = {
    "--models resnet51": "invalid choice: 'resnet51'",
    "--device tpu": "invalid choice: 'tpu'",
    "--seconds 0": "argument --seconds",
    "--seconds nan": "argument --seconds",
    "--threads 0": "argument --threads",
    "--json /nowhere/found.json": "argument --json: no folder /nowhere",
    "--json .": "argument --json: . cannot be written",
    "--plot found.svg": "argument --plot: found.svg should end in .png",
}
REFUSED_BY_STANDARDIZE = {
    "--shapes 8xx8": "a shape is written like 512x128x3x3, not '8xx8'",
    "--shapes 8x1x1": "8x1x1: one element a channel has no standard deviation",
    "--dtype int8": "invalid choice: 'int8'",
    "--direction sideways": "invalid choice: 'sideways'",
    "--providers apex": "invalid choice: 'apex'",
    "--only overhead --plot found.png": "leaves nothing to draw",
    "--only models --shapes 8x8": "argument --shapes: given, but --only leaves",
}
REFUSED_BY_STEP = {
    "--variants plain": "invalid choice: 'plain'",  # it runs in any case
    "--batch 0": "argument --batch",
    "--size 0": "argument --size",
    "--size 100": "argument --size: resnet50 needs a multiple of 32, got 100",
    "--models unet --size 20": "argument --size: unet needs a multiple of 8, got 20",
    "--micro-batches 0": "argument --micro-batches",
    "--micro-batches 1 --variants held": "argument --micro-batches: held needs 2 or more, got 1",
    "--micro-batches 2 8 --variants layer": "argument --micro-batches: layer needs 1, got 2 8",
    "--optimizer adam": "invalid choice: 'adam'",
    "--clip value": "invalid choice: 'value'",
}
REFUSED_BY_OPTIMIZER = {
    "--optimizer adam": "invalid choice: 'adam'",
    "--dtype float16": "invalid choice: 'float16'",
    "--variants copy": "invalid choice: 'copy'",  # it runs in any case
}


def refusal(command, arguments, monkeypatch, capsys):
    """The line of the error, the only one but for the usage."""
    with pytest.raises(SystemExit) as stopped:
        run_main(f"{command} {arguments}", monkeypatch)
    out, err = capsys.readouterr()
    assert (stopped.value.code, out) == (2, "")  # nothing ran
    usage, error = err.splitlines()
    assert usage.startswith("usage: python -m bench")
    return error


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        *((command, *case) for command in COMMANDS for case in REFUSED.items()),
        *(("standardize", *case) for case in REFUSED_BY_STANDARDIZE.items()),
        *(("step", *case) for case in REFUSED_BY_STEP.items()),
        *(("optimizer", *case) for case in REFUSED_BY_OPTIMIZER.items()),
    ],
)
def test_bad_arguments(command, arguments, message, monkeypatch, capsys):
    assert message in refusal(command, arguments, monkeypatch, capsys)


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_not_here(command, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    error = refusal(command, "--device cuda", monkeypatch, capsys)
    assert "this PyTorch sees no CUDA device" in error
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    error = refusal(command, "--plot found.png", monkeypatch, capsys)
    assert "it needs matplotlib, which is not installed" in error


def test_instruction_set_that_is_not_here(monkeypatch, capsys):
    def refuse(name):
        if name == "avx512":
            raise ValueError("name must be an instruction set that this machine has")

    monkeypatch.setattr(torch_ws._C, "set_cpu_capability", refuse)
    error = refusal("standardize", "--isa avx512", monkeypatch, capsys)
    assert "argument --isa: this machine cannot run avx512" in error


def test_compile_without_a_compiler(monkeypatch, capsys):
    def fail(function, **options):
        raise RuntimeError("no working C++ compiler\nand many more lines")

    monkeypatch.setattr(torch, "compile", fail)
    error = refusal("step", "--compile", monkeypatch, capsys)
    expected = "argument --compile: torch.compile does not work here: no working C++ compiler"
    assert error.endswith(expected)
