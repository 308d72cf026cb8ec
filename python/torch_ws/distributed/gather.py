"""FSDP2 gathers standardized weights: each rank standardizes the channels that it owns.

`standardize_before_gather` uses FSDP2's extension points: a sharded parameter's local tensor
may say what is gathered of it (``fsdp_pre_all_gather``, ``fsdp_post_all_gather``). A shard along
dimension 0 holds whole output channels, so each rank standardizes its own and sends the result in
the dtype of the computation. Autograd then sees the standardized weight as the parameter; what the
ranks reduce is its gradient, and a hook turns each rank's part of that into the weight's.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Shard

from .._check import OUTPUT_DTYPES, Module, called
from ..core.autograd import raw_backward
from ..core.standardize import fan_in_of, standardize
from ..layers.modules import _ConvTranspose
from ..layers.standardized import Standardized


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
    on standardizing after the gather.

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
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    names = {module: name for name, module in model.named_modules()}
    plan = []
    for group, parameter in _fsdp_parameters(model):
        layer = parameter._module_info.module
        if (
            isinstance(layer, Standardized)
            and not isinstance(layer, _ConvTranspose)
            and parameter._module_info.param_name == "weight"
            and parameter.fsdp_placement == Shard(0)
        ):
            try:
                _check(group, parameter)
            except ValueError as error:
                raise ValueError(f"{called(names.get(layer), layer)}: {error}") from None
            plan.append(parameter)
    if not plan:
        raise ValueError(
            "the model has no layer of torch_ws that fully_shard has sharded along dimension 0: "
            "call fully_shard first"
        )
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # what an earlier pass has gathered is not standardized
    for parameter in plan:
        _Gathering(parameter)
    return model


def _fsdp_parameters(model):
    """FSDP2's own records, which it keeps private: (parameter group, parameter)."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            state = module._get_fsdp_state()
            groups = getattr(state, "_fsdp_param_groups", None)  # PyTorch before 2.12: one
            for group in [state._fsdp_param_group] if groups is None else groups:
                for parameter in group.fsdp_params if group is not None else ():
                    yield group, parameter


def _check(group, parameter):
    info = parameter._module_info
    if parameter.is_dtensor:
        raise ValueError("is sharded by tensor parallelism too, which is not supported")
    if parameter.offload_to_cpu:
        raise ValueError("has its parameters offloaded to the CPU, which is not supported")
    if group._use_post_forward_mesh:
        raise ValueError(
            "reshard_after_forward must be True or False; a number of ranks is not supported"
        )
    for other, name in zip(info.shared_modules, info.shared_param_names, strict=True):
        same = isinstance(other, Standardized) and not isinstance(other, _ConvTranspose)
        if not same or name != "weight" or other.formula != info.module.formula:
            raise ValueError(
                f"shares its weight with a {type(other).__name__} that does not standardize it the "
                "same way"
            )


class _Rows(torch.Tensor):
    """A rank's rows of a weight, which FSDP2 gathers standardized. Results are plain tensors."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    def fsdp_pre_all_gather(self, mesh, outer_size, outer_stride, module, mp_policy):
        dtype = mp_policy.param_dtype or self.dtype
        rows = self.as_subclass(torch.Tensor)
        direct = dtype if dtype in OUTPUT_DTYPES[rows.dtype] else None
        rows = standardize(rows, formula=module.formula, dtype=direct).to(dtype)
        missing = -(-outer_size[0] // mesh.size()) - len(rows)  # the same number from every rank
        if missing:
            rows = torch.cat([rows, rows.new_zeros((missing, *rows.shape[1:]))])
        return (rows,), None

    def fsdp_post_all_gather(self, gathered, metadata, param_dtype, *, out=None):
        # `out` is a view of the same memory: there is nothing to copy, and nothing else to free
        return None if out is not None else (gathered[0], ())


class _Gathering:
    """One weight that is gathered standardized: what its layers apply, and how it gets its .grad.

    FSDP2 adds what it has reduced to .grad and then calls the parameter's hooks. What it reduces is
    the gradient of the standardized weight, while .grad, of an earlier pass, is the weight's. So
    that one is put aside when the backward pass reaches the weight, and added to after.
    """

    def __init__(self, fsdp_parameter):
        self.record = fsdp_parameter
        self.parameter = parameter = fsdp_parameter.sharded_param
        self.layer = fsdp_parameter._module_info.module
        self.aside = None  # an earlier .grad, during a backward pass
        self.gathered = None  # the unsharded parameter: FSDP2 uses the same object again
        frozen = not parameter.requires_grad  # it may be unfrozen later
        parameter.requires_grad_()
        self.hooks = [parameter.register_post_accumulate_grad_hook(self.reduced)]
        parameter.requires_grad_(not frozen)
        parameter._local_tensor = parameter._local_tensor.as_subclass(_Rows)
        fsdp_parameter._init_extensions()
        for layer in (self.layer, *fsdp_parameter._module_info.shared_modules):
            earlier = vars(layer).get("standardized_weight")
            if earlier is not None:
                earlier.func.__self__.remove()
            layer.standardized_weight = partial(self.weight_of, layer)

    def remove(self):
        for hook in self.hooks:
            hook.remove()

    def weight_of(self, layer):
        weight = layer.weight
        if isinstance(weight, DTensor):  # outside of a forward pass
            return type(layer).standardized_weight(layer)
        if not self.in_place():
            raise RuntimeError(
                "the parameters were replaced after torch_ws.distributed.standardize_before_gather,"
                " as by .to() or load_state_dict(assign=True): call it again"
            )
        if weight.requires_grad and weight is not self.gathered:
            self.gathered = weight
            self.hooks.append(weight.register_hook(self.reached))
        vectors = (-1, *[1] * (weight.dim() - 1))
        if layer.gain is not None:
            weight = weight * layer.gain.view(vectors)
        if layer.shift is not None:
            weight = weight + layer.shift.view(vectors)
        return weight

    def in_place(self):
        same = self.record.sharded_param is self.parameter
        return same and type(self.parameter._local_tensor) is _Rows

    def reached(self, grad):
        """The backward pass has come to the gathered weight."""
        if self.aside is None and self.parameter.grad is not None:
            self.aside, self.parameter.grad = self.parameter.grad, None
            torch.autograd.Variable._execution_engine.queue_callback(self.finished)

    @torch.no_grad()
    def reduced(self, parameter):
        """FSDP2 has reduced a gradient of the standardized weight into .grad."""
        grad = parameter.grad
        if hasattr(grad, "_of_the_weight"):
            raise RuntimeError(
                "FSDP2 added gradients of a standardized weight that an earlier backward pass left "
                "unreduced to the weight's own gradient: let each layer take part in the pass that "
                "reduces, or call zero_grad() before"
            )
        local = grad._local_tensor
        arguments = self.layer.formula.arguments(fan_in_of(parameter, 0))
        local.copy_(raw_backward(local, parameter._local_tensor, None, 0, *arguments))
        if self.aside is not None:
            self.aside._local_tensor += local
            parameter.grad, self.aside = self.aside, None
        parameter.grad._of_the_weight = True

    def finished(self):
        """The end of a backward pass that has not reduced: .grad is what it was."""
        if self.aside is not None:
            self.parameter.grad, self.aside = self.aside, None
