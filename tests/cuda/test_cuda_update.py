"""update_many and norms_many on a GPU: against the CPU's, torch.optim, the forward kernel."""

import pytest
import torch
from accuracy import relative_error
from cuda_check import all_equal, needs_gpu
from optimizer_steps import (
    RULES,
    composed,
    fused,
    make_states,
    optimizer_for,
    parameters_of,
    scalars_of,
    states_of,
)
from torch_ws import standardize
from torch_ws.core.update import raw_norms_many

pytestmark = needs_gpu

# Flat, part of a warp, a warp, blocks of 128 and 256, a cluster or a block of 512, split.
SHAPES = [(33, 147), (300, 9), (130, 64), (130, 576), (9, 4608), (3, 9216), (3, 18432)]
SHAPES.append((2, 400_000))


def on_gpu(tensors):
    return [t.detach().cuda() for t in tensors]


def made(dtype=torch.float32):
    weights = [torch.randn(shape) * 0.05 + 0.01 for shape in SHAPES]
    return weights, [(torch.randn(shape) + 0.25).to(dtype) for shape in SHAPES]


def gpu_optimizer(rule, weights, steps_on="cuda"):
    optimizer = optimizer_for(rule, on_gpu(weights))
    if RULES[rule][0] is not torch.optim.SGD:
        make_states(optimizer)
        for state in optimizer.state.values():
            state["step"] = state["step"].to(steps_on)
    return optimizer


def written(optimizer, outs):
    return [t.detach().clone() for t in (*parameters_of(optimizer), *states_of(optimizer), *outs)]


@pytest.mark.parametrize("rule", RULES)
def test_rules(rule):
    # three steps in one launch each and more for long rows, by the error of float32's composition
    weights, grads = made()
    ours = gpu_optimizer(rule, weights)
    judge, peer = (
        optimizer_for(rule, [w.to(dtype, copy=True) for w in weights])
        for dtype in (torch.float64, torch.float32)
    )
    for _ in range(3):
        outs = fused(ours, on_gpu(grads))
        expected, peers = composed(judge, grads), composed(peer, grads)
    lists = [[*parameters_of(o), *states_of(o)] for o in (ours, judge, peer)]
    for ts, more in zip(lists, (outs, expected, peers), strict=True):
        ts += more
    for actual, exact, other in zip(*lists, strict=True):
        allowed = 4 * relative_error(other.detach(), exact.detach()) + 4 * 2.0**-23
        assert relative_error(actual.detach().cpu(), exact.detach()) <= allowed


# (out, grad): every pair beside float32 weights; a float32 grad of a 16-bit out is a sum of several
@pytest.mark.parametrize(
    "dtype, grad_dtype",
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ],
)
def test_out_is_the_forward_kernels(dtype, grad_dtype):
    # to the last bit, so that training goes on from a checkpoint
    weights, grads = made(grad_dtype)
    optimizer = gpu_optimizer("momentum", weights)
    gains, shifts = ([torch.randn(w.shape[0]).cuda() for w in weights] for _ in range(2))
    outs = fused(
        optimizer, on_gpu(grads), gain=gains, new_gain=gains, new_shift=shifts, dtype=dtype
    )
    for i, (p, out) in enumerate(zip(parameters_of(optimizer), outs, strict=True)):
        assert torch.equal(out, standardize(p.detach(), gains[i], shifts[i], dtype=dtype))


@pytest.mark.parametrize("rule", ["momentum", "adamw"])
def test_close_to_the_cpus(rule):
    weights, grads = made()
    cpu = optimizer_for(rule, [w.clone() for w in weights])
    gpu = gpu_optimizer(rule, weights)
    options = {"clip": 0.05, "clip_eps": 1e-3}
    lists = []
    for optimizer, gradients in ((cpu, grads), (gpu, on_gpu(grads))):
        outs = fused(optimizer, gradients, **options)
        lists.append([*parameters_of(optimizer), *states_of(optimizer), *outs])
    for ours, theirs in zip(*lists, strict=True):
        assert relative_error(ours.detach().cpu(), theirs.detach().double()) <= 1e-5


def test_numbers_on_the_device():
    # in a graph: what they are when it is replayed, and nothing is written where an inf was found
    weights, grads = made()
    optimizer = gpu_optimizer("momentum", weights)
    numbers = {name: torch.tensor([x]).cuda() for name, x in {"lr": 0.05, "found_inf": 0.0}.items()}
    gradients = on_gpu(grads)
    outs = fused(optimizer, gradients, **numbers)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        fused(optimizer, gradients, outs=outs, **numbers)
    before = written(optimizer, outs)
    numbers["found_inf"].fill_(1.0)
    graph.replay()
    assert all_equal(written(optimizer, outs), before)
    numbers["found_inf"].fill_(0.0)
    graph.replay()
    pairs = zip(written(optimizer, outs), before, strict=True)
    assert not any(torch.equal(after, b) for after, b in pairs)


def test_a_graph_counts_adams_steps():
    # on the device: its replays are the steps after
    weights, grads = made()
    graphed, eager = (gpu_optimizer("adamw, all", weights) for _ in range(2))
    gradients = on_gpu(grads)
    outs, expected = (fused(optimizer, gradients) for optimizer in (graphed, eager))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        fused(graphed, gradients, outs=outs)
    for _ in range(2):
        graph.replay()
        fused(eager, gradients, outs=expected)
    assert all_equal(written(graphed, outs), written(eager, expected))


def test_steps_on_the_cpu():
    # where torch has them unless the optimizer is fused or capturable
    weights, grads = made()
    found = []
    for device in ("cpu", "cuda"):
        optimizer = gpu_optimizer("amsgrad", weights, device)
        for _ in range(2):
            outs = fused(optimizer, on_gpu(grads))
        found.append(written(optimizer, outs))
    assert all_equal(*found)


def test_no_update_of_float64():
    optimizer = optimizer_for("sgd", [torch.randn(3, 64).double().cuda()])
    with pytest.raises(RuntimeError, match="no update of float64 weights on CUDA"):
        fused(optimizer, [torch.randn(3, 64).double().cuda()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms(dtype):
    weights, grads = made(dtype)
    gains = [torch.randn(w.shape[0]) for w in weights]
    scalars = [float(n) for w in weights for n in scalars_of("paper", w)]
    rest = [0] * len(weights), scalars, True
    ours = raw_norms_many(on_gpu(grads), on_gpu(weights), on_gpu(gains), *rest)
    theirs = raw_norms_many(grads, weights, gains, *rest)
    for actual, expected in zip(ours, theirs, strict=True):
        assert relative_error(actual.cpu(), expected.double()) <= 1e-5
