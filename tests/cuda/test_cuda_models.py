"""Whole models on a GPU: recurrent layers parametrized, programs exported, files saved."""

import other_process
import pytest
import torch
import torch_ws
from conversions import close, converted
from cuda_check import needs_gpu
from parametrized import (
    FAN_IN,
    RECURRENT,
    assert_follows_its_weights,
    flat,
    loss,
    parametrized,
)
from torch_ws.inspect import channel_statistics

pytestmark = needs_gpu


@pytest.mark.parametrize("case", RECURRENT)
def test_parametrized_recurrent_layers(case):
    """cuDNN wants all weights and biases of one dtype, in one flat buffer."""
    module, plain, names, inputs, dim = parametrized(case, **FAN_IN, gain=True)
    module.cuda(), plain.cuda()
    inputs = tuple(x.cuda() for x in inputs)
    assert_follows_its_weights(module, plain, names, inputs, dim)
    loss([o.cpu() for o in flat(module(*inputs))]).backward()
    assert all(p.grad.isfinite().all() for p in module.parameters())
    torch.optim.SGD(module.parameters(), lr=0.5).step()
    assert_follows_its_weights(module, plain, names, inputs, dim)
    module.float()
    inputs = tuple(x.float() for x in inputs)
    with torch.autocast("cuda", dtype=torch.float16):
        actual = flat(module(*inputs))
    for ours, exact in zip(actual, flat(module(*inputs)), strict=True):
        torch.testing.assert_close(ours.float(), exact, atol=0.02, rtol=0.02)  # float16


@pytest.mark.parametrize("grouped", [False, True])  # the op and its list form
def test_exported_programs(grouped):
    model, x, _ = converted("unet 2-d", grouped)
    model, x = model.double().cuda(), x.double().cuda()  # float32 convolutions may be TF32
    expected = model(x)
    program = torch.export.export(model, (x,))
    close(program.module()(x), expected)
    plain = program.run_decompositions(torch_ws.decompositions())
    close(plain.module()(x), expected)


def test_what_was_saved_on_a_gpu_loads_in_a_process_without_one(tmp_path):
    model, x, expected = converted("unet 2-d")
    torch.save(model.cuda(), tmp_path / "model.pt")
    torch.save((x, expected), tmp_path / "expected.pt")
    code = """
import sys, torch, torch_ws
model = torch.load(sys.argv[1], weights_only=False, map_location="cpu")
x, expected = torch.load(sys.argv[2])
with torch.no_grad():
    assert torch.equal(model(x), expected)
"""
    other_process.run(code, tmp_path / "model.pt", tmp_path / "expected.pt")


def test_channel_statistics():
    weight = torch.randn(5, 4, 3)
    found = channel_statistics(weight.cuda(), channel_dim=1)
    assert found.mean.is_cuda and found.nan.is_cuda
    expected = channel_statistics(weight, channel_dim=1)
    torch.testing.assert_close(found.std.cpu(), expected.std, rtol=1e-12, atol=0)
