"""The build stage: the libraries that were brought along, if they load here; else compiles them."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from .libraries import FOLDER, ROOT, digest

PACKAGE = ROOT / "python" / "torch_ws"
# In a process of its own: what is loaded stays. Another architecture's kernels load and do not run.
LOADS = """
import torch, torch_ws
if torch_ws.info()["cuda_reason"]:
    raise ImportError(torch_ws.info()["cuda_reason"])
torch_ws.standardize(torch.randn(2, 9, device="cuda")).cpu()
"""


def bring() -> str | None:
    """Copies the libraries that were brought along into the source tree; why not, if not."""
    if not (FOLDER / "build.json").exists():
        return "none were brought along"
    if json.loads((FOLDER / "build.json").read_text(encoding="utf-8")).get("sources") != digest():
        return "those brought along were built from other sources"
    copies = [Path(shutil.copy(path, PACKAGE)) for path in FOLDER.iterdir()]
    done = subprocess.run([sys.executable, "-c", LOADS], stderr=subprocess.PIPE, text=True)
    if done.returncode == 0:
        return None
    for path in copies:  # newer than what was compiled: they would pass for the compiler's
        path.unlink()
    print(done.stderr, end="")
    reasons = re.findall(r"^(?:\w*Error: |  reason +)(.+)", done.stderr, re.MULTILINE)
    return f"those brought along do not load: {[f'exit status {done.returncode}', *reasons][-1]}"


def main() -> int:
    reason = bring()
    print(f"libraries: {'brought along' if reason is None else f'compiled here: {reason}'}")
    if reason is not None:
        subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], check=True)
    import torch_ws  # it is there now

    for key, value in torch_ws.info().items():
        print(f"{key:20}{value}")
    return 0 if torch_ws.info()["cuda_loaded"] else 1


if __name__ == "__main__":
    sys.exit(main())
