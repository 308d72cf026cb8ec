"""Fixtures that force an instruction set, and random weights that are the same in every run."""

import pytest
import torch
import torch_ws
from torch_ws import _C

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


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
