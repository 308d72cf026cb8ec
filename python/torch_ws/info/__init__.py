"""What is installed: versions, instruction set, CUDA build.

A package, so that ``python -m torch_ws.info`` has a file of its own (``__main__``): `import
torch_ws.info` then finds this module loaded and leaves the function of that name in its place.
"""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from .._C import cpu_capability
from ..core import load

try:
    VERSION = version("torch-ws")
except PackageNotFoundError:  # a source tree on sys.path
    VERSION = "unknown"


def info() -> dict[str, object]:
    """Versions, the instruction set in use, and the CUDA build or why it is not loaded."""
    build = load.BUILD
    return {
        "torch_ws": VERSION,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "built with torch": build.get("torch"),
        "compiler": build.get("compiler"),
        "cpu_capability": cpu_capability(),
        "cpu_threads": torch.get_num_threads(),
        "cuda_build": build.get("cuda"),
        "cuda_arch_list": build.get("cuda_architectures"),
        "cuda_loaded": load.CUDA_REASON is None,
        "cuda_reason": load.CUDA_REASON,
        "cuda_device": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
