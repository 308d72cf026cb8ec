"""Versions and commands that stand in several files: Makefile, pyproject, pre-commit, workflows."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()
PYPROJECT = (ROOT / "pyproject.toml").read_text()
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
CI = (ROOT / ".github/workflows/ci.yml").read_text()


@pytest.mark.parametrize(
    "tool, repository",
    [("ruff", "astral-sh/ruff-pre-commit"), ("clang-format", "pre-commit/mirrors-clang-format")],
)
def test_pre_commit_has_the_versions_of_make_check(tool, repository):
    text = (ROOT / ".pre-commit-config.yaml").read_text()
    assert re.search(rf"{repository}\n    rev: v(.*)", text)[1] in re.findall(
        rf'"{tool}==([\d.]+)"', MAKEFILE
    )


def test_ci_runs_the_oldest_and_the_newest():
    runs = re.findall(r'python: "([\d.]+)", torch: "([\d.]+)"', CI)
    oldest_python = re.search(r'requires-python = ">=(.*)"', PYPROJECT)[1]
    oldest_torch = re.search(r'dependencies = \["torch>=(.*)"', PYPROJECT)[1]
    newest_python = re.search(r"python3 \(3.10 to ([\d.]+)\)", MAKEFILE)[1]
    newest_torch = re.search(r"TORCH \?= torch==(.*)", MAKEFILE)[1]
    assert runs == [(oldest_python, f"{oldest_torch}.0"), (newest_python, newest_torch)]
    assert "runner: [ubuntu-24.04, ubuntu-24.04-arm]" in CI  # AVX, and the kernels of "default"


def test_wheels_are_built_with_the_build_requirements():
    required = re.search(r"^requires = \[(.*)\]", PYPROJECT, re.MULTILINE)[1]
    installed = re.search(r'^before-build = "(.*)"', PYPROJECT, re.MULTILINE)[1].replace("'", "")
    assert set(re.findall(r'"(.*?)"', required)) <= set(installed.split())


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_workflows(workflow):
    text = workflow.read_text()
    targets = re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE)
    assert set(re.findall(r"run: make ([a-z-]+)", text)) <= set(targets)
    for action in re.findall(r"uses: (\S+)", text):
        assert re.fullmatch(r"[\w./:-]+[@:]v?\d+\.\d+\.\d+", action), action  # a version, in full
    if actionlint := shutil.which("actionlint"):
        run = subprocess.run([actionlint, workflow], capture_output=True, text=True)
        assert run.returncode == 0, run.stdout


def test_the_tests_of_make_asan_exist():
    names = re.search(r"addsuffix \.py,([\w\s\\]+)\)", MAKEFILE)[1].replace("\\", "").split()
    assert all((ROOT / "tests/core" / f"test_{name}.py").exists() for name in names)
