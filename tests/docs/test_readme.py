"""README and docs: every Python snippet runs, and every figure in the table is a recorded one."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SNIPPET = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    "page", [p for p in PAGES if SNIPPET.search(p.read_text())], ids=lambda p: p.name
)
def test_snippets_run(page):
    text, names = page.read_text(), {}
    for match in SNIPPET.finditer(text):
        line = text[: match.start()].count("\n") + 1
        exec(compile("\n" * line + match.group(1), str(page), "exec"), names)


def test_readme_begins_with_a_snippet_and_the_two_commands():
    text = (ROOT / "README.md").read_text()
    assert SNIPPET.search(text)
    for command in ("make test", "make bench"):
        assert command in text
        assert f"\n{command.split()[1]}:" in (ROOT / "Makefile").read_text()


RESULT = ROOT / "bench" / "results" / "xeon-2-cores.json"
# README's rows: (workload, direction) of the recorded run; columns: the peers
ROWS = [
    ("512x512x3x3", "forward"),
    ("512x512x3x3", "both"),
    ("2048x1024x1x1", "forward"),
    ("2048x1024x1x1", "both"),
    ("512x1x3x3", "forward"),
    ("512x1x3x3", "both"),
    ("resnet50", "forward"),
    ("resnet50", "both"),
]
PEERS = ("copy", "layer_norm", "batch_norm", "formula", "compile")


def table():
    """README's table, from the recorded run: the others' times as multiples of torch_ws's."""
    rows = {(r["workload"], r["direction"]): r for r in json.loads(RESULT.read_text())["rows"]}
    lines = []
    for workload, direction in ROWS:
        row = rows[workload, direction]
        times = {name: found["median_us"] for name, found in row["providers"].items()}
        ours = times["torch_ws"]
        name = row["title"].replace("x", "×") if row["kind"] == "weight" else row["title"]
        pass_ = {"forward": "forward", "both": "forward + backward"}[direction]
        ratios = [f"{times[peer] / ours:.2g}×" if peer in times else "" for peer in PEERS]
        lines.append(f"| {name} | {pass_} | " + " | ".join(ratios) + " |")
    return lines


def test_the_table_is_the_recorded_run():
    readme = (ROOT / "README.md").read_text()
    for line in table():
        assert line in readme
