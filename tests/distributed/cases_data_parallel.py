"""DistributedDataParallel and FSDP2 as they are, without torch_ws.distributed."""

import torch
import torch_ws
from one_process import (
    assert_same,
    batches,
    case,
    network,
    refused,
    shard,
    trains_like_one_process,
)
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel


@case
def data_parallel(rank, world):
    trains_like_one_process(DistributedDataParallel, rank, world, gain=True, shift=True)


@case
def data_parallel_of_a_converted_model(rank, world):
    torch.manual_seed(0)
    single = nn.Sequential(
        nn.Conv2d(3, 7, 3), nn.GroupNorm(7, 7), nn.ReLU(), nn.Conv2d(7, 4, 3), nn.GroupNorm(1, 4)
    ).double()
    torch_ws.convert(single, preserve=True)
    model, _ = trains_like_one_process(DistributedDataParallel, rank, world, single)
    wrapped = DistributedDataParallel(nn.Conv2d(3, 4, 3))
    message = "'module' (Conv2d): is in DistributedDataParallel already"
    refused(ValueError, message, lambda: torch_ws.convert(wrapped, gain=True))
    torch_ws.fold(model)
    assert type(model.module[0]) is nn.Conv2d


@case
def fully_sharded(rank, world):
    for options in ({}, {"gain": True, "shift": True}):
        trains_like_one_process(shard, rank, world, **options)


@case
def fully_sharded_in_bfloat16(rank, world):
    """The gathered weight is bfloat16: as a single process that rounds its weights to it."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    model = shard(network(torch.float32), mp_policy=policy)
    rounded = network(torch.float32).to(torch.bfloat16)
    for everything, part in batches(1, rank, world, torch.bfloat16):
        expected = rounded(everything[2 * rank : 2 * rank + 2])
        assert_same(model(part), expected, "output", rtol=0, atol=0)


@case
def conversion_of_a_sharded_model(rank, world):
    torch.manual_seed(0)
    model = fully_shard(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    torch_ws.convert(model)
    assert type(model[0]) is torch_ws.WSConv2d and isinstance(model[0].weight, DTensor)
    refused(ValueError, "'0' (WSConv2d): its weight is sharded", lambda: torch_ws.fold(model))
    plain = fully_shard(nn.Sequential(nn.Conv2d(3, 4, 3)))
    message = "'0' (Conv2d): is sharded already"
    refused(ValueError, message, lambda: torch_ws.convert(plain, preserve=True))
    assert type(plain[0]) is nn.Conv2d


@case
def evaluation_sees_new_weights(rank, world):
    """FSDP2 gathers new weights into memory that may be the old ones', and counts no version."""
    model = nn.Sequential(nn.Sequential(torch_ws.WSLinear(100, 100, bias=False)), nn.Identity())
    model = shard(model).eval()
    x = torch.ones(1, 100).cumsum(1)
    stale = 0  # on some ranks only: to be counted, so that no rank waits for others
    with torch.no_grad():
        for _ in range(20):  # the memory is the same again in about half of the passes
            before = model(x)
            model[0][0].weight.mul_(-1)
            stale += not torch.equal(model(x), -before)
    assert stale == 0, f"{stale} of 20 passes saw old weights"
