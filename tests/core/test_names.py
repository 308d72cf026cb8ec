"""What `import torch_ws` offers: public names, and that no module takes the place of one."""

import importlib
import inspect
import pickle
import pkgutil
import subprocess
import sys

import pytest
import torch
import torch_ws


def test_dir_shows_the_public_names_alone():
    assert dir(torch_ws) == sorted(torch_ws.__all__)


def test_every_public_name_is_documented():
    for name in torch_ws.__all__:
        if name != "formulas":  # a mapping
            assert inspect.getdoc(getattr(torch_ws, name)), name


def test_importing_a_module_leaves_the_name_that_it_shares():
    before = {name: getattr(torch_ws, name) for name in torch_ws.__all__}
    for module in pkgutil.iter_modules(torch_ws.__path__):
        if not module.name.startswith("libws"):
            importlib.import_module(f"torch_ws.{module.name}")
    assert all(getattr(torch_ws, name) is value for name, value in before.items())


@pytest.mark.parametrize(
    "module, value",
    [
        ("modules", torch_ws.WSConv2d(2, 3, 1)),
        ("batch_channel_norm", torch_ws.BatchChannelNorm2d(4, 2)),
        ("estimated_batch_norm", torch_ws.EstimatedBatchNorm(4)),
        ("parametrize", torch_ws.parametrize(torch.nn.Linear(2, 3)).parametrizations.weight[0]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_pickles_of_the_first_releases_load(module, value):
    new = pickle.dumps(value, protocol=0)
    old = new.replace(f"torch_ws.layers.{module}\n".encode(), f"torch_ws.{module}\n".encode())
    assert old != new
    assert type(pickle.loads(old)) is type(value)


def test_import_of_info_first():
    script = "import torch_ws.info; print(torch_ws.info()['torch_ws'])"
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True
    )
    assert result.stdout.strip() == torch_ws.__version__, result.stderr
