"""Batch-channel normalization on a GPU: as on the CPU, without waiting, in a CUDA graph."""

import copy

import pytest
import torch
from batch_channel_cases import varied
from cuda_check import needs_gpu
from torch._dynamo.testing import CompileCounterWithBackend
from torch_ws import BatchChannelNorm2d

pytestmark = needs_gpu

CHANNELS, GROUPS = 6, 3
RATES = (0.1, 0.7)
MODES = {"batch": {}, "estimated": {"estimated": True}}
every_mode = pytest.mark.parametrize("mode", MODES)


def make(mode, dtype=torch.float64):
    """(a layer on the GPU, its twin on the CPU in float64)"""
    made = varied(BatchChannelNorm2d(CHANNELS, GROUPS, dtype=dtype, **MODES[mode]))
    return copy.deepcopy(made).cuda(), made.double()


def passes(layer, x):
    """(output, the input's gradient), of a forward and a backward pass."""
    x = x.detach().requires_grad_()
    out = layer(x)
    out.float().pow(3).sum().backward()
    return out.detach(), x.grad


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@every_mode
def test_as_on_the_cpu(mode, memory_format):
    made, twin = make(mode)
    for training in (True, True, False):
        x = torch.randn(2, CHANNELS, 5, 4, dtype=torch.float64)
        x = x.to(memory_format=memory_format)
        out, grad = passes(made.train(training), x.cuda())
        assert out.stride() == x.stride()
        expected = passes(twin.train(training), x)
        torch.testing.assert_close((out.cpu(), grad.cpu()), expected)
    torch.testing.assert_close(
        {k: v.cpu() for k, v in made.state_dict().items()}, dict(twin.state_dict())
    )
    for ours, theirs in zip(made.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad.cpu(), theirs.grad)


# PyTorch's group normalization on a GPU takes no float32 parameters for half inputs by itself
@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@every_mode
def test_half_inputs(mode, dtype, autocast):
    made, twin = make(mode, torch.float32)
    x = torch.randn(2, CHANNELS, 8, 8).to(dtype)
    with torch.autocast("cuda", dtype=dtype, enabled=autocast):
        out = made(x.cuda())
    expected = twin(x.double())
    error = (out.cpu().double() - expected).abs().max() / expected.abs().max()
    assert error < 4 * torch.finfo(dtype).eps
    out.float().sum().backward()
    assert made.bn.running_var.dtype == torch.float32
    torch.testing.assert_close(
        made.bn.running_var.cpu().double(), twin.bn.running_var, rtol=1e-5, atol=0
    )


@every_mode
def test_nothing_waits_for_the_device(mode):
    made, _ = make(mode)
    x = torch.randn(2, CHANNELS, 5, 4, dtype=torch.float64, device="cuda")
    passes(made, x)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for rate in RATES:
            if mode == "estimated":
                made.bn.rate.fill_(rate)
            passes(made, x)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_cuda_graph():
    """A recorded forward pass goes on with the rate of each replay, in the layer's own buffers."""
    made, _ = make("estimated", torch.float32)
    twin = copy.deepcopy(made)
    x = torch.randn(2, CHANNELS, 5, 4, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(stream):
        made(x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        out = made(x)
    made.load_state_dict(twin.state_dict())
    for rate in RATES:
        for layer in (made, twin):
            layer.bn.rate.fill_(rate)
        x.normal_()
        graph.replay()
        torch.testing.assert_close(out, twin(x).detach())
    torch.testing.assert_close(dict(made.state_dict()), dict(twin.state_dict()))


def test_compiled_once_for_all_rates():
    torch._dynamo.reset()
    made, _ = make("estimated", torch.float32)
    twin = copy.deepcopy(made)
    counter = CompileCounterWithBackend("inductor")
    fast = torch.compile(made, fullgraph=True, backend=counter)
    for rate in RATES:
        x = torch.randn(2, CHANNELS, 5, 4, device="cuda")
        for layer in (made, twin):
            layer.bn.rate.fill_(rate)
        torch.testing.assert_close(passes(fast, x), passes(twin, x), rtol=1e-4, atol=1e-4)
    assert counter.frame_count == 1
    torch.testing.assert_close(dict(made.state_dict()), dict(twin.state_dict()))
    torch._dynamo.reset()
