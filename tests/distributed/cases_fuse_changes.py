"""fuse with FSDP2 where weights, states or layers change beside the optimizer's step."""

import contextlib
import copy
import functools
import tempfile

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch_ws
from cases_before_gather import Branches, before_gather, whole_before_gather
from fused_pair import MOMENTUM, OPTIMIZERS, Pair, calls, small
from one_process import (
    assert_same,
    batches,
    case,
    network,
    refused,
    shard,
    target_loss,
)
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch_ws.distributed import standardize_before_gather


@contextlib.contextmanager
def shared_folder():
    with tempfile.TemporaryDirectory() as own:
        folder = [own]
        dist.broadcast_object_list(folder)  # the first rank's
        yield folder[0]
        dist.barrier()


def tied():
    model = small(108, 12, 12, 12)
    model[3].weight = model[2].weight
    return model


@case
def fuse_resumes_from_checkpoints(rank, world):
    """Of torch.distributed.checkpoint; what it loads into memory that is in use is noticed."""
    for optimizer in (MOMENTUM, OPTIMIZERS[-1]):
        pair, other = Pair(rank, world, optimizer).train(2), Pair(rank, world, optimizer).train(3)
        states = get_state_dict(other.model, other.ours)
        with shared_folder() as folder:
            saved = get_state_dict(pair.model, pair.ours)
            dcp.save(dict(zip("mo", saved, strict=True)), checkpoint_id=folder)
            dcp.load(dict(zip("mo", states, strict=True)), checkpoint_id=folder)
        [(everything, part)] = batches(1, rank, world)
        expected = pair.single(everything)[2 * rank : 2 * rank + 2]
        assert_same(other.model(part), expected, "output of what was loaded in place")
        model, optim = states
        set_state_dict(other.model, other.ours, model_state_dict=model, optim_state_dict=optim)
        del states, model, saved  # which have the weights' memory
        other.single.load_state_dict(pair.single.state_dict())
        other.plain.load_state_dict(copy.deepcopy(pair.plain.state_dict()))
        other.train(2)


@case
def fuse_exchanges_states_with_torch(rank, world):
    """A sharded optimizer's without fuse, both ways."""
    for optimizer in (MOMENTUM, OPTIMIZERS[-1]):
        pair = Pair(rank, world, optimizer).train(2)
        model = before_gather()(network())
        plain = optimizer(model.parameters())
        model.load_state_dict(pair.model.state_dict())
        plain.load_state_dict(copy.deepcopy(pair.ours.state_dict()))
        for everything, part in batches(1, rank, world):
            target_loss(model(part)).backward()
            target_loss(pair.single(everything)).backward()
        for own in (plain, pair.plain):
            own.step()
            own.zero_grad()
        pair.model.load_state_dict(model.state_dict())
        pair.ours.load_state_dict(copy.deepcopy(plain.state_dict()))
        pair.train(2)


@case
def fuse_notices_writes(rank, world):
    """To the parameter, to its local tensor, by other optimizers, and by loading a checkpoint."""

    def in_place(model):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(-1)

    def local(model):
        with torch.no_grad():
            for parameter in model.parameters():
                part = parameter.to_local() if isinstance(parameter, DTensor) else parameter
                part.mul_(-1)

    def loaded(model):
        model.load_state_dict({key: tensor * -1 for key, tensor in model.state_dict().items()})

    def state_dict(model):
        for tensor in model.state_dict().values():
            (tensor._local_tensor if isinstance(tensor, DTensor) else tensor).mul_(-1)

    def held(model):  # by somebody, through a pass
        tensors = model.state_dict()
        with torch.no_grad():
            model(batch[1])
        for tensor in tensors.values():
            (tensor._local_tensor if isinstance(tensor, DTensor) else tensor).mul_(-1)

    def stepped(model, **options):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        torch.optim.AdamW(model.parameters(), lr=0.1, **options).step()
        model.zero_grad()

    def refreshed(model):
        with torch.no_grad():
            torch._foreach_mul_(list(model.parameters()), -1)  # a DTensor counts no version
        if model is pair.model:
            pair.handle.refresh()

    [batch] = batches(1, rank, world)
    writes = [in_place, local, loaded, state_dict, held, refreshed]
    writes += [functools.partial(stepped, foreach=True), functools.partial(stepped, fused=True)]
    for write in writes:
        pair = Pair(rank, world).train(2)
        for model, _ in pair:
            write(model)
            model.eval()
        for everything, part in batches(2, rank, world):
            with torch.no_grad(), calls() as made:
                expected = pair.single(everything)[2 * rank : 2 * rank + 2]
                assert_same(pair.model(part), expected, f"output after {write}")
        assert not made
        for model, _ in pair:
            model.train()
        pair.train(2)


