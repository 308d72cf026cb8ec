"""fuse with FSDP2, whose ranks standardize the channels that they own: in float64, as one process.

Every training asserts that the gradients stay deferred until the step, that the step updates each
group's weights in one call, and that nothing is standardized but by it.
"""

import functools

import torch
import torch_ws
from cases_before_gather import before_gather, whole_before_gather
from fused_pair import MOMENTUM, OPTIMIZERS, Pair, calls, small
from one_process import (
    assert_same,
    batches,
    case,
    full,
    network,
    target_loss,
)
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, Replicate, init_device_mesh


@case
def fuse_trains_like_one_process(rank, world):
    for optimizer in OPTIMIZERS:
        pair = Pair(rank, world, optimizer).train()
        assert pair.handle.unfused.keys() == {"1.0"}  # transposed, as before
    with_vectors = network(gain=True, shift=True, formula="qiao")
    Pair(rank, world, single=with_vectors).train()
    Pair(rank, world, OPTIMIZERS[-1], before_gather(reshard_after_forward=False)).train()


@case
def fuse_of_fewer_channels_than_ranks(rank, world):
    for wrap in (before_gather(), whole_before_gather):
        for optimizer in (MOMENTUM, OPTIMIZERS[-1]):
            pair = Pair(rank, world, optimizer, wrap, small(108, 1, 2))
            pair.train(before_step=lambda m, _: nn.utils.clip_grad_norm_(m.parameters(), 1e-3))


@case
def fuse_of_replicated_shards(rank, world):
    for shape in ((1, world), (world, 1)):
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicas", "shards"))
        pair = Pair(rank, world, wrap=before_gather(mesh=mesh))
        pair.train(before_step=lambda m, _: nn.utils.clip_grad_norm_(m.parameters(), 1e-2))
        for last, batch in zip((False, True), batches(2, rank, world), strict=True):
            pair.model.set_requires_all_reduce(last)  # between replicas, after both passes
            pair.backward(*batch)
        pair.assert_deferred()
        pair.step()


@case
def fuse_of_frozen_weights(rank, world):
    """Frozen at first, and later not."""
    single = network()
    single[0][0].weight.requires_grad_(False)
    pair = Pair(rank, world, single=single)
    frozen = pair.weights.pop(0)
    assert frozen is pair.model[0][0].weight
    pair.train(2)
    for model, _ in pair:
        model[0][0].weight.requires_grad_()
    pair.weights.append(frozen)
    pair.train(2)


@case
def fuse_in_bfloat16(rank, world):
    """As without fuse; what is gathered is the rounded result of the float32 rows."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    sides = []
    for _ in range(2):
        model = before_gather(mp_policy=policy)(network(torch.float32))
        sides.append((model, OPTIMIZERS[4](model.parameters())))
    handle = torch_ws.fuse(*sides[0])
    for i, (_, part) in enumerate(batches(3, rank, world, torch.float32)):
        losses = []
        for model, optimizer in sides:
            with calls() as made:
                losses.append(target_loss(model(part).float()))
                losses[-1].backward()
            assert (made["standardize"] == 0) == (i > 0 and model is sides[0][0])
            optimizer.step()
            optimizer.zero_grad()
        torch.testing.assert_close(*losses, rtol=1e-5, atol=0)
        for fused in handle._layers:
            formula, rows = fused.layer.formula, fused.weight.to_local().detach().clone()
            expected = torch_ws.standardize(rows, formula=formula, dtype=torch.bfloat16)
            assert torch.equal(fused.layer._cached.result, expected)
        for fused, other in zip(*(model.parameters() for model, _ in sides), strict=True):
            assert_same(fused, full(other), "parameter", rtol=1e-5, atol=1e-6)


@case
def fuse_clips_by_the_norm_of_all_ranks(rank, world):
    for foreach in (False, True):
        norms = []

        def clip(model, _, foreach=foreach, norms=norms):
            norm = nn.utils.clip_grad_norm_(model.parameters(), 1e-2, foreach=foreach)
            norms.append(full(norm))

        Pair(rank, world).train(before_step=clip)
        torch.testing.assert_close(norms[::2], norms[1::2], rtol=1e-12, atol=0)


@case
def fuse_clips_rows_as_one_process_does(rank, world):
    """AGC: rows of weights by their owner, vectors by all."""
    for optimizer in (MOMENTUM, OPTIMIZERS[4]):
        single = network(gain=True)
        Pair(rank, world, optimizer, single=single, agc=CLIPS.get).train(before_step=clip_single)


# The transposed weight is left out: its channels are not its rows.
CLIPS = {name: 0.02 for name, _ in network(gain=True).named_parameters() if name != "1.0.weight"}


def clip_single(model, *_):
    """AGC of the model in one process, from timm's formula."""
    for name, parameter in model.named_parameters():
        if name in CLIPS and not isinstance(parameter, DTensor):
            dims = tuple(range(1, parameter.dim())) or None
            norm = functools.partial(torch.linalg.vector_norm, dim=dims, keepdim=dims is not None)
            most = norm(parameter.detach()).clamp(min=1e-3) * CLIPS[name]
            parameter.grad *= (most / norm(parameter.grad).clamp(min=1e-6)).clamp(max=1)


