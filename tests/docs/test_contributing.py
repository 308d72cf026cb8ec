"""CONTRIBUTING.md: named paths exist, the tree has every folder, make has the commands."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()


def tree():
    """The paths of the tree: a name at an indent belongs to the last one with a smaller indent."""
    above = {}
    for line in TEXT.split("```")[1].strip().splitlines():
        indent = len(line) - len(line.lstrip())
        above[indent] = above.get(indent - 2, Path()) / line.split()[0]
        yield above[indent]


TREE = list(tree())
NAMED = re.findall(r"`([\w./]*(?:/|\.(?:md|txt|py)))`|`([\w./]+/[\w./]+)`", TEXT)
NAMED = [a or b for a, b in NAMED]


@pytest.mark.parametrize("path", map(str, [*TREE, *NAMED]))
def test_named_paths_exist(path):
    assert (ROOT / path).exists()


@pytest.mark.parametrize("top", ["csrc", "python/torch_ws", "bench", "gpu", "tests"])
def test_the_tree_has_every_folder(top):
    sources = (".py", ".h", ".cpp", ".cu", ".cuh", ".inl")
    files = [path for path in (ROOT / top).rglob("*") if path.suffix in sources]
    found = {path.parent.relative_to(ROOT) for path in files}
    inner = {path for path in found if "support" in path.parent.parts}  # one thing, in a folder
    assert found - inner <= set(TREE)


def test_commands_are_targets_of_make():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"`make ([a-z-]+)", TEXT)) <= set(targets)
