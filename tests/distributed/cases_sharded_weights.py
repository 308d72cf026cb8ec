"""DTensors: every placement of a weight, its gain and shift, and its gradient."""

import copy

import torch
import torch.distributed as dist
import torch_ws
import torch_ws.distributed
from one_process import assert_same, case, compare, full, refused, target_loss
from torch import nn
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Replicate,
    Shard,
    distribute_tensor,
    init_device_mesh,
)
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch_ws.core.many import raw_forward_into


def sharded_like(tensor, mesh, placement):
    if placement.is_partial():
        return DTensor.from_local(tensor / mesh.size(), mesh, [placement])
    return distribute_tensor(tensor, mesh, [placement])


def leaf(tensor):
    return tensor.detach().clone().requires_grad_()


@case
def sharded_weights(rank, world):
    """Every placement of weight, vectors and gradient; one weight, and lists with plain ones."""
    mesh = init_device_mesh("cpu", (world,))
    for channels, channel_dim in ((7, 0), (6, 1), (2, 0)):  # uneven; transposed; empty shards
        shape = (channels, 3, 2) if channel_dim == 0 else (3, channels, 2)
        weight, cotangent = torch.randn(2, *shape, dtype=torch.float64)
        gain, shift = torch.randn(2, channels, dtype=torch.float64)
        for tensor in (weight, cotangent, gain, shift):
            dist.broadcast(tensor, 0)
        ours = [leaf(t) for t in (weight, gain, shift)]
        options = {"formula": "nfnet", "channel_dim": channel_dim}
        expected = torch_ws.standardize(*ours, **options)
        expected.backward(cotangent)
        for placement in (Shard(0), Shard(1), Replicate(), Partial()):
            for of_vectors in (Shard(0), Replicate()):
                for of_grad in (placement, Replicate(), Partial()):
                    theirs = [
                        sharded_like(weight, mesh, placement).requires_grad_(),
                        sharded_like(gain, mesh, of_vectors).requires_grad_(),
                        sharded_like(shift, mesh, of_vectors).requires_grad_(),
                    ]
                    with CommDebugMode() as communication:
                        actual = torch_ws.standardize(*theirs, **options)
                    local = placement == Shard(channel_dim) or placement.is_replicate()
                    fits = of_vectors.is_replicate() or placement == Shard(channel_dim)
                    assert (communication.get_total_counts() == 0) == (local and fits)
                    assert actual.placements == (placement if local else Replicate(),)
                    assert_same(actual, expected, "result")
                    actual.backward(sharded_like(cotangent, mesh, of_grad))
                    for name, a, e in zip(("weight", "gain", "shift"), theirs, ours, strict=True):
                        assert_same(a.grad, e.grad, f"gradient of {name}")


@case
def sharded_weights_in_a_list(rank, world):
    mesh = init_device_mesh("cpu", (world,))
    weights = [torch.randn(7, 3, 2), torch.randn(4, 5, 2), torch.randn(3, 4)]
    gains = [torch.randn(7), None, torch.randn(3)]
    for tensor in (*weights, gains[0], gains[2]):
        dist.broadcast(tensor, 0)
    ours = [leaf(w) for w in weights], [None if g is None else leaf(g) for g in gains]
    theirs = (
        [
            distribute_tensor(weights[0], mesh, [Shard(0)]).requires_grad_(),
            distribute_tensor(weights[1], mesh, [Shard(1)]).requires_grad_(),
            leaf(weights[2]),
        ],
        [distribute_tensor(gains[0], mesh, [Replicate()]).requires_grad_(), None, leaf(gains[2])],
    )
    options = {"formula": ["paper", "timm", "nfnet"], "channel_dim": [0, 1, 0]}
    expected = torch_ws.standardize_many(*ours, **options)
    actual = torch_ws.standardize_many(*theirs, **options)
    assert [getattr(a, "placements", None) for a in actual] == [(Shard(0),), (Shard(1),), None]
    for e, a in zip(expected, actual, strict=True):
        assert_same(a, e, "result", rtol=0, atol=0)
    sum(e.pow(3).sum() for e in expected).backward()
    sum(full(a.pow(3).sum()) for a in actual).backward()
    for e, a in zip(ours[0] + ours[1], theirs[0] + theirs[1], strict=True):
        if e is not None:
            assert_same(a.grad, e.grad, "gradient")


