"""The types that users' checkers see: the stub of the native module against the module itself."""

import ast
import inspect
from pathlib import Path
from typing import get_args

import pytest
import torch_ws
from torch_ws import _C
from torch_ws.distributed import standardize_before_gather
from torch_ws.formulas import FormulaName

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


def public_functions():
    """Also the methods of public classes, theirs and of their bases here."""
    yield from (standardize_before_gather, torch_ws.reference.standardize)
    yield from (getattr(torch_ws.checkpoints, name) for name in torch_ws.checkpoints.MARKS)
    for value in (getattr(torch_ws, name) for name in torch_ws.__all__):
        if inspect.isfunction(value):
            yield value
        for cls in value.__mro__ if inspect.isclass(value) else ():
            if cls.__module__.startswith("torch_ws."):
                public = [name for name in vars(cls) if name == "__init__" or name[0] != "_"]
                yield from filter(inspect.isfunction, (vars(cls)[name] for name in public))


PUBLIC = {f"{f.__module__}.{f.__qualname__}": f for f in public_functions()}


@pytest.mark.parametrize("name", PUBLIC)
def test_public_signatures_are_complete(name):
    known = inspect.get_annotations(PUBLIC[name])
    assert set(inspect.signature(PUBLIC[name]).parameters) - {"self"} <= set(known)
    assert name.endswith(".__init__") or "return" in known


def test_formula_names_are_the_keys():
    assert get_args(FormulaName) == tuple(torch_ws.formulas)
