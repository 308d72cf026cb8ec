"""Libraries brought along to a GPU machine: what they are built from, and when they are used."""

import json
import sys

import pytest

from gpu import build, libraries


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Sources to digest, and empty folders for the libraries."""
    (tmp_path / "csrc" / "cuda").mkdir(parents=True)
    (tmp_path / "csrc" / "cuda" / "api.cu").write_text("one")
    (tmp_path / "csrc" / "layout.cpp").write_text("two")
    (tmp_path / "CMakeLists.txt").write_text("three")
    folder, package = tmp_path / "build" / "gpu-libs" / "torch_ws", tmp_path / "torch_ws"
    folder.mkdir(parents=True)
    package.mkdir()
    for module in (libraries, build):
        monkeypatch.setattr(module, "ROOT", tmp_path)
        monkeypatch.setattr(module, "FOLDER", folder)
    monkeypatch.setattr(build, "PACKAGE", package)
    return tmp_path


def test_digest_is_of_everything_that_is_compiled(tree):
    before = libraries.digest()
    assert libraries.digest() == before
    for path in ("csrc/cuda/api.cu", "csrc/layout.cpp", "CMakeLists.txt"):
        text = (tree / path).read_text()
        (tree / path).write_text("other")
        assert libraries.digest() != before, path
        (tree / path).write_text(text)
    (tree / "csrc" / "layout.cpp").rename(tree / "csrc" / "names.cpp")
    assert libraries.digest() != before
    (tree / "csrc" / "names.cpp").rename(tree / "csrc" / "layout.cpp")
    (tree / "README.md").write_text("not compiled")
    assert libraries.digest() == before


def test_libraries_are_built_for_another_python(tree, monkeypatch, capsys):
    """By setup.py, here replaced, and CMake with that Python; not into the source tree."""
    (tree / "setup.py").write_text("""
import json, os, pathlib, sys
folder = pathlib.Path(sys.argv[sys.argv.index("--build-lib") + 1], "torch_ws")
names = ("WS_CUDA", "TORCH_CUDA_ARCH_LIST", "CMAKE_ARGS")
found = {name: os.environ[name] for name in names}
(folder / "build.json").write_text(json.dumps({"cuda": "13.0", "given": found}))
(folder / "libws.so").write_bytes(bytes(600_000))
""")
    headers = tree / "include"
    headers.mkdir()
    (headers / "Python.h").touch()
    python = tree / "python 3.12"
    python.write_text(f"#!/bin/sh\necho '{python}'\necho '{headers}'\n")
    python.chmod(0o755)
    monkeypatch.setenv("CMAKE_ARGS", "-DMORE=1")
    libraries.main(["--python", str(python), "--architecture", "9.0"])
    info = json.loads((libraries.FOLDER / "build.json").read_text())
    arguments = f"-DMORE=1 -DPython_EXECUTABLE='{python}'"
    given = {"WS_CUDA": "on", "TORCH_CUDA_ARCH_LIST": "9.0", "CMAKE_ARGS": arguments}
    assert info == {"cuda": "13.0", "given": given, "sources": libraries.digest()}
    assert "   0.6 MB  build/gpu-libs/torch_ws/libws.so\n" in capsys.readouterr().out


# Not there; a version manager's name for a version that it was not told; bare, and dead; no headers
@pytest.mark.parametrize(
    ("script", "said"),
    [
        (None, "python3.12 is not found"),
        (
            "echo 'pyenv: python3.12: command not found' >&2; exit 127",
            "does not run: pyenv: python3",
        ),
        ("exit 3", "does not run: exit status 3"),
        ("echo /bin/python3; echo /no/include", "no headers: /no/include/Python.h is not found"),
    ],
)
def test_a_python_that_cannot_be_built_for(tree, monkeypatch, capsys, script, said):
    monkeypatch.setenv("PATH", str(tree))
    if script is not None:
        (tree / "python3.12").write_text(f"#!/bin/sh\n{script}\n")
        (tree / "python3.12").chmod(0o755)
    with pytest.raises(SystemExit):
        libraries.main(["--python", "python3.12", "--architecture", "9.0"])
    error = capsys.readouterr().err
    assert "argument --python: python3.12" in error and said in error


def test_this_python_has_what_is_needed():
    assert libraries.find_python(sys.executable) == sys.executable


def bring(monkeypatch, sources, loads="import torch"):
    (build.FOLDER / "build.json").write_text(json.dumps({"sources": sources}))
    (build.FOLDER / "libws.so").write_text("a library")
    monkeypatch.setattr(build, "LOADS", loads)
    return build.bring()


def test_libraries_that_load_are_used(tree, monkeypatch):
    assert bring(monkeypatch, libraries.digest()) is None
    assert (build.PACKAGE / "libws.so").read_text() == "a library"
    assert json.loads((build.PACKAGE / "build.json").read_text()) == {"sources": libraries.digest()}


def test_without_libraries_they_are_compiled(tree):
    assert build.bring() == "none were brought along"


@pytest.mark.parametrize("sources", ["0" * 64, None])  # of other ones; not finished
def test_libraries_of_other_sources_are_not_even_copied(tree, monkeypatch, sources):
    assert bring(monkeypatch, sources) == "those brought along were built from other sources"
    assert not list(build.PACKAGE.iterdir())


# As torch_ws, Python, a missing kernel and a crash say it.
@pytest.mark.parametrize(
    ("loads", "reason"),
    [
        (
            "raise ImportError('it could not load.\\n\\n  reason      GLIBC_2.99\\n  torch   2')",
            "GLIBC_2.99",
        ),
        ("import no_such_module", "No module named 'no_such_module'"),
        ("raise RuntimeError('no kernel image')", "no kernel image"),
        ("import os; os.abort()", "exit status -6"),
    ],
)
def test_libraries_that_do_not_load_are_taken_back(tree, monkeypatch, loads, reason):
    found = bring(monkeypatch, libraries.digest(), loads)
    assert found == f"those brought along do not load: {reason}"
    assert not list(build.PACKAGE.iterdir())  # nor pass for what ninja has linked


@pytest.mark.parametrize("reason", [None, "none were brought along"])
def test_the_stage_says_what_it_used(tree, monkeypatch, capfd, reason):
    import torch_ws

    (tree / "setup.py").write_text("print('compiling')")
    monkeypatch.chdir(tree)
    monkeypatch.setattr(build, "bring", lambda: reason)
    monkeypatch.setattr(torch_ws, "info", lambda: {"cuda_loaded": True, "cuda_reason": None})
    assert build.main() == 0
    out = capfd.readouterr().out
    used = "brought along" if reason is None else "compiled here: none were brought along"
    assert f"libraries: {used}\n" in out
    assert ("compiling" in out) == (reason is not None)
    monkeypatch.setattr(torch_ws, "info", lambda: {"cuda_loaded": False, "cuda_reason": "torn"})
    assert build.main() == 1
