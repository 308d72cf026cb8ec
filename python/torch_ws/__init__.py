"""Weight Standardization for PyTorch in native kernels, forward and backward."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version

import torch

from . import _load  # isort: skip  # first: defines torch.ops.ws
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

try:
    __version__ = version("torch-ws")
except PackageNotFoundError:  # a source tree on sys.path
    __version__ = "unknown"

__all__ = [
    "BatchChannelNorm1d",
    "BatchChannelNorm2d",
    "BatchChannelNorm3d",
    "EstimatedBatchNorm",
    "Formula",
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


def info() -> dict[str, object]:
    """Versions, the instruction set in use, and the CUDA build or why it is not loaded."""
    build = _load.BUILD
    return {
        "torch_ws": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "built with torch": build.get("torch"),
        "compiler": build.get("compiler"),
        "cpu_capability": cpu_capability(),
        "cpu_threads": torch.get_num_threads(),
        "cuda_build": build.get("cuda"),
        "cuda_arch_list": build.get("cuda_architectures"),
        "cuda_loaded": _load.CUDA_REASON is None,
        "cuda_reason": _load.CUDA_REASON,
        "cuda_device": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
