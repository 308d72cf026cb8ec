"""Weight Standardization for PyTorch in native kernels, forward and backward."""

from __future__ import annotations

import sys

from . import _load as _load  # isort: skip  # first: defines torch.ops.ws
from . import _C as _C
from . import checkpoints, reference
from ._C import cpu_capability
from .adopt import adopt
from .batch_channel_norm import BatchChannelNorm1d, BatchChannelNorm2d, BatchChannelNorm3d
from .convert import convert
from .decompositions import decompositions
from .estimated_batch_norm import EstimatedBatchNorm
from .fold import fold
from .formulas import Formula, formulas
from .functional import standardize
from .group import group
from .hold import hold
from .info import VERSION, info
from .many import standardize_many
from .modules import (
    WSConv1d,
    WSConv2d,
    WSConv3d,
    WSConvTranspose1d,
    WSConvTranspose2d,
    WSConvTranspose3d,
    WSLinear,
)
from .parametrize import parametrize
from .standardized import Standardized, eval_cache

__version__ = VERSION

__all__ = [
    "BatchChannelNorm1d",
    "BatchChannelNorm2d",
    "BatchChannelNorm3d",
    "EstimatedBatchNorm",
    "Formula",
    "Standardized",
    "WSConv1d",
    "WSConv2d",
    "WSConv3d",
    "WSConvTranspose1d",
    "WSConvTranspose2d",
    "WSConvTranspose3d",
    "WSLinear",
    "adopt",
    "checkpoints",
    "convert",
    "cpu_capability",
    "decompositions",
    "eval_cache",
    "fold",
    "formulas",
    "group",
    "hold",
    "info",
    "parametrize",
    "reference",
    "standardize",
    "standardize_many",
]

if "torch.distributed.tensor" in sys.modules:  # else it would take far longer than all of torch_ws
    from . import dtensor as dtensor


def __dir__():
    return sorted(__all__)
