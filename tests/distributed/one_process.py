"""What several processes are compared with: the same training in one. For the distributed cases."""

import copy

import torch
import torch_ws
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

CASES = {}


def case(function):
    """Registers ``function(rank, world)``, which every process runs."""
    CASES[function.__name__] = function
    return function


def network(dtype=torch.float64, **options):
    """Layers of every kind. Shards are uneven: of 7 and 5 channels over 2 and over 3 processes."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Sequential(torch_ws.WSConv2d(3, 7, 3, padding=1, **options), nn.GroupNorm(1, 7)),
        nn.Sequential(torch_ws.WSConvTranspose2d(7, 6, 2, 2, groups=1, **options), nn.ReLU()),
        nn.Sequential(torch_ws.WSConv2d(6, 6, 3, groups=3, bias=False, **options), nn.ReLU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        torch_ws.WSLinear(6, 5, formula="nfnet"),
    )
    return model.to(dtype)


def batches(steps, rank, world, dtype=torch.float64):
    """(all inputs, this rank's part of them) for each step."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x = torch.randn(2 * world, 3, 6, 6, generator=generator, dtype=torch.float64).to(dtype)
        yield x, x[2 * rank : 2 * rank + 2]


def target_loss(out):
    return (out - 0.3).pow(2).mean()


def full(tensor):
    """The whole of a DTensor."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def assert_same(actual, expected, what, **tolerances):
    torch.testing.assert_close(
        full(actual), expected, msg=lambda text: f"{what}: {text}", **tolerances
    )


def refused(kind, message, action):
    try:
        action()
    except kind as error:
        assert message in str(error), error
    else:
        raise AssertionError(f"not refused: {message}")


def shard(model, **options):
    """fully_shard of each part of a Sequential that has parameters, and of the whole."""
    for part in model:
        if any(True for _ in part.parameters()):
            fully_shard(part, **options)
    return fully_shard(model, **options)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.01)


def trains_like_one_process(wrap, rank, world, single=None, optimizer=sgd, **options):
    """Outputs and gradients of three steps of an optimizer, and the parameters after."""
    single = network(**options) if single is None else single
    model = wrap(copy.deepcopy(single))
    optimizers = [optimizer(m.parameters()) for m in (single, model)]
    for everything, part in batches(3, rank, world):
        for optimizer in optimizers:
            optimizer.zero_grad()
        expected, actual = single(everything), model(part)
        assert_same(actual, expected[2 * rank : 2 * rank + 2], "output")
        target_loss(expected).backward()
        target_loss(actual).backward()
        compare(model, single, "grad")
        for optimizer in optimizers:
            optimizer.step()
    compare(model, single)
    return model, single


def compare(model, single, attribute=None):
    """Parameters, or that attribute of theirs, by name."""
    theirs = dict(single.named_parameters())
    for name, parameter in model.named_parameters():
        name = name.removeprefix("module.")
        pair = [parameter, theirs.pop(name)]
        if attribute is not None:
            pair = [getattr(p, attribute) for p in pair]
        assert_same(*[p.detach() for p in pair], f"{name} {attribute or ''}")
    assert not theirs