@case
def fuse_refuses_gradients_that_are_gone(rank, world):
    """Because the weight is another one now, or FSDP2 has added to what was computed."""
    [first, second] = batches(2, rank, world)
    pair = Pair(rank, world)
    weight = pair.model[0][0].weight
    pair.backward(*first)
    with torch.no_grad():
        weight.mul_(2)
    refused(RuntimeError, "written to", lambda: weight.grad.full_tensor())
    refused(RuntimeError, "written to", pair.ours.step)
    pair = Pair(rank, world)
    weight = pair.model[0][0].weight
    pair.backward(*first)
    pair.ours.step()
    pair.plain.step()
    refused(RuntimeError, "used up", lambda: weight.grad.full_tensor())
    refused(RuntimeError, "used up", lambda: target_loss(pair.model(second[1])).backward())
    model = Branches()
    fully_shard(model.always), fully_shard(model.sometimes)
    standardize_before_gather(fully_shard(model))
    torch_ws.fuse(model, MOMENTUM(model.parameters()))
    x = torch.randn(2, 4)
    model(x, True).sum().backward()
    model.set_requires_gradient_sync(False)
    model(x, True).sum().backward()
    model.set_requires_gradient_sync(True)
    refused(RuntimeError, "let each layer take part", lambda: model(x, False).sum().backward())


@case
def fuse_is_undone(rank, world):
    """Before a step, and between the passes of one; then torch alone goes on."""
    for passes in (1, 2):
        pair = Pair(rank, world).train(2)
        for i, batch in enumerate(batches(2, rank, world)):
            pair.backward(*batch)
            if i == 2 - passes:
                pair.handle.remove()
        pair.compare_parameters("grad")
        assert all(type(w.grad._local_tensor) is torch.Tensor for w in pair.weights)
        with calls() as made:
            pair.step()
            pair.backward(*batch)
        assert made["raw_update_many"] == 0 and made["standardize"] > 0
        pair.step()
        pair.handle = torch_ws.fuse(pair.model, pair.ours)
        pair.train(2)


@case
def fuse_of_layers_that_change(rank, world):
    """Another formula, no storing, and the model moved."""

    def another_formula(model):
        model[0][0].formula = "nfnet"

    def no_storing(model):
        torch_ws.eval_cache(False, model)

    def moved(model):
        model.float().double()
        if model is pair.model:
            standardize_before_gather(model)

    for change in (another_formula, no_storing, moved):
        for at in (0, 1):  # before the backward pass, and between it and the step
            pair = Pair(rank, world, OPTIMIZERS[0]).train(2)
            for batch in batches(3, rank, world):
                if at == 0:
                    [change(model) for model, _ in pair]
                pair.backward(*batch)
                if at == 1:
                    [change(model) for model, _ in pair]
                pair.step()


@case
def fuse_leaves_others_as_they_were(rank, world):
    """Without a kernel, shared, cut through the rows: with the reason, and trained all the same."""
    rmsprop = functools.partial(torch.optim.RMSprop, lr=0.01, foreach=True)
    pair = Pair(rank, world, rmsprop)
    assert pair.handle.unfused["0.0"].startswith("no kernel for RMSprop")
    for batch in batches(3, rank, world):
        pair.backward(*batch)
        pair.compare_parameters("grad")
        pair.step()

    pair = Pair(rank, world, wrap=whole_before_gather, single=tied()).train(standardized=1)
    assert pair.handle.unfused == dict.fromkeys("23", "two layers share its weight")

    def by_columns(model):
        fully_shard(model[1], shard_placement_fn=lambda p: Shard(1) if p.dim() > 1 else None)
        return whole_before_gather(model)

    pair = Pair(rank, world, wrap=by_columns, single=small(108, 12, 12)).train()
    assert "call torch_ws.distributed.standardize_before_gather" in pair.handle.unfused["1"]


@case
def fuse_refusals(rank, world):
    model = shard(network())
    optimizer = MOMENTUM(model.parameters())
    message = "call torch_ws.distributed.standardize_before_gather first"
    refused(ValueError, message, lambda: torch_ws.fuse(model, optimizer))
    kept = before_gather(reshard_after_forward=False)(network())
    own = MOMENTUM(kept.parameters())
    [(_, part)] = batches(1, rank, world)
    kept(part)
    refused(RuntimeError, "call reshard()", lambda: torch_ws.fuse(kept, own))
    pair = Pair(rank, world)
    another = MOMENTUM(pair.model.parameters())
    refused(RuntimeError, "fused already", lambda: torch_ws.fuse(pair.model, another))
    refused(RuntimeError, "model is fused", lambda: torch_ws.group(pair.model))
    with torch_ws.hold(pair.model):
        pair.backward(*next(batches(1, rank, world)))
    pair.assert_deferred()
