"""PyTorch's private names: one file of the package has them, and they exist."""

import ast
import re
from pathlib import Path

import pytest
import torch
import torch_ws
from torch import nn
from torch.autograd import forward_ad
from torch_ws.core import private

PACKAGE = Path(torch_ws.__file__).parent
OTHERS = {"_getframe", "_replace", "_core", "_reconstruct"}  # Python's and NumPy's
ON_MODULES = {"_ws_group", "_fused_before_conversion"}  # what torch_ws itself keeps there


def private_names(path):
    """The names with one leading underscore that a file reads of objects, imports, or spells out.

    Strings count where they are such a name or a dotted one of torch; docstrings do not.
    """
    tree = ast.parse(path.read_text())
    prose = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.update(node.module.split("."), (alias.name for alias in node.names))
        elif isinstance(node, ast.Import):
            found.update(part for alias in node.names for part in alias.name.split("."))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in prose:
            found.update(re.findall(r"^_\w+$", node.value))
            found.update(re.findall(r"^torch\.(?:\w+\.)*(_\w+)", node.value))
    return {name for name in found if re.match("_[^_]", name)}


def own_names(path):
    """The names that a file gives to functions, classes, variables and attributes of self."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.update([node.attr] if ast.unparse(node.value) in ("self", "cls") else [])
    return names


FILES = sorted(PACKAGE.rglob("*.py"))
[HERE] = [path for path in FILES if path == Path(private.__file__)]
OWN = set().union(*map(own_names, FILES)) - private.EVERYWHERE


def test_no_other_file_has_one():
    allowed = OWN | private.EVERYWHERE | OTHERS | ON_MODULES
    others = {str(path.relative_to(PACKAGE)): private_names(path) - allowed for path in FILES}
    others.pop(str(HERE.relative_to(PACKAGE)))
    assert {path: names for path, names in others.items() if names} == {}


def test_the_search_finds_what_it_looks_for(tmp_path):
    """Each way to name one, and what is none."""
    file = tmp_path / "example.py"
    file.write_text(
        '"""torch._docstring and _docstring"""\nimport torch._imported\nfrom torch._module import'
        ' _name\nfrom ._own import _own\nx._attribute, "_string", "torch.nn._dotted", "a _word"\n'
    )
    names = {"_imported", "_module", "_name", "_attribute", "_string", "_dotted"}
    assert private_names(file) == names


CONVOLUTION = nn.Conv2d(1, 1, 1)
WHERE = {
    **dict.fromkeys(private.EVERYWHERE, CONVOLUTION),
    "_version": CONVOLUTION.weight,
    "_C": torch,
    "_WeightNorm": nn.utils.parametrizations,
    "_active_ddp_module": nn.parallel.DistributedDataParallel,
    "_amp_foreach_non_finite_check_and_unscale_": torch.ops.aten,
    "_are_functorch_transforms_active": torch._C,
    "_autograd": torch._C,
    "_backward_hooks": CONVOLUTION.weight,
    "_cdata": CONVOLUTION.weight.untyped_storage(),
    "_compiled_call_impl": CONVOLUTION,
    "_current_graph_task_id": torch._C,
    "_current_level": forward_ad,
    "_disabled_torch_function_impl": torch._C,
    "_dynamo": torch,
    "_execution_engine": torch.autograd.Variable,
    "_foreach_add": torch,
    "_foreach_add_": torch,
    "_foreach_div_": torch.ops.aten,
    "_foreach_mul_": torch.ops.aten,
    "_foreach_norm": torch.ops.aten,
    "_foreach_zero_": torch.ops.aten,
    "_forward_pre_hooks": CONVOLUTION,
    "_init_group": torch.optim.SGD,
    "_is_any_autocast_enabled": torch._C,
    "_is_tracing": torch._C,
    "_len_torch_dispatch_stack": torch._C,
    "_load_state_dict_pre_hooks": CONVOLUTION,
    "_make_wrapper_subclass": torch.Tensor,
    "_metadata": CONVOLUTION.state_dict(),
    "_op": torch.ops.aten.add.default,
    "_ops": torch,
    "_optimizer_step_post_hooks": torch.optim.SGD(CONVOLUTION.parameters()),
    "_output_padding": nn.ConvTranspose1d,
    "_post_accumulate_grad_hooks": CONVOLUTION.weight,
    "_python_dispatch": torch.utils,
    "_pytree": torch.utils,
    "_reversed_padding_repeated_twice": CONVOLUTION,
    "_storage_Use_Count": torch._C,
    "_top_saved_tensors_default_hooks": torch._C._autograd,
    "_torchdynamo_inline": torch.compile(len),
    "_use_count": CONVOLUTION.weight,
    "_will_engine_execute_node": torch._C,
}
# Objects that have to be made first, in the tests below
MADE = {"_orig_mod", "_local_tensor", "_get_fsdp_state", "_init_extensions", "_module_info"}
MADE |= {"_fsdp_param_groups", "_fsdp_param_group", "_use_post_forward_mesh"}


def test_every_name_is_looked_for():
    names = private_names(HERE) - own_names(HERE) - OTHERS
    assert names | private.EVERYWHERE == WHERE.keys() | MADE


@pytest.mark.parametrize("name", sorted(WHERE))
def test_name_exists(name):
    assert hasattr(WHERE[name], name)
