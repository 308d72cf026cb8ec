"""Weight Standardization for PyTorch in native kernels, forward and backward."""

from __future__ import annotations

import sys

from .core import load as _load  # noqa: F401  isort: skip  # first: defines torch.ops.ws
from . import _C as _C
from . import checkpoints, reference
from ._C import cpu_capability
from .core.decompositions import decompositions
from .core.many import standardize_many
from .core.standardize import standardize
from .formulas import Formula, formulas
from .info import VERSION, info
from .layers.batch_channel_norm import BatchChannelNorm1d, BatchChannelNorm2d, BatchChannelNorm3d
from .layers.estimated_batch_norm import EstimatedBatchNorm
from .layers.modules import (
    WSConv1d,
    WSConv2d,
    WSConv3d,
    WSConvTranspose1d,
    WSConvTranspose2d,
    WSConvTranspose3d,
    WSLinear,
)
from .layers.parametrize import parametrize
from .layers.standardized import Standardized, eval_cache
from .models.adopt import adopt
from .models.convert import convert
from .models.fold import fold
from .similarity import weight_similarity
from .training.fuse import fuse
from .training.group import group
from .training.hold import hold

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
    "fuse",
    "group",
    "hold",
    "info",
    "parametrize",
    "reference",
    "standardize",
    "standardize_many",
    "weight_similarity",
]

# Pickles of whole models name a class by its module: in the first releases, by these.
for _name in ("modules", "batch_channel_norm", "estimated_batch_norm", "parametrize"):
    sys.modules[f"{__name__}.{_name}"] = sys.modules[f"{__name__}.layers.{_name}"]

if "torch.distributed.tensor" in sys.modules:  # else it would take far longer than all of torch_ws
    from .distributed import dtensor as dtensor


def __dir__():
    return sorted(__all__)
