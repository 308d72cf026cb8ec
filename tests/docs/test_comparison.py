"""docs/comparison.md: every yes of torch_ws names tests, and they exist."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "comparison.md"
ROWS = [
    [cell.strip() for cell in line.replace(r"\|", "¦").strip("|").split("|")]
    for line in PAGE.read_text().splitlines()
    if line.startswith("| ") and not line.startswith("| |")
]


def test_every_cell_says_yes_no_in_part_or_nothing():
    header = next(line for line in PAGE.read_text().splitlines() if line.startswith("| |"))
    columns = [cell.strip() for cell in header.strip("|").split("|")]
    assert columns[-2:] == ["torch_ws", "tests"]
    for row in ROWS:
        assert len(row) == len(columns), row[0]
        assert set(row[1:-2]) <= {"Y", "p", "-", ""}, row[0]
        assert row[-2] in ("yes", "no"), row[0]
    for column in columns[1:-2]:
        assert f"* {column}: " in PAGE.read_text() or f"; {column}: " in PAGE.read_text(), column


@pytest.mark.parametrize("row", [r for r in ROWS if r[-2] == "yes"], ids=lambda row: row[0])
def test_a_yes_has_tests(row):
    named = re.findall(r"`([^`]+)`", row[-1])
    assert named
    for name in named:
        file, _, function = name.partition("::")
        text = (TESTS / file).read_text()
        assert f"def {function}(" in text if function else "def test_" in text, name