@case
def fuse_with_grad_scaler(rank, world):
    """An inf in one rank's batch: no rank steps, in the optimizer or in its kernel.

    Clipped by rows, before or after unscaling, which a step with fused=True does itself.
    """
    for optimizer in (MOMENTUM, OPTIMIZERS[4]):
        for unscale in (False, True):
            pair = Pair(rank, world, optimizer, single=network(gain=True), agc=CLIPS.get)
            scalers = [torch.amp.GradScaler("cpu", init_scale=2.0**6) for _ in pair]
            for i, (everything, part) in enumerate(batches(4, rank, world)):
                everything, part = everything.clone(), part.clone()
                if i == 1:
                    everything[0] = torch.inf
                    part[0] = torch.inf if rank == 0 else part[0]
                sides = zip(pair, scalers, (everything, part), strict=True)
                for (model, own), scaler, x in sides:
                    scaler.scale(target_loss(model(x))).backward()
                    if unscale or model is pair.single:
                        scaler.unscale_(own)
                    clip_single(model)
                    scaler.step(own)
                    scaler.update()
                    own.zero_grad()
                pair.compare_parameters()
                assert scalers[0].get_scale() == scalers[1].get_scale()
            assert scalers[0].get_scale() == 2.0**5
            pair.compare()


@case
def fuse_accumulates_gradients(rank, world):
    """With a reduction in each pass, in the last, and in some; with what the first leaves read."""
    for synchronize in ((True, True, True), (False, False, True), (True, False, True)):
        for read in (False, True):
            pair, ordinary = Pair(rank, world), False
            for set_to_none in (True, False, True):
                steps = zip(synchronize, batches(3, rank, world), strict=True)
                for i, (reduce, batch) in enumerate(steps):
                    pair.model.set_requires_gradient_sync(reduce)
                    pair.backward(*batch)
                    if read and reduce and i == 0:
                        for model, _ in pair:
                            for parameter in model.parameters():
                                parameter.grad = parameter.grad * 0.5
                if not ((read and synchronize[0]) or ordinary):
                    pair.assert_deferred()
                ordinary = not set_to_none  # zeros, which the next pass adds to
                for _, optimizer in pair:
                    optimizer.step()
                pair.compare()
                for _, optimizer in pair:
                    optimizer.zero_grad(set_to_none=set_to_none)


@case
def fuse_lets_gradients_be_read(rank, world):
    """Each way to read or change one gives the right values, and the step goes on with them."""

    def value(weight):
        return full(weight.grad).clone()

    def local(weight):
        grad = weight.grad
        if isinstance(grad, DTensor):
            grad = DTensor.from_local(
                grad.to_local().clone(),
                grad.device_mesh,
                grad.placements,
                shape=grad.shape,
                stride=grad.stride(),
            )
        return full(grad)

    def halved(weight):
        torch._foreach_mul_([weight.grad], 0.5)
        weight.grad.div_(2)
        return full(weight.grad.norm())

    def clamped(weight):
        weight.grad.clamp_(-1e-3, 1e-3)
        return full(weight.grad.abs().max())

    def zeroed(weight):
        weight.grad.zero_()
        return full(weight.grad.sum())

    def replicated(weight):  # the step of torch takes that one
        if isinstance(weight.grad, DTensor):
            weight.grad = weight.grad.redistribute(placements=[Replicate()])
        return full(weight.grad)

    for read in (value, local, halved, clamped, zeroed, replicated):
        pair = Pair(rank, world, functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9))
        for i, batch in enumerate(batches(3, rank, world)):
            pair.backward(*batch)
            pair.assert_deferred()
            if i < 2:  # the last step has the states that this left, and nothing read
                expected, actual = (read(model[0][0].weight) for model, _ in pair)
                torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-15)
            pair.step()
