"""Runs Python code in a process of its own, where torch_ws cannot be imported or no GPU is seen."""

import os
import subprocess
import sys
from pathlib import Path

BLOCK = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch_ws":
            raise ImportError("torch_ws is not here")

sys.meta_path.insert(0, Blocked())
"""

# The end of every piece of code: that it was so, and that the code ran to here.
SEEN = """
try:
    import torch_ws
except ImportError:
    print("without torch_ws")
else:
    print("with torch_ws")
import torch
print("GPUs:", torch.cuda.device_count())
"""


def run(code, *arguments, torch_ws=True):
    """Its lines of output. It sees the arguments as sys.argv[1:] and the modules of this folder."""
    path = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    result = subprocess.run(
        [sys.executable, "-c", ("" if torch_ws else BLOCK) + code + SEEN, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(path)},
    )
    assert result.returncode == 0, result.stderr
    *lines, seen, gpus = result.stdout.splitlines()
    assert seen == ("with torch_ws" if torch_ws else "without torch_ws")
    assert gpus == "GPUs: 0"
    return lines
