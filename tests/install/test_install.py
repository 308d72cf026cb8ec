"""Loading, its failures in words, the environment's switches, and what the build refuses."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch_ws

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PACKAGE = Path(torch_ws.__file__).parent


def run(script, **environment):
    return subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("capability", ["avx2", "default"])
def test_environment_lowers_the_capability(capability):
    result = run("import torch_ws; print(torch_ws.cpu_capability())", WS_CPU_CAPABILITY=capability)
    assert result.stdout.strip() == capability


def test_unknown_capability_in_the_environment_is_warned_of():
    result = run("import torch_ws; print(torch_ws.cpu_capability())", WS_CPU_CAPABILITY="sse9")
    assert (
        "WS_CPU_CAPABILITY must be one of avx512, avx2, default; 'sse9' is ignored" in result.stderr
    )
    assert (
        result.stdout.strip()
        == run("import torch_ws; print(torch_ws.cpu_capability())").stdout.strip()
    )


def test_an_empty_capability_in_the_environment_is_none():
    script = "import torch_ws; print(torch_ws.cpu_capability())"
    result = run(script, WS_CPU_CAPABILITY="")
    assert result.stderr == ""
    assert result.stdout == run(script, WS_CPU_CAPABILITY="avx512").stdout  # the best there is


@pytest.mark.parametrize("damage", ["missing", "not a library"])
def test_failed_load_is_explained(tmp_path, damage):
    package = tmp_path / "torch_ws"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    if damage == "not a library":
        (package / "libws.so").write_text("not a library")
    result = run(f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import torch_ws")
    assert result.returncode != 0
    assert "ImportError: torch_ws could not load its native library." in result.stderr
    message = result.stderr.split("native library.")[-1]
    for part in ("reason", "found", "Likely causes", "pip install", str(package)):
        assert part in message
    assert len(message.splitlines()) < 25  # one screen
    # of a source checkout: no package index has the package
    commands = re.findall(r"pip install [^`]*", message)
    assert len(commands) == 2 and all("." in command.split() for command in commands)


def test_loading_twice_is_harmless():
    result = run(
        "import torch_ws, importlib; from torch_ws.core import load; importlib.reload(load);"
        "import torch; print(torch_ws.standardize(torch.ones(2, 3)).sum().item())"
    )
    assert result.stdout.strip() == "0.0", result.stderr


def test_info_command_prints_what_info_returns():
    result = subprocess.run(
        [sys.executable, "-m", "torch_ws.info"], capture_output=True, text=True, check=True
    )
    assert not result.stderr
    for key, value in torch_ws.info().items():
        assert f"{key:20}{value}" in result.stdout
    assert torch_ws.info()["torch"] == torch.__version__


def test_cuda_library_is_loaded_or_the_reason_is_given():
    info = torch_ws.info()
    assert info["cuda_loaded"] == (info["cuda_reason"] is None)
    if torch.version.cuda is None:
        assert not info["cuda_loaded"]
        expected = "has no CUDA" if info["cuda_build"] else "built without CUDA"
        assert expected in info["cuda_reason"]


@pytest.mark.skipif(not torch_ws.info()["cuda_build"], reason="built without CUDA")
def test_cuda_library_opens_without_cuda():
    # its symbols resolve with any PyTorch, and its launch table can be read on any machine
    result = run(
        "import torch_ws, ctypes, pathlib;"
        "ctypes.CDLL(pathlib.Path(torch_ws.__file__).parent / 'libws_cuda.so');"
        "print(torch_ws._C.launch_plan(64, 4608)['max_cols'] >= 4608)"
    )
    assert result.stdout.strip() == "True", result.stderr
    plan = torch_ws._C.launch_plan(7, 64, direction="backward", out="bfloat16")
    assert plan["team"] * plan["elements"] >= 64
    assert plan["blocks"] * plan["rows"] >= 7
    with pytest.raises(ValueError, match="direction must be forward, backward or norms, or"):
        torch_ws._C.launch_plan(1, 1, direction="up")
    with pytest.raises(ValueError, match=r"weight must be float64, .* got int8"):
        torch_ws._C.launch_plan(1, 1, weight="int8")
    for cluster in (0, 3, 32):
        with pytest.raises(ValueError, match=f"cluster must be 1, 2, 4, 8 or 16, got {cluster}"):
            torch_ws._C.launch_plan(1, 1, cluster=cluster)


def build_ext(tmp_path, **environment):
    """Runs setup.py's build up to where it would call CMake, for which it finds a script."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "cmake").write_text('#!/bin/sh\necho "cmake $@"\nexit 1\n')
    (tools / "cmake").chmod(0o755)
    keep = {k: v for k, v in os.environ.items() if k not in ("CUDA_HOME", "CUDA_PATH")}
    keep.pop("TORCH_CUDA_ARCH_LIST", None)
    result = subprocess.run(
        [
            sys.executable,
            "setup.py",
            "build_ext",
            f"--build-lib={tmp_path}/lib",
            f"--build-temp={tmp_path}/temp",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**keep, "PATH": f"{tools}:/usr/bin:/bin", **environment},
    )
    return result.stdout + result.stderr


