"""Loads the native libraries, or says plainly why not."""

from __future__ import annotations

import json
import os
import platform
import warnings
from pathlib import Path

import torch

PACKAGE = Path(__file__).parent.parent
CAPABILITIES = ("avx512", "avx2", "default")


def _build_info() -> dict:
    path = PACKAGE / "build.json"
    return json.loads(path.read_text()) if path.exists() else {}


BUILD = _build_info()


def _explain(error: BaseException) -> str:
    libraries = ", ".join(sorted(p.name for p in PACKAGE.glob("*.so"))) or "none"
    return f"""torch_ws could not load its native library.

  reason      {error}
  found       {libraries} in {PACKAGE}
  torch       {torch.__version__} (torch_ws needs 2.10 or later)
  built with  torch {BUILD.get("torch", "unknown")}, {BUILD.get("compiler", "unknown compiler")}
  machine     {platform.platform()}, Python {platform.python_version()}

Likely causes:
  1. The package was not built: a source tree needs `pip install -e . --no-build-isolation`
     (or `make build`); `found` above then names libws.so.
  2. PyTorch is older than 2.10: its stable ABI lacks what the library needs. Upgrade torch.
  3. The library was built for another machine or C library (`GLIBC_... not found`, `wrong ELF
     class`). Build it here: `pip install .` in a checkout of the sources (README, Install).

`torch_ws.reference` computes the same in plain PyTorch, with formulas.py and _check.py alone: copy
the three from python/torch_ws into a package.
"""


def load_cpu() -> None:
    """Defines the ops. A second copy of the library would crash the process, so never twice."""
    if hasattr(torch.ops.ws, "standardize"):
        return
    capability = os.environ.get("WS_CPU_CAPABILITY")
    if capability and capability not in CAPABILITIES:
        warnings.warn(
            f"WS_CPU_CAPABILITY must be one of {', '.join(CAPABILITIES)}; "
            f"{capability!r} is ignored",
            stacklevel=2,
        )
    try:
        torch.ops.load_library(PACKAGE / "libws.so")
    except (OSError, RuntimeError) as error:
        raise ImportError(_explain(error)) from error


def load_cuda() -> str | None:
    """Loads the CUDA kernels where this PyTorch can use them; else returns the reason."""
    built = BUILD.get("cuda")
    if built is None:
        return f"built without CUDA: {BUILD.get('cuda_off', 'no build information')}"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} has no CUDA"
    if torch.version.cuda.split(".")[0] != built.split(".")[0]:
        return f"built with CUDA {built}, but torch {torch.__version__} has {torch.version.cuda}"
    try:
        torch.ops.load_library(PACKAGE / "libws_cuda.so")
    except (OSError, RuntimeError) as error:
        return f"libws_cuda.so does not load: {error}"
    return None


load_cpu()
CUDA_REASON = load_cuda()  # None: loaded
