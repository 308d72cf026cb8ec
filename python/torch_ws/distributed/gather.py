"""FSDP2 gathers standardized weights: each rank standardizes the channels that it owns.

`standardize_before_gather` uses FSDP2's extension points: a sharded parameter's local tensor
may say what is gathered of it (``fsdp_pre_all_gather``, ``fsdp_post_all_gather``). A shard along
dimension 0 holds whole output channels, so each rank standardizes its own and sends the result in
the dtype of the computation. Autograd then sees the standardized weight as the parameter; what the
ranks reduce is its gradient, and a hook turns each rank's part of that into the weight's. In a
fused model the step does that, and makes what is sent next (fused_rows.py).
"""

from __future__ import annotations

import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Shard

from .._check import OUTPUT_DTYPES, Module, called, check_module, naming
from ..core.autograd import raw_backward
from ..core.private import (
    after_backward,
    local_tensor,
    no_torch_function,
    sharded_parameters,
    storage_users,
    with_local_tensor,
)
from ..core.standardize import fan_in_of, standardize
from ..layers.modules import _ConvTranspose
from ..layers.standardized import Standardized
from ..training.provider import Provider
from .fused_rows import FusedRows


def standardize_before_gather(model: Module) -> Module:
    """FSDP2: weights are standardized before the all-gather, by the rank that owns the channels.

    Call it once, after ``fully_shard`` and before training:

        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        for block in model.blocks:
            fully_shard(block, mp_policy=policy)
        fully_shard(model, mp_policy=policy)
        torch_ws.distributed.standardize_before_gather(model)

    Equivalent to standardizing after a gather in float32, with the standardized weight, in
    ``param_dtype``, gathered instead. Sharded parameters, state_dict, gradients and optimizers are
    those without it. Transposed convolutions and layers that are not sharded along dimension 0 go
    on standardizing after the gather. In a model that is given to [`torch_ws.fuse`][] after it,
    the optimizer's step makes what is gathered, and nothing else is standardized.

    Args:
        model: has been given to ``fully_shard``, as a whole or in parts.

    Returns:
        The model itself.

    Raises:
        TypeError: `model` is not a module.
        ValueError: there is no layer to do it for; or, by name, one that is sharded further by
            tensor parallelism, has its parameters offloaded to the CPU, is resharded to a part of
            the ranks after forward (an int for ``reshard_after_forward``), or shares its weight
            with a layer that does not standardize it the same way. The model is unchanged.
        RuntimeError: in the forward pass, after the parameters were replaced, as by ``.to()``: call
            it again. In the backward pass, when a reduction adds earlier, unreduced gradients of a
            layer that this pass did not use to gradients that it has already: that sum is lost.
    """
    check_module(model)
    names = {module: name for name, module in model.named_modules()}
    plan = []
    sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for parameter in (p for module in sharded for p in sharded_parameters(module)):
        layer = parameter.layer
        if (
            isinstance(layer, Standardized)
            and not isinstance(layer, _ConvTranspose)
            and parameter.name == "weight"
            and parameter.placement == Shard(0)
        ):
            with naming(called(names.get(layer), layer)):
                _check(parameter)
            plan.append(parameter)
    if not plan:
        raise ValueError(
            "the model has no layer of torch_ws that fully_shard has sharded along dimension 0: "
            "call fully_shard first"
        )
    for module in sharded:
        module.reshard()  # what an earlier pass has gathered is not standardized
    for parameter in plan:
        _Gathering(parameter)
    return model


def _check(parameter):
    if parameter.tensor_parallel:
        raise ValueError("is sharded by tensor parallelism too, which is not supported")
    if parameter.offloaded:
        raise ValueError("has its parameters offloaded to the CPU, which is not supported")
    if parameter.resharded_to_some:
        raise ValueError(
            "reshard_after_forward must be True or False; a number of ranks is not supported"
        )
    for other, name in parameter.shared_with:
        same = isinstance(other, Standardized) and not isinstance(other, _ConvTranspose)
        if not same or name != "weight" or other.formula != parameter.layer.formula:
            raise ValueError(
                f"shares its weight with a {type(other).__name__} that does not standardize it the "
                "same way"
            )


