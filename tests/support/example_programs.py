"""Runs the examples as their users do, each in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PEERS = Path(sys.prefix) / "peers"  # timm and torchvision, which `make test-all` puts there
NO_PEERS = "make test-all installs timm and torchvision"


def run_example(name, *arguments, peers=False, status=0, **environment):
    """Its lines of output, or of its errors where it is to fail."""
    path = [str(PEERS)] if peers else []
    launcher = [str(Path(__file__).parent / "with_peers.py")] if peers else []
    done = subprocess.run(
        [sys.executable, *launcher, str(EXAMPLES / name), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path),
            "CUDA_VISIBLE_DEVICES": "",
            **environment,
        },
    )
    assert done.returncode == status, done.stdout + done.stderr
    return (done.stdout if status == 0 else done.stderr).splitlines()
