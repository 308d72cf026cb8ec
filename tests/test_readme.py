"""README and docs: every Python snippet runs, in the order in which it stands."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
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
