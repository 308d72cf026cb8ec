"""The documentation: every public name is in the reference, every link leads somewhere."""

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch_ws
import torch_ws.distributed
import torch_ws.inspect

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md")])
MODULES = (torch_ws, torch_ws.distributed, torch_ws.inspect)


def test_every_public_name_is_in_the_reference():
    written = re.findall(r"^::: (\S+)$", (DOCS / "api.md").read_text(), re.MULTILINE)
    names = [f"{module.__name__}.{name}" for module in MODULES for name in module.__all__]
    assert len(written) == len(set(written))
    assert set(names) <= set(written)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not link.startswith("https://"):
            target = (page.parent / link.partition("#")[0]).resolve()
            assert target.exists(), link
            # The site has nothing but this folder.
            assert page.parent != DOCS or target.is_relative_to(DOCS), link


def test_docstrings_are_markdown():
    """The site shows them as such: it would print the roles and double colons of Sphinx."""
    for path in (ROOT / "python").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                text = ast.get_docstring(node) or ""
                assert not re.search(r":\w+:`|::$", text, re.MULTILINE), (path, text)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mkdocstrings") is None, reason="make docs has mkdocs")
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    page = (tmp_path / "api.html").read_text()
    for module in MODULES:
        for name in module.__all__:
            assert f'id="{module.__name__}.{name}"' in page