@case
def sharded_weights_into_memory_that_is_there(rank, world):
    """Each rank's part is written where it is; an out that is placed otherwise is refused."""
    mesh = init_device_mesh("cpu", (world,))
    weights, gain = [torch.randn(7, 3, 2), torch.randn(4, 5), torch.randn(3, 4)], torch.randn(7)
    for tensor in (*weights, gain):
        dist.broadcast(tensor, 0)
    numbers = [0, 0, 0], [1e-5, 0, 0, 1, 1.0] * 3
    expected = torch.ops.ws.forward_many(
        weights, [gain, None, None], [None] * 3, *numbers, torch.bfloat16
    )

    outs = [
        distribute_tensor(torch.zeros_like(expected[0]), mesh, [Shard(0)]),
        distribute_tensor(torch.zeros_like(expected[1]), mesh, [Replicate()]),
        torch.zeros_like(expected[2]),
    ]
    theirs = [
        distribute_tensor(weights[0], mesh, [Shard(0)]),
        distribute_tensor(weights[1], mesh, [Shard(1)]),
        weights[2],
    ]
    gains = [distribute_tensor(gain, mesh, [Replicate()]), None, None]
    raw_forward_into(outs, theirs, gains, [None] * 3, *numbers)
    for e, out in zip(expected, outs, strict=True):
        assert_same(out, e, "result", rtol=0, atol=0)
    outs[1] = distribute_tensor(torch.zeros_like(expected[1]), mesh, [Shard(1)])
    refused(
        ValueError,
        "out must be placed as",
        lambda: raw_forward_into(outs, theirs, gains, [None] * 3, *numbers),
    )


@case
def sharded_weights_on_a_mesh_of_two_dimensions(rank, world):
    mesh = init_device_mesh("cpu", (1, world))
    weight = torch.randn(7, 6, dtype=torch.float64)
    dist.broadcast(weight, 0)
    expected = leaf(weight)
    torch_ws.standardize(expected).pow(3).sum().backward()
    for placements in ([Replicate(), Shard(0)], [Shard(0), Shard(0)], [Shard(0), Shard(1)]):
        sharded = distribute_tensor(weight, mesh, placements).requires_grad_()
        torch_ws.standardize(sharded).pow(3).sum().backward()
        assert_same(sharded.grad, expected.grad, "gradient")


@case
def the_op_without_a_graph_and_mixed_arguments(rank, world):
    mesh = init_device_mesh("cpu", (world,))
    weight = torch.arange(12.0).reshape(4, 3).square()
    sharded = distribute_tensor(weight, mesh, [Shard(0)])
    with torch.inference_mode():
        results = torch.ops.ws.standardize(sharded, eps=0.5, dtype=torch.bfloat16)
    expected = torch.ops.ws.standardize(weight, eps=0.5, dtype=torch.bfloat16)
    local = results.to_local()
    mine = distribute_tensor(expected, mesh, [Shard(0)]).to_local()
    assert torch.equal(local, mine) and local.dtype == torch.bfloat16
    message = "gain must be a DTensor, as the weight is"
    refused(TypeError, message, lambda: torch_ws.standardize(sharded, torch.ones(4)))


@case
def tensor_parallel_layers(rank, world):
    """Megatron's pair of linear layers; the second one's weight is cut through its channels."""
    mesh = init_device_mesh("cpu", (world,))
    torch.manual_seed(0)
    single = nn.Sequential(
        torch_ws.WSLinear(4, 6), nn.GELU(), torch_ws.WSLinear(6, 3, formula="nfnet")
    ).double()
    model = parallelize_module(
        copy.deepcopy(single), mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()}
    )
    x = torch.linspace(-1, 1, 20, dtype=torch.float64).reshape(5, 4)
    assert_same(model(x), single(x), "output")
    target_loss(single(x)).backward()
    target_loss(model(x)).backward()
    compare(model, single, "grad")
