"""Streams, devices, CUDA graphs, and the same bits in every run, on a GPU."""

import pytest
import torch
from cuda_check import all_equal, check, needs_gpu
from torch_ws import standardize, standardize_many

pytestmark = needs_gpu

# Rows of every kind of team, and one that is split over blocks: (rows, cols).
SHAPES = [(3000, 9), (300, 36), (300, 576), (300, 2304), (300, 30_000), (2, 500_000)]


def make_step(shapes):
    """Forward and backward of all weights at once, on tensors that stay the same."""
    weights = [torch.randn(shape, device="cuda", requires_grad=True) for shape in shapes]
    gains = [torch.randn(shape[0], device="cuda", requires_grad=True) for shape in shapes]
    grads = [torch.randn(shape, device="cuda") for shape in shapes]

    def step():
        outs = standardize_many(weights, gains)
        gradients = torch.autograd.grad(outs, (*weights, *gains), grads)
        return *(out.detach() for out in outs), *gradients

    return weights, step


@pytest.mark.parametrize("many", [False, True])
def test_current_stream(many):
    # The weight is written late on a side stream: a kernel on any other stream sees the zeros.
    def function(weight):
        return standardize_many([weight])[0] if many else standardize(weight)

    source = torch.randn(256, 576, device="cuda")
    weight = torch.zeros_like(source)
    expected = function(source)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        weight.copy_(source)
        out = function(weight)
    stream.synchronize()
    assert torch.equal(out, expected)


def test_backward_runs_on_the_forward_stream():
    weight = torch.randn(256, 576, device="cuda", requires_grad=True)
    source = torch.randn(256, 576, device="cuda")
    expected = torch.autograd.grad(standardize(weight), weight, source)[0]
    grad = torch.zeros_like(source)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        out = standardize(weight)
        torch.cuda._sleep(100_000_000)
        grad.copy_(source)
        found = torch.autograd.grad(out, weight, grad)[0]
    stream.synchronize()
    assert torch.equal(found, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_second_device():
    weight = torch.randn(64, 576, device="cuda:1")
    with torch.cuda.device(0):
        check(weight, torch.randn(64, 576, device="cuda:1"))
        assert torch.cuda.current_device() == 0


# One weight; all kinds of rows; more weights than the descriptors of one launch hold.
@pytest.mark.parametrize("shapes", [[(64, 576)], SHAPES, [(5, 147)] * 400])
def test_cuda_graph(shapes):
    weights, step = make_step(shapes)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # as PyTorch asks for: once before the capture
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for _ in range(3):
        with torch.no_grad():
            for weight in weights:
                weight.copy_(torch.randn_like(weight))
        graph.replay()
        assert all_equal(captured, step())


def test_a_thousand_repeats_are_bitwise_equal():
    _, step = make_step(SHAPES)
    first = step()
    # counted on the GPU: a comparison on the host would let every kernel finish alone
    different = torch.zeros((), dtype=torch.int64, device="cuda")
    for _ in range(1000):
        for a, b in zip(first, step(), strict=True):
            different += (a != b).any()
    assert different.item() == 0


def test_repeats_are_bitwise_equal_under_pressure():
    """Most of the memory taken, and copies on other streams in every SM's way."""
    _, step = make_step(SHAPES)
    first = step()
    different = torch.zeros((), dtype=torch.int64, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    taken = torch.empty(
        max(0, torch.cuda.mem_get_info()[0] - 3 * 2**30), dtype=torch.uint8, device="cuda"
    )
    streams = [torch.cuda.Stream() for _ in range(2)]
    noise = [torch.randn(1 << 24, device="cuda") for _ in streams]
    targets = [torch.empty_like(source) for source in noise]
    torch.cuda.synchronize()
    for _ in range(1000):
        for stream, source, target in zip(streams, noise, targets, strict=True):
            with torch.cuda.stream(stream):
                torch.neg(source, out=target)
        for a, b in zip(first, step(), strict=True):
            different += (a != b).any()
    torch.cuda.synchronize()
    assert different.item() == 0
    del taken, noise, targets
    torch.cuda.empty_cache()


def test_concurrent_streams_do_not_share_memory():
    # the statistics of split rows pass through memory: two streams must not share it
    shapes = [(2, 500_000), (300, 30_000), (4, 2_000_001)]
    steps = [make_step(shapes)[1] for _ in range(4)]
    expected = [step() for step in steps]
    streams = [torch.cuda.Stream() for _ in steps]
    torch.cuda.synchronize()
    for _ in range(20):
        found = []
        for stream, step in zip(streams, steps, strict=True):
            with torch.cuda.stream(stream):
                found.append(step())
        torch.cuda.synchronize()
        assert all(all_equal(a, b) for a, b in zip(found, expected, strict=True))
