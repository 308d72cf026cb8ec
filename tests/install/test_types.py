"""The types that users' checkers see: the stub of the native module against the module itself."""

import ast
from pathlib import Path

import pytest
import torch_ws
from torch_ws import _C

STUB = ast.parse(Path(torch_ws.__file__).with_name("_C.pyi").read_text())
FUNCTIONS = {node.name: node for node in STUB.body if isinstance(node, ast.FunctionDef)}
DICTS = {  # name in the stub -> the keys of what is returned
    node.name: [field.target.id for field in node.body if isinstance(field, ast.AnnAssign)]
    for node in STUB.body
    if isinstance(node, ast.ClassDef)
}


def untyped(function):
    """The parameters' names, kinds and defaults, as code."""
    for argument in ast.walk(function.args):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    return ast.unparse(function.args)


def test_the_stub_has_the_public_names():
    assert set(FUNCTIONS) == {name for name in dir(_C) if not name.startswith("_")}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_stub_has_the_parameters_and_defaults(name):
    [written] = ast.parse(f"def {getattr(_C, name).__doc__.splitlines()[0]}: ...").body  # pybind11
    assert written.name == name
    assert untyped(FUNCTIONS[name]) == untyped(written)


def test_the_stub_has_the_keys_of_what_is_returned():
    info = _C.build_info()
    assert DICTS["_BuildInfo"] == list(info)
    if info["cuda"]:
        assert DICTS["_Cuda"] == list(info["cuda"])
        assert DICTS["_LaunchPlan"] == list(_C.launch_plan(1, 1))
