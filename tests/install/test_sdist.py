"""The source distribution: it has what a checkout has, and builds from that alone."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TOOLS = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
FILES = ["setup.py", "pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE", "Makefile"]
FILES += ["requirements-nvcc.txt", "CONTRIBUTING.md", "CHANGELOG.md", "mkdocs.yml"]
FOLDERS = ["python/torch_ws", "csrc", "tests", "docs", "bench", "examples", "gpu", ".github"]
OUTPUTS = ("*.so", "*.pyc", "build.json", "bench/out/*")  # of builds and runs


def run(*command, cwd, **environment):
    result = subprocess.run(
        command,
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": TOOLS, **environment},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """The distribution's folder. It is made without a list of files that an older one left."""
    folder = tmp_path_factory.mktemp("sdist")
    (folder / "info").mkdir()
    info = ["egg_info", "--egg-base", str(folder / "info")]
    run(sys.executable, "setup.py", "-q", *info, "sdist", "--dist-dir", str(folder), cwd=ROOT)
    [archive] = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


def relative_files(root, folder):
    paths = (path.relative_to(root) for path in (root / folder).rglob("*") if path.is_file())
    return {str(path) for path in paths if not any(path.match(output) for output in OUTPUTS)}


def test_it_has_every_source_file_and_no_output(unpacked):
    for name in FILES:
        assert (unpacked / name).read_bytes() == (ROOT / name).read_bytes()
    for folder in FOLDERS:
        assert relative_files(unpacked, folder) == relative_files(ROOT, folder)
    found = [path for output in OUTPUTS for path in unpacked.rglob(output)]
    assert not found


SCRIPT = """
import importlib, pkgutil, torch, torch_ws
print(torch_ws.__file__, torch_ws.__version__, torch_ws.info()["cuda_reason"], sep="\\n")
w = torch.randn(4, 9, dtype=torch.float64)
torch.testing.assert_close(torch_ws.standardize(w), torch_ws.reference.standardize(w))
for module in pkgutil.walk_packages(torch_ws.__path__, "torch_ws."):
    if module.name == "torch_ws.libws":  # of operators, for torch.ops.load_library
        continue
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
    print(module.name)
"""


@pytest.mark.skipif(
    not (shutil.which("cmake", path=TOOLS) and shutil.which("ninja", path=TOOLS)),
    reason="needs cmake and ninja",
)
def test_a_wheel_of_it_installs_and_every_module_imports(unpacked, tmp_path):
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-index", "--no-deps"]
    run(*pip, "--no-build-isolation", "-w", str(tmp_path), ".", cwd=unpacked, WS_CUDA="off")
    [wheel] = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"torch_ws"}
    assert {"torch_ws/py.typed", "torch_ws/_C.pyi"} <= set(names)  # what type checkers look for
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps"]
    run(*install, "--target", str(tmp_path / "site"), str(wheel), cwd=tmp_path)
    output = run(sys.executable, "-c", SCRIPT, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    first, version, reason, *modules = output.splitlines()
    assert first == f"{tmp_path}/site/torch_ws/__init__.py"
    assert version == wheel.name.split("-")[1]
    assert reason == "built without CUDA: WS_CUDA=off"
    sources = (ROOT / "python").rglob("*.py")
    files = {".".join(path.relative_to(ROOT / "python").with_suffix("").parts) for path in sources}
    files = {name.removesuffix(".__init__") for name in files}
    assert {*modules, "torch_ws"} == files | {"torch_ws._C"}
