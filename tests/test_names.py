"""What `import torch_ws` offers: public names, and that no module takes the place of one."""

import importlib
import inspect
import pkgutil
import subprocess
import sys

import torch_ws


def test_dir_shows_the_public_names_alone():
    assert dir(torch_ws) == sorted(torch_ws.__all__)


def test_every_public_name_is_documented():
    for name in torch_ws.__all__:
        if name != "formulas":  # a mapping
            assert inspect.getdoc(getattr(torch_ws, name)), name


def test_importing_a_module_leaves_the_name_that_it_shares():
    before = {name: getattr(torch_ws, name) for name in torch_ws.__all__}
    modules = {m.name for m in pkgutil.walk_packages(torch_ws.__path__, "torch_ws.")}
    shared = modules & {f"torch_ws.{name}" for name in torch_ws.__all__}
    assert len(shared) > 5  # the test has something to test
    for name in shared:
        importlib.import_module(name)
    assert all(getattr(torch_ws, name) is value for name, value in before.items())


def test_import_of_info_first():
    script = "import torch_ws.info, torch_ws.hold; print(torch_ws.info()['torch_ws'])"
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True
    )
    assert result.stdout.strip() == torch_ws.__version__, result.stderr
