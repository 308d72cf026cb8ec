"""Several processes compute what one does: DistributedDataParallel, FSDP2 and sharded weights.

The cases are in cases_*.py. One group of processes runs them all, distributed_workers.py, because
starting it takes longer than they do.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("this PyTorch has no gloo", allow_module_level=True)

from distributed_workers import CASES

pytestmark = pytest.mark.slow

WORKERS = Path(__file__).with_name("distributed_workers.py")
LIMIT = 150  # seconds, for a group of processes that hangs


@pytest.fixture(scope="module", params=[2, 3])  # an even and an odd number
def outcomes(request, tmp_path_factory):
    """(number of processes, case -> each rank's traceback, or "ok")."""
    world, folder = request.param, tmp_path_factory.mktemp("group")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen(
            [sys.executable, WORKERS, str(rank), str(world), folder],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=(folder / f"stderr.{rank}").open("w"),
        )
        for rank in range(world)
    ]
    deadline = time.monotonic() + LIMIT
    while any(p.poll() is None for p in processes) and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in processes:
        process.kill()
        process.wait()
    outcomes = {}
    for name in CASES:
        files = [folder / f"{name}.{rank}" for rank in range(world)]
        outcomes[name] = [file.read_text() if file.exists() else "did not end" for file in files]
    errors = "\n".join((folder / f"stderr.{rank}").read_text()[-2000:] for rank in range(world))
    return world, outcomes, errors


@pytest.mark.parametrize("name", CASES)
def test_processes_agree_with_one(outcomes, name):
    world, results, errors = outcomes
    if results[name] != ["ok"] * world:
        text = "\n".join(f"rank {rank}: {result}" for rank, result in enumerate(results[name]))
        pytest.fail(f"{text}\n{errors}", pytrace=False)


WITHOUT_DTENSORS = """
import sys, torch, torch_ws
assert "torch.distributed.tensor" not in sys.modules
"""
DTENSORS_FIRST = """
import os, sys, torch
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh
import torch_ws
store = f"file://{sys.argv[1]}"
torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
weight = torch.arange(12.0).reshape(4, 3)
sharded = distribute_tensor(weight, init_device_mesh("cpu", (1,)), [Shard(0)])
assert torch.equal(torch_ws.standardize(sharded).to_local(), torch_ws.standardize(weight))
sys.stdout.flush()
os._exit(0)
"""


@pytest.mark.parametrize(
    "script", [WITHOUT_DTENSORS, DTENSORS_FIRST], ids=["not imported", "imported first"]
)
def test_dtensors_are_known_without_an_import_of_their_own(script, tmp_path):
    """The rules are there if torch.distributed.tensor is, whose import takes long."""
    arguments = [sys.executable, "-c", script, tmp_path / "store"]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    subprocess.run(arguments, env=environment, check=True, timeout=120)
