"""Refuses what would write to, or apply, a layer's weight as if it were not standardized after it.

Fusion with batch normalization and merging of adapters multiply or add to `layer.weight`, and the
layer then standardizes the product or the sum: something else, without a word. Each of the three
ways in is known by the function that takes it, since to PyTorch it is a weight as any other. While
a compiler traces, which sees no frames, nothing is refused.
"""

from __future__ import annotations

import re
import sys
from typing import Any

import torch


def refuse_fusion(layer) -> None:
    """For the layer's __setattr__: raises where the function that sets its weight fuses.

    torch.nn.utils.fusion.fuse_conv_bn_eval and its like scale a copy's weight.
    """
    if torch.compiler.is_compiling():
        return
    function = sys._getframe(2).f_code.co_name
    if re.search("(^|_)fuse", function):
        raise RuntimeError(
            f"{function} would scale the weight that {type(layer).__name__} standardizes after it, "
            "and the scale would be lost: call torch_ws.fold on the model first, then fuse"
        )


def refuse_scaled(layer) -> None:
    """For the layer's _conv_forward: raises where mmcv's fusion in evaluation calls it.

    Its efficient_conv_bn_eval passes the layer's weight times batch normalization's scale.
    """
    if torch.compiler.is_compiling():
        return
    function = sys._getframe(2).f_code.co_name
    if "conv_bn" in function:
        raise RuntimeError(
            f"{function} would apply the weight of {type(layer).__name__} without standardizing "
            "it: call torch_ws.fold on the model first"
        )


class NoBaseLayer:
    """An attribute that a layer does not have; peft looks for it on its way to a layer's weight.

    Its adapters add to `weight.data` when they are merged, which PyTorch shows to nobody. Each
    finds the layer by `get_base_layer`, which asks the layer for another one within it. So a method
    `merge` of the same package that asks is refused.
    """

    def __get__(self, layer, owner=None):
        if layer is not None and not torch.compiler.is_compiling():
            frame: Any = sys._getframe(1)
            package = _package_of(frame)
            if frame.f_code.co_name == "get_base_layer":
                while frame is not None and _package_of(frame) == package:
                    if frame.f_code.co_name == "merge":
                        raise RuntimeError(
                            f"{package} would merge an adapter into the weight that "
                            f"{type(layer).__name__} standardizes after it, and the result would "
                            "be another: call torch_ws.fold on the model first, then merge"
                        )
                    frame = frame.f_back
        raise AttributeError(f"{type(layer).__name__!r} object has no attribute 'base_layer'")


def _package_of(frame):
    return frame.f_globals.get("__name__", "").partition(".")[0]
