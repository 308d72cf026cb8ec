"""The functions on the way from Python to a kernel are those that docs/design.md lists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "design.md").read_text()
SECTION = TEXT.split("## From Python to the kernel")[1].split("\n## ")[0]
KERNELS = {"forward_rows", "backward_rows", "batch_kernel"}
# What is called through a template's parameter, or by a pointer from a table.
CALLED_AS = {"run_on_cpu": "run", "run_on_cuda": "run"} | dict.fromkeys(KERNELS, "kernel")
ORDINALS = {4: "fourth", 7: "seventh"}


def steps_to(device: str, direction: str) -> list[tuple[str, str]]:
    """(function, file) from Python down: a row has one of each, or forward's and backward's."""
    table = re.search(rf"^\| {device} \|.*\n(?:\|.*\n)+", SECTION, re.M)[0]
    steps = []
    for number, functions, files, _ in (
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]
    ):
        assert int(number) == len(steps) + 1
        choices = re.findall(r"`([\w.]+)`", functions), files.split(", ")
        steps.append(tuple(c[direction == "backward" and len(c) > 1] for c in choices))
    return steps


def body_of(function: str, path: str) -> str:
    """The source of a function's one definition, from its parameters on."""
    source = (ROOT / path).read_text()
    *owner, name = function.split(".")
    if path.endswith(".py"):
        nodes = ast.parse(source).body
        for part in (*owner, name):
            (found,) = (node for node in nodes if getattr(node, "name", None) == part)
            nodes = found.body
        return ast.unparse(found)
    # its result's type may stand on a line before, and it may be a member of a class
    (start,) = re.finditer(rf"^( *)(?:[\w:<>,&* ]* )?{name}\([^;{{]*\{{", source, re.M)
    end = re.compile(r"^  \}" if len(start[1]) == 2 else r"^\}", re.M)
    return source[start.end() : end.search(source, start.end()).start()]


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("device", ["CPU", "CUDA"])
def test_each_function_calls_the_next(device, direction):
    steps = steps_to(device, direction)
    for (function, path), (called, _) in zip(steps, [*steps[1:], ("", "")], strict=True):
        body = body_of(function, path)
        assert re.search(CALLED_AS.get(called, called), body), f"{function} does not call {called}"
    (place,) = (i for i, (function, _) in enumerate(steps, 1) if function in KERNELS)
    assert re.search(rf"{device} kernel (is )?the {ORDINALS[place]}", SECTION)
