"""Fixtures: a forced instruction set, the CUDA kernels on the CPU, the same random weights."""

import ctypes
import os

import pytest
import torch
import torch_ws
from filelock import FileLock
from small_network import batch, twins
from torch_ws import _C

WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0))
if WORKERS:  # they share the cores, and what they start has as many threads as they
    torch.set_num_threads(max(1, os.cpu_count() // WORKERS))
    os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())

ISAS = ("avx512", "avx2", "default")


def available_isas():
    before = torch_ws.cpu_capability()
    found = []
    for isa in ISAS:
        try:
            _C.set_cpu_capability(isa)
        except ValueError:
            continue
        found.append(isa)
    _C.set_cpu_capability(before)
    return found


@pytest.fixture(params=available_isas())
def isa(request):
    """Runs a test once with the kernels of each instruction set that this machine has."""
    before = torch_ws.cpu_capability()
    _C.set_cpu_capability(request.param)
    assert torch_ws.cpu_capability() == request.param
    yield request.param
    assert torch_ws.cpu_capability() == request.param, "the test left the forced kernels"
    _C.set_cpu_capability(before)


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory):
    """The CUDA kernels compiled for the CPU, once for all files and workers: a minute."""
    from cuda_stand_in.kernels import Kernels, build, toolkit_includes

    includes = toolkit_includes()
    if includes is None:
        pytest.skip("no CUDA toolkit: cuda_fp16.h is not found")
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if WORKERS else folder) / "cuda_stand_in"
    library = folder / "libws_stand_in.so"
    with FileLock(f"{folder}.lock"):
        if not library.exists():
            folder.mkdir(exist_ok=True)
            build(folder, includes)
    return Kernels(ctypes.CDLL(str(library)))


@pytest.fixture
def kernels(stand_in):
    """The stand-in, with one thread: for small references more threads take longer."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield stand_in
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def pair():
    """Two networks of the same parameters, one to group and one to judge it by, and a batch."""
    model, judge = twins()
    return model, judge, batch()


@pytest.fixture
def fresh_compiler():
    """Forgets what torch.compile knows, before a test and after it."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
