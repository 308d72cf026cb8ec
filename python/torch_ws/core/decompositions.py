"""The ops as plain PyTorch operations, for programs that run without torch_ws.

`torch.export` keeps ws::standardize as one op; `decompositions` replaces it afterwards. The
table is ours and not part of PyTorch's: inductor refuses ops that have an entry there and no
lowering, if the environment has CI in it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..reference import standardize_op
from .autograd import DEFAULTS
from .many import reference_many


def _standardize(weight, gain=None, shift=None, **options):
    return standardize_op(weight, gain, shift, *{**DEFAULTS, **options}.values())


_TABLE: dict[Any, Callable] = {
    torch.ops.ws.standardize.default: _standardize,
    torch.ops.ws.standardize_many.default: reference_many,
    # what the two become when torch.export goes below autograd
    torch.ops.ws.forward.default: standardize_op,
    torch.ops.ws.forward_many.default: reference_many,
}


def decompositions() -> dict[Any, Callable]:
    """The ops of torch_ws as plain PyTorch operations, as `run_decompositions` takes them.

    The program then needs no torch_ws where it is loaded, and ONNX can express it:

        program = torch.export.export(model.eval(), (x,))
        plain = program.run_decompositions(torch_ws.decompositions())

    Returns:
        A new dict: an op of `torch.ops.ws` -> the function that [`torch_ws.reference`][] has for
        it. Merge it with ``torch.export.default_decompositions()`` for core ATen throughout.
    """
    return dict(_TABLE)
