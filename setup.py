"""Builds the native libraries with CMake and ninja; everything else is in pyproject.toml.

Environment:
    WS_CUDA=auto|on|off      auto (default): build the CUDA library if nvcc is found
    TORCH_CUDA_ARCH_LIST     CUDA architectures as PyTorch writes them, e.g. "8.0;9.0+PTX"
    CUDA_HOME                where a toolkit is, if nvcc is not on PATH
    MAX_JOBS                 compilations at a time
    CMAKE_ARGS               more arguments for CMake, e.g. -DWS_SANITIZE=ON
"""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


def find_nvcc():
    """nvcc from PATH or CUDA_HOME, else from NVIDIA's wheels (nvidia-cuda-nvcc)."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    candidates = [Path(home) / "bin" / "nvcc" for home in homes]
    on_path = shutil.which("nvcc")
    if on_path:
        candidates.append(Path(on_path))
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations or [] if spec else []:
        candidates += sorted(Path(folder).glob("*/bin/nvcc"))
    return next((path for path in candidates if path.exists()), None)


def cmake_architectures(torch_list):
    """ "8.0;9.0+PTX" -> "80-real;90" (CMake: without a suffix, machine code and PTX)."""
    architectures = []
    for entry in re.split(r"[;,\s]+", torch_list.strip()):
        match = re.fullmatch(r"(\d+)\.(\d[af]?)(\+PTX)?", entry)
        if match is None:
            raise SystemExit(
                f"TORCH_CUDA_ARCH_LIST must list versions such as 8.0 or 9.0+PTX, got {entry!r}"
            )
        major, minor, ptx = match.groups()
        architectures.append(f"{major}{minor}" + ("" if ptx else "-real"))
    return ";".join(architectures)


class BuildWithCMake(build_ext):
    """Lets CMake place the libraries where setuptools expects the package."""

    def run(self):
        import pybind11
        import torch

        base = ROOT / "python" if self.inplace else Path(self.build_lib).resolve()
        package = base / "torch_ws"
        # An editable install keeps its build folder, so that the next one compiles only changes.
        tag = f"cmake-{sys.implementation.cache_tag}"
        build = ROOT / "build" / tag if self.inplace else Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        package.mkdir(parents=True, exist_ok=True)
        cuda, cuda_arguments, environment = self.cuda_arguments()
        configure = [
            "cmake",
            "-S",
            str(ROOT),
            "-B",
            str(build),
            "-G",
            "Ninja",
            f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja')}",
            f"-DWS_TORCH_DIR={Path(torch.__file__).parent}",
            f"-DWS_PACKAGE_DIR={package}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DPython_EXECUTABLE={sys.executable}",
            *cuda_arguments,
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]
        jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
        subprocess.run(configure, check=True, env=environment)
        subprocess.run(["cmake", "--build", str(build), *jobs], check=True, env=environment)
        compiler = re.search(
            r'CMAKE_CXX_COMPILER_ID "(.*)"\)[\s\S]*?CMAKE_CXX_COMPILER_VERSION "(.*)"\)',
            next(build.glob("CMakeFiles/*/CMakeCXXCompiler.cmake")).read_text(),
        )
        info = {"torch": torch.__version__, "compiler": " ".join(compiler.groups()), **cuda}
        (package / "build.json").write_text(json.dumps(info, indent=2) + "\n")

    def cuda_arguments(self):
        """What build.json says of CUDA, CMake's arguments for it, and the environment."""
        mode = os.environ.get("WS_CUDA", "auto")
        if mode not in ("auto", "on", "off"):
            raise SystemExit(f"WS_CUDA must be auto, on or off, got {mode!r}")
        nvcc = None if mode == "off" else find_nvcc()
        if nvcc is None:
            reason = (
                "WS_CUDA=off" if mode == "off" else "no nvcc on PATH, in CUDA_HOME or in wheels"
            )
            if mode == "on":
                hint = "pip install -r requirements-nvcc.txt"
                raise SystemExit(f"WS_CUDA=on, but {reason}; try: {hint}")
            print(f"torch-ws: WS_CUDA={mode}: building without CUDA ({reason})", flush=True)
            return {"cuda": None, "cuda_off": reason}, ["-DWS_CUDA=OFF"], os.environ
        text = subprocess.run(
            [nvcc, "--version"], check=True, capture_output=True, text=True
        ).stdout
        version = re.search(r"release (\d+\.\d+)", text).group(1)
        arguments = ["-DWS_CUDA=ON", f"-DCMAKE_CUDA_COMPILER={nvcc}"]
        torch_list = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
        architectures = cmake_architectures(torch_list) if torch_list.strip() else "default"
        if architectures != "default":
            arguments.append(f"-DWS_CUDA_ARCHITECTURES={architectures}")
        print(
            f"torch-ws: WS_CUDA={mode}: building the CUDA library with {nvcc} ({version}) "
            f"for architectures {architectures}",
            flush=True,
        )
        # The wheels keep in lib what their nvcc looks for in lib64.
        paths = [str(nvcc.parent.parent / "lib"), os.environ.get("LIBRARY_PATH", "")]
        environment = {**os.environ, "LIBRARY_PATH": os.pathsep.join(filter(None, paths))}
        return {"cuda": version, "cuda_architectures": architectures}, arguments, environment

    def get_outputs(self):
        return []

    def get_output_mapping(self):
        return {}


setup(
    ext_modules=[Extension("torch_ws._C", sources=[])],
    cmdclass={"build_ext": BuildWithCMake},
)