class _Rows(torch.Tensor):
    """A rank's rows of a weight, which FSDP2 gathers standardized. Results are plain tensors."""

    own_users: int  # of their memory: FSDP2's tensors, all of one version
    __torch_function__ = no_torch_function

    def fsdp_pre_all_gather(self, mesh, outer_size, outer_stride, module, mp_policy):
        dtype = mp_policy.param_dtype or self.dtype
        direct = dtype if dtype in OUTPUT_DTYPES[self.dtype] else None
        fused = module._provider.fused
        rows = None if fused is None else fused.standardized(direct)
        if rows is None:
            rows = self.as_subclass(torch.Tensor)
            rows = standardize(rows, formula=module.formula, dtype=direct)
        rows = rows.to(dtype)
        missing = -(-outer_size[0] // mesh.size()) - len(rows)  # the same number from every rank
        if missing:
            rows = torch.cat([rows, rows.new_zeros((missing, *rows.shape[1:]))])
        return (rows,), None

    def fsdp_post_all_gather(self, gathered, metadata, param_dtype, *, out=None):
        # `out` is a view of the same memory: there is nothing to copy, and nothing else to free
        return None if out is not None else (gathered[0], ())


class _Gathering(Provider):
    """One weight that is gathered standardized: its layers' Provider, and how it gets its .grad.

    FSDP2 adds what it has reduced to .grad and then calls the parameter's hooks. What it reduces is
    the gradient of the standardized weight, while .grad, of an earlier pass, is the weight's. So
    that one is put aside when the backward pass reaches the weight, and added to after.
    """

    idle, permanent = False, True

    def __init__(self, record):
        self.record = record
        self.parameter = parameter = record.parameter
        self.layer = record.layer
        self.aside = None  # an earlier .grad, during a backward pass
        self.gathered = None  # the unsharded parameter: FSDP2 uses the same object again
        frozen = not parameter.requires_grad  # it may be unfrozen later
        parameter.requires_grad_()
        self.hooks = [parameter.register_post_accumulate_grad_hook(self.reduced)]
        parameter.requires_grad_(not frozen)
        record.make_local(_Rows)
        rows = local_tensor(parameter)
        rows.own_users = storage_users(rows)
        self.fused: FusedRows | None = None
        for layer in (self.layer, *(layer for layer, _ in record.shared_with)):
            if isinstance(layer._provider, _Gathering):
                layer._provider.remove()
                if layer._provider.parameter is parameter:
                    self.fused = layer._provider.fused
            layer.__dict__["_provider"] = self

    def remove(self):
        for hook in self.hooks:
            hook.remove()

    @property
    def fused_class(self):
        weight = self.layer.weight
        if not isinstance(weight, DTensor):
            raise RuntimeError(
                "model must not be gathered while torch_ws.fuse is called: call reshard() of its "
                "modules first"
            )
        return FusedRows if weight is self.parameter and self.in_place() else None

    def move(self, move):
        return move() if self.fused is None else self.fused.move(move)

    def take(self, layer, tensors, dtype):
        """The gathered weight, with gain and shift; `dtype` is FSDP2's mixed precision's."""
        weight, gain, shift = tensors
        if isinstance(weight, DTensor):  # outside of a forward pass
            return None
        if not self.in_place():
            raise RuntimeError(
                "the parameters were replaced after torch_ws.distributed.standardize_before_gather,"
                " as by .to() or load_state_dict(assign=True): call it again"
            )
        if weight.requires_grad and weight is not self.gathered:
            self.gathered = weight
            self.hooks.append(weight.register_hook(self.reached))
        vectors = (-1, *[1] * (weight.dim() - 1))
        if gain is not None:
            weight = weight * gain.view(vectors)
        if shift is not None:
            weight = weight + shift.view(vectors)
        return weight

    def in_place(self):
        same = self.record.parameter is self.parameter
        return same and type(local_tensor(self.parameter)) is _Rows

    def reached(self, grad):
        """The backward pass has come to the gathered weight."""
        if self.aside is None and self.parameter.grad is not None:
            self.aside, self.parameter.grad = self.parameter.grad, None
            after_backward(self.finished)

    @torch.no_grad()
    def reduced(self, parameter):
        """FSDP2 has reduced a gradient of the standardized weight into .grad."""
        grad = parameter.grad
        if hasattr(grad, "of_the_weight"):
            raise RuntimeError(
                "FSDP2 added gradients of a standardized weight that an earlier backward pass left "
                "unreduced to the weight's own gradient: let each layer take part in the pass that "
                "reduces, or call zero_grad() before"
            )
        local = local_tensor(grad)
        if self.fused is not None and self.fused.defers():
            local = self.fused.deferred(local)
            with_local_tensor(grad, local)
        else:
            arguments = self.layer.formula.arguments(fan_in_of(parameter, 0))
            local.copy_(raw_backward(local, local_tensor(parameter), None, 0, *arguments))
        if self.aside is not None:
            local_tensor(self.aside).add_(local)
            parameter.grad, self.aside = self.aside, None
        parameter.grad.of_the_weight = True

    def finished(self):
        """The end of a backward pass that has not reduced: .grad is what it was."""
        if self.aside is not None:
            self.parameter.grad, self.aside = self.aside, None
