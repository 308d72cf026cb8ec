"""FSDP2 with weights that are standardized before the all-gather."""

import copy

import torch
import torch.distributed as dist
import torch_ws
from one_process import (
    assert_same,
    batches,
    case,
    compare,
    full,
    network,
    refused,
    shard,
    target_loss,
    trains_like_one_process,
)
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch_ws import Standardized
from torch_ws.distributed import standardize_before_gather


def before_gather(**options):
    """Shards part by part, then the option under test."""
    return lambda model: standardize_before_gather(shard(model, **options))


def whole_before_gather(model):
    """Shards the model as one part."""
    return standardize_before_gather(fully_shard(model))


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=0.01, foreach=True)


@case
def before_gather_trains_like_one_process(rank, world):
    for options in ({}, {"gain": True, "shift": True, "formula": "qiao"}):
        trains_like_one_process(before_gather(), rank, world, **options)
    kept = before_gather(reshard_after_forward=False)
    trains_like_one_process(kept, rank, world, optimizer=adamw)


class Wrapped(nn.Module):
    """Its pass begins before those of the parts that fully_shard knows."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x)


@case
def before_gather_is_left_alone_by_group(rank, world):
    """Also where what an earlier pass has gathered is still there when a pass begins."""

    def wrap(model):
        wrapped = Wrapped(before_gather(reshard_after_forward=False)(model))
        torch_ws.group(wrapped)
        return wrapped

    trains_like_one_process(wrap, rank, world)


@case
def before_gather_checkpoints_are_plain(rank, world):
    model, single = trains_like_one_process(before_gather(), rank, world)
    checkpoint = model.state_dict()
    assert all(type(t._local_tensor) is torch.Tensor for t in checkpoint.values())
    [(everything, part)] = batches(1, rank, world)
    before = model(part)
    checkpoint = {key: tensor.clone() for key, tensor in checkpoint.items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-1)
    assert not torch.equal(model(part), before)
    model.load_state_dict(checkpoint)
    assert torch.equal(model(part), before)
    assert_same(before, single(everything)[2 * rank : 2 * rank + 2], "output")


@case
def before_gather_of_frozen_weights(rank, world):
    """Frozen at first, and later not."""
    single, model = network(), network().requires_grad_(False)
    model = before_gather()(model)
    for trained in (False, True):
        single.requires_grad_(trained)
        model.requires_grad_(trained)
        for everything, part in batches(1, rank, world):
            expected, actual = single(everything), model(part)
            assert actual.requires_grad == trained
            assert_same(actual, expected[2 * rank : 2 * rank + 2], "output")
    target_loss(expected).backward()
    target_loss(actual).backward()
    compare(model, single, "grad")


@case
def before_gather_of_fewer_channels_than_ranks(rank, world):
    def make():
        torch.manual_seed(0)
        return nn.Sequential(
            torch_ws.WSConv2d(3, 1, 3), nn.Tanh(), torch_ws.WSConv2d(1, 2, 3)
        ).double()

    trains_like_one_process(before_gather(), rank, world, make())
    trains_like_one_process(whole_before_gather, rank, world, make())


@case
def before_gather_of_replicated_shards(rank, world):
    """Hybrid sharding: replicas of shards."""
    for shape in ((1, world), (world, 1)):
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicas", "shards"))
        trains_like_one_process(before_gather(mesh=mesh), rank, world)


@case
def before_gather_of_a_shared_weight(rank, world):
    def make():
        torch.manual_seed(0)
        model = nn.Sequential(
            torch_ws.WSConv2d(3, 3, 3, padding=1), nn.Tanh(), torch_ws.WSConv2d(3, 3, 3, padding=1)
        ).double()
        model[2].weight = model[0].weight
        return model

    trains_like_one_process(whole_before_gather, rank, world, make())
    odd = make()
    odd[2].formula = torch_ws.formulas["timm"]
    message = "'0' (WSConv2d): shares its weight with a WSConv2d"
    refused(ValueError, message, lambda: whole_before_gather(odd))


@case
def before_gather_accumulates_gradients(rank, world):
    """With a reduction in each pass, in the last, and in some; with changes of .grad between."""
    for synchronize in ((True, True, True), (False, False, True), (True, False, True)):
        single, model = network(), before_gather()(network())
        for repetition in range(2):  # the second adds to what is there
            steps = zip(synchronize, batches(3, rank, world), strict=True)
            for i, (reduce, (everything, part)) in enumerate(steps):
                model.set_requires_gradient_sync(reduce)
                target_loss(single(everything)).backward()
                target_loss(model(part)).backward()
                if all(synchronize):
                    compare(model, single, "grad")
                if repetition == 1 and synchronize[0] and i == 0:  # as clipping would
                    for parameter in (*single.parameters(), *model.parameters()):
                        parameter.grad = parameter.grad * 0.5
            compare(model, single, "grad")
        single.zero_grad()
        model.zero_grad()
        for everything, part in batches(1, rank, world):
            target_loss(single(everything)).backward()
            target_loss(model(part)).backward()
        compare(model, single, "grad")


@case
def before_gather_keeps_a_gradient_through_passes_without_reduction(rank, world):
    model = before_gather()(network())
    [(_, part), (_, other)] = batches(2, rank, world)
    target_loss(model(part)).backward()
    expected = {name: full(p.grad).clone() for name, p in model.named_parameters()}
    model.set_requires_gradient_sync(False)
    target_loss(model(other)).backward()
    for name, parameter in model.named_parameters():
        assert_same(parameter.grad, expected[name], name, rtol=0, atol=0)


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.always, self.sometimes = torch_ws.WSLinear(4, 4), torch_ws.WSLinear(4, 4)

    def forward(self, x, both):
        return self.always(x) + (self.sometimes(x) if both else 0)


@case
def before_gather_refuses_a_sum_of_different_gradients(rank, world):
    """A layer's unreduced gradients are reduced by a pass that does not use the layer."""
    model = Branches()
    fully_shard(model.always), fully_shard(model.sometimes)
    standardize_before_gather(fully_shard(model))
    x = torch.randn(2, 4)
    model(x, True).sum().backward()
    model.set_requires_gradient_sync(False)
    model(x, True).sum().backward()
    model.set_requires_gradient_sync(True)
    refused(RuntimeError, "let each layer take part", lambda: model(x, False).sum().backward())