def fake_nvcc(tmp_path):
    home = tmp_path / "cuda"
    (home / "bin").mkdir(parents=True)
    nvcc = home / "bin" / "nvcc"
    nvcc.write_text('#!/bin/sh\necho "Cuda compilation tools, release 13.0, V13.0.88"\n')
    nvcc.chmod(0o755)
    return home


def no_nvcc_in_wheels():
    return not any(Path(p).glob("nvidia/*/bin/nvcc") for p in sys.path if p)


@pytest.mark.skipif(bool(shutil.which("nvcc", path="/usr/bin:/bin")), reason="nvcc in /usr/bin")
def test_build_modes(tmp_path):
    wheels = [str(p) for path in sys.path if path for p in Path(path).glob("nvidia/*/bin/nvcc")]
    if wheels:
        pytest.skip(f"nvcc in wheels: {wheels[0]}")
    output = build_ext(tmp_path, WS_CUDA="on")
    assert "WS_CUDA=on, but no nvcc on PATH, in CUDA_HOME or in wheels" in output
    assert "cmake -S" not in output


def test_build_auto_says_what_it_does(tmp_path):
    output = build_ext(tmp_path, WS_CUDA="auto", CUDA_HOME=str(fake_nvcc(tmp_path)))
    assert f"WS_CUDA=auto: building the CUDA library with {tmp_path}/cuda/bin/nvcc (13.0)" in output
    assert "-DWS_CUDA=ON" in output


def test_build_off(tmp_path):
    output = build_ext(tmp_path, WS_CUDA="off", CUDA_HOME=str(fake_nvcc(tmp_path)))
    assert "WS_CUDA=off: building without CUDA (WS_CUDA=off)" in output
    assert "-DWS_CUDA=OFF" in output


def test_build_refuses_an_unknown_mode(tmp_path):
    assert "WS_CUDA must be auto, on or off, got 'yes'" in build_ext(tmp_path, WS_CUDA="yes")


@pytest.mark.parametrize(
    ("arch_list", "expected"),
    [
        ("8.0;9.0+PTX", "-DWS_CUDA_ARCHITECTURES=80-real;90"),
        ("9.0a 12.0", "-DWS_CUDA_ARCHITECTURES=90a-real;120-real"),
        ("Hopper", "TORCH_CUDA_ARCH_LIST must list versions such as 8.0 or 9.0+PTX, got 'Hopper'"),
    ],
)
def test_build_honours_the_arch_list(tmp_path, arch_list, expected):
    output = build_ext(tmp_path, CUDA_HOME=str(fake_nvcc(tmp_path)), TORCH_CUDA_ARCH_LIST=arch_list)
    assert expected in output


def test_build_info_is_recorded():
    build = json.loads((PACKAGE / "build.json").read_text())
    assert build["torch"] and build["compiler"]
    assert ("cuda" in build) and (build["cuda"] or build["cuda_off"])
