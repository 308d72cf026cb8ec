"""``make gpu-libs``: the native libraries, built here for a GPU machine that is there for minutes.

For that machine's Python and architecture, and the CUDA of the nvcc that is here. They go along in
a folder, with what they were built from: the build stage takes them if that is what it finds, too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build" / "gpu-libs" / "torch_ws"


def digest() -> str:
    """Of all that the libraries are compiled from."""
    sources = [path for path in (ROOT / "csrc").rglob("*") if path.is_file()]
    found = hashlib.sha256()
    for path in sorted([*sources, ROOT / "CMakeLists.txt"]):
        found.update(f"{path.relative_to(ROOT)}\0{path.stat().st_size}\0".encode())
        found.update(path.read_bytes())
    return found.hexdigest()


def find_python(name: str) -> str:
    """Its interpreter's path; ValueError says what is missing of what CMake needs."""
    path = shutil.which(name)
    if path is None:
        raise ValueError(f"{name} is not found")
    program = "import sys, sysconfig; print(sys.executable); print(sysconfig.get_path('include'))"
    done = subprocess.run([path, "-c", program], capture_output=True, text=True)
    if done.returncode:  # a version manager's, of no version
        said = done.stderr.strip().partition("\n")[0] or f"exit status {done.returncode}"
        raise ValueError(f"{name} does not run: {said}")
    python, headers = done.stdout.splitlines()
    if not Path(headers, "Python.h").exists():
        raise ValueError(f"{name} has no headers: {headers}/Python.h is not found")
    return python


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser("python3 -m gpu.libraries", allow_abbrev=False)
    python = "of the GPU machine's version, with its headers; it needs no PyTorch"
    parser.add_argument("--python", required=True, help=python)
    architecture = "the GPU's, as in TORCH_CUDA_ARCH_LIST"
    parser.add_argument("--architecture", required=True, help=architecture)
    args = parser.parse_args(argv)
    try:
        python = find_python(args.python)
    except ValueError as error:
        parser.error(f"argument --python: {error}")
    sources = digest()
    more = os.environ.get("CMAKE_ARGS", "")
    variables = {
        "WS_CUDA": "on",
        "TORCH_CUDA_ARCH_LIST": args.architecture,
        "CMAKE_ARGS": f"{more} -DPython_EXECUTABLE={shlex.quote(python)}",
    }
    places = ["--build-lib", FOLDER.parent, "--build-temp", ROOT / "build" / "gpu-libs-objects"]
    command = [sys.executable, "setup.py", "-q", "build_ext", *places]
    if subprocess.run(command, cwd=ROOT, env={**os.environ, **variables}).returncode:
        sys.exit("gpu.libraries: compiling failed, above")
    info = {**json.loads((FOLDER / "build.json").read_text(encoding="utf-8")), "sources": sources}
    (FOLDER / "build.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
    for path in sorted(FOLDER.iterdir()):
        print(f"{path.stat().st_size / 1e6:6.1f} MB  {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main(sys.argv[1:])