@case
def before_gather_halves_the_bytes(rank, world):
    """Of what gathering float32 weights to standardize them takes; biases are gathered as well."""

    def gathered(model):
        sent = []
        gather = dist.all_gather_into_tensor
        name = "all_gather_single" if hasattr(dist, "all_gather_single") else gather.__name__
        original = getattr(dist, name)

        def counting(*args, **kwargs):
            tensor = kwargs.get("input_tensor", kwargs.get("input"))
            tensor = args[1] if tensor is None else tensor
            sent.append(tensor.numel() * tensor.itemsize)
            return original(*args, **kwargs)

        setattr(dist, name, counting)
        try:
            model(torch.randn(2, 4, 6, 6))
        finally:
            setattr(dist, name, original)
        assert sent
        return sum(sent)

    def make():
        torch.manual_seed(0)
        return nn.Sequential(torch_ws.WSConv2d(4, 12, 3), nn.ReLU(), torch_ws.WSConv2d(12, 6, 3))

    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    ours = before_gather(mp_policy=policy)(make())
    assert 2 * gathered(ours) == gathered(shard(make()))


@case
def before_gather_in_bfloat16_rounds_once(rank, world):
    """The result is the float32 weight's, rounded: not that of a rounded weight."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    torch.manual_seed(0)
    single = nn.Sequential(torch_ws.WSLinear(9, 7, bias=False))
    with torch.no_grad():
        single[0].weight.add_(2.0)  # |mean| >> std: rounded before, it would lose its digits
    model = before_gather(mp_policy=policy)(copy.deepcopy(single))
    x = torch.eye(9)[: 9 - rank]
    weight = torch_ws.standardize(single[0].weight, dtype=torch.bfloat16)
    assert_same(model(x), weight.detach().t()[: 9 - rank], "weight", rtol=0, atol=0)
    # the gradient: that of the rounded weight, averaged, then through the float32 weight's formula
    (model(x).float() * torch.ones(9 - rank, 7).cumsum(1)).sum().backward()
    grad = sum(torch.cat([torch.ones(9 - r), torch.zeros(r)]) for r in range(world)) / world
    grad = torch.ones(9, 7).cumsum(1).t() * grad
    torch_ws.standardize(single[0].weight).backward(grad)
    assert model[0].weight.grad.dtype == torch.float32
    assert_same(model[0].weight.grad, single[0].weight.grad, "grad")


@case
def before_gather_refusals(rank, world):
    refused(TypeError, "must be a torch.nn.Module", lambda: standardize_before_gather(3))
    refused(ValueError, "call fully_shard first", lambda: standardize_before_gather(network()))
    linear = nn.Sequential(torch_ws.WSLinear(4, 6))
    mesh = init_device_mesh("cpu", (1, world), mesh_dim_names=("shards", "columns"))
    parallel = parallelize_module(linear, mesh["columns"], {"0": ColwiseParallel()})
    models = {
        "offloaded": fully_shard(network(), offload_policy=CPUOffloadPolicy(pin_memory=False)),
        "tensor parallelism": fully_shard(parallel, mesh=mesh["shards"]),
    }
    if world == 4:  # of the tests none has as many; a number of ranks must divide that of all
        models["True or False"] = shard(network(), reshard_after_forward=2)
    for message, model in models.items():
        refused(ValueError, message, lambda model=model: standardize_before_gather(model))
        layers = [module for module in model.modules() if isinstance(module, Standardized)]
        assert all("_provider" not in vars(layer) for layer in layers)


@case
def before_gather_once_more(rank, world):
    """After the parameters were replaced it is needed; else it does no harm."""
    for replace in (False, True):
        single, model = network(), before_gather()(network())
        if replace:
            model.float().double()
            single.float().double()
            [(_, part)] = batches(1, rank, world)
            refused(RuntimeError, "call it again", lambda m=model, x=part: m(x))
        standardize_before_gather(model)
        for everything, part in batches(2, rank, world):
            assert_same(model(part), single(everything)[2 * rank : 2 * rank + 2], "output")
            target_loss(single(everything)).backward()
            target_loss(model(part)).backward()
        compare(model, single, "grad")
