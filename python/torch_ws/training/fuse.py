"""Standardization within the optimizer's step: `fuse`, its checks and its handle."""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from .._check import check_float, check_module
from ..core.private import is_compiled_function, local_tensor
from ..layers.cache import counts_versions
from ..layers.modules import _ConvTranspose
from ..layers.standardized import Standardized
from .fused_layer import FusedLayer
from .fused_step import COMPILED, KINDS, FusedStep, reason_of_group, reason_of_weight
from .serve import Serving
from .standardized_grad import deferred_of, value_of

GATHERED_AS_IT_IS = (
    " that is not standardized before it is gathered: call "
    "torch_ws.distributed.standardize_before_gather first, which says what it takes"
)
Clip = float | Mapping[str, float] | Callable[[str], "float | None"]


def fuse(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    agc: Clip | None = None,
    agc_eps: float = 1e-3,
) -> Fused:
    """Makes standardization a part of the optimizer's step.

    Equivalent to the same training loop without it, to rounding: `optimizer.step()` turns the
    gradients of the standardized weights into those of the weights, clips them, updates weights and
    states, and writes the next standardized weights, in one pass over memory; the passes of the
    model find their weights standardized.

        handle = torch_ws.fuse(model, optimizer)
        for x, y in batches:
            loss(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()

    Parameters, state dicts, parameter groups, schedulers, hooks, closures and GradScaler stay
    torch's. `weight.grad` behaves as the gradient of the weight; it is computed when somebody reads
    it before the step, and is used up by the step. docs/gradients.md says what that means.

    Args:
        model: any module with torch_ws layers, before or after wrapping in
            DistributedDataParallel; or after FSDP2's ``fully_shard`` and
            [`torch_ws.distributed.standardize_before_gather`][], where each rank steps the channels
            that it has.
        optimizer: torch.optim's SGD, Adam or AdamW: one call a parameter group. With any other
            torch.optim.Optimizer, and for what `unfused` names, weights are standardized once a
            step.
        agc: adaptive gradient clipping of the model's parameters in `optimizer`, by output channel
            (vectors as a whole) and before weight decay, as timm's adaptive_clip_grad: a number for
            all; or a mapping of parameters' names to numbers, or a function of the name that
            returns a number or None, for some (NFNets leave out the classifier).
        agc_eps: the least norm of a unit that clipping counts with.

    Returns:
        A handle: ``remove()``; ``refresh()``, to be called after writes to weights that PyTorch
        counts no version for (through ``.data``, by raw pointers); ``unfused``, a dict of the
        layers that the step has no kernel for, and why.

    Raises:
        TypeError: `model` is no module, `optimizer` no torch.optim.Optimizer, or a number of agc
            none.
        ValueError: no layer of the model has its weight in the optimizer; a parameter is in two
            groups; a number is not positive; agc names no parameter of the model, or the optimizer
            is none of SGD, Adam and AdamW; a module of FullyShardedDataParallel (FSDP1); a
            ZeroRedundancyOptimizer.
        RuntimeError: the model or the optimizer is fused already, grouped or held; FSDP2 has the
            weights gathered now; ``optimizer.step`` is compiled.
    """
    check_module(model)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}"
        )
    _check_kinds(model, optimizer)
    clips = _clips(model, optimizer, agc)
    check_float("agc_eps", agc_eps)
    if not (agc_eps > 0 and math.isfinite(agc_eps)):
        raise ValueError(f"agc_eps must be positive and finite, got {agc_eps}")
    return Fused(model, optimizer, clips, agc_eps, *_layers(model, optimizer))


class Fused:
    """What `fuse` returns."""

    def __init__(self, model, optimizer, clips, clip_eps, layers, unfused):
        self._model = type(model).__name__
        self._layers: list[FusedLayer] = layers
        self._others: dict[str, str] = unfused
        by_weight = {id(fused.weight): fused for fused in layers}
        self._serving = Serving()
        self._step = FusedStep(optimizer, by_weight, clips, clip_eps, self._serving)
        self._removed = False
        for fused in layers:
            fused.peers, fused.serving = layers, self._serving
            fused.attach()
        _optimizers.add(optimizer)
        _compute_before_steps()

    @property
    def unfused(self) -> dict[str, str]:
        """The names of layers that the step has no kernel for, and why."""
        without = {f.name: f.reason for f in self._layers if f.reason is not None}
        return {**self._others, **without}

    def refresh(self) -> None:
        """Has the weights standardized again at their next use."""
        for fused in self._layers:
            fused.layer.__dict__.pop("_cached", None)

    def remove(self) -> None:
        """Undoes `fuse`: gradients become ordinary ones, and layers standardize for themselves."""
        if self._removed:
            return
        self._removed = True
        self._step.remove()
        self._serving.clear()
        _optimizers.discard(self._step.optimizer)
        for fused in self._layers:
            fused.detach()
            fused.compute_grad()

    def __repr__(self):
        if self._removed:
            return "Fused(removed)"
        optimizer, without = type(self._step.optimizer).__name__, len(self.unfused)
        count = len(self._layers) + len(self._others) - without
        return f"Fused({self._model}: {count} layers in {optimizer}.step, {without} unfused)"


_optimizers: weakref.WeakSet = weakref.WeakSet()  # that are fused
_hooks: list = []


def _compute_before_steps():
    """From the first call of fuse on, optimizers that are not fused find ordinary gradients."""
    if not _hooks:
        _hooks.append(register_optimizer_step_pre_hook(_compute))


def _compute(optimizer, args, kwargs):
    if torch.compiler.is_compiling() or optimizer in _optimizers:
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if deferred_of(parameter.grad) is not None:
                value_of(parameter.grad)


def _check_kinds(model, optimizer):
    """Raises for what would go wrong without a word."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp and any(isinstance(m, fsdp.FullyShardedDataParallel) for m in model.modules()):
        raise ValueError(
            "model must not be sharded by FullyShardedDataParallel (FSDP1), whose parameters are "
            "flat and have no rows"
        )
    zero = sys.modules.get("torch.distributed.optim")
    if zero and isinstance(optimizer, getattr(zero, "ZeroRedundancyOptimizer", ())):
        raise ValueError(
            "optimizer must not be a ZeroRedundancyOptimizer, whose ranks step parts of the "
            "weights: give torch.optim's to fuse"
        )
    if is_compiled_function(optimizer.step):
        raise RuntimeError(COMPILED)
    if optimizer in _optimizers:
        raise RuntimeError("optimizer is fused already: fuse the module that has all its weights")
    if any("_ws_group" in module.__dict__ for module in model.modules()):
        raise RuntimeError("model is grouped: call remove() of torch_ws.group's handle first")
    seen: set = set()
    for number, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            if parameter in seen:
                raise ValueError(
                    f"optimizer must have each parameter once; one of shape "
                    f"{tuple(parameter.shape)} is in group {number} again"
                )
            seen.add(parameter)


def _layers(model, optimizer):
    """(FusedLayers, {name: why there is none}); raises where there is nothing to fuse."""
    groups = {p: group for group in optimizer.param_groups for p in group["params"]}
    found: dict = {}
    unfused: dict = {}
    owners: dict = {}  # weight -> the first layer that has it
    for name, layer in model.named_modules():
        if not isinstance(layer, Standardized):
            continue
        weight = layer._parameters.get("weight")
        provider = layer._provider
        sharded = None if provider is None else provider.fused_class
        if weight in groups and provider is not None and provider.fused is not None:
            raise RuntimeError(f"{name or 'model'} is fused already: call remove() of its handle")
        if provider is not None and not (provider.idle or provider.permanent):
            raise RuntimeError("fuse must not be called inside a block of torch_ws.hold")
        if weight is None:
            unfused[name] = "its weight is computed (torch.nn.utils.parametrize)"
        elif weight not in groups:
            unfused[name] = "its weight is not in the optimizer"
        elif sharded is None and type(weight) is not nn.Parameter:
            unfused[name] = f"its weight is a {type(weight).__name__}"
            if local_tensor(weight) is not weight:
                unfused[name] += GATHERED_AS_IT_IS
        elif sharded is None and provider is not None and provider.permanent:
            unfused[name] = f"its weight comes from a {type(provider).__name__}"
        elif isinstance(layer, _ConvTranspose) and layer.groups > 1:
            unfused[name] = "a transposed convolution with groups has its channels in pieces"
        elif weight in owners:
            first = owners[weight]
            unfused[name] = unfused[first] = "two layers share its weight"
            found.pop(weight, None)
        else:
            owners[weight] = name
            reason = reason_of_group(optimizer, groups[weight]) or reason_of_weight(weight)
            if not counts_versions(weight):
                unfused[name] = "its memory is shared with other tensors or processes"
            else:
                found[weight] = (sharded or FusedLayer)(name, layer, weight, reason)
    if not found:
        reasons = "; ".join(f"{name or 'model'}: {why}" for name, why in list(unfused.items())[:3])
        raise ValueError(
            "model must have a layer of torch_ws whose weight is in the optimizer"
            + (f"; got {reasons}" if reasons else f"; {type(model).__name__} has none")
        )
    return list(found.values()), unfused


def _clips(model, optimizer, agc) -> dict[int, float]:
    """AGC's numbers by id() of the model's parameters in the optimizer that have one."""
    if agc is None:
        return {}
    if type(optimizer) not in KINDS:
        raise ValueError(
            f"agc must be None for {type(optimizer).__name__}: only torch.optim's SGD, Adam and "
            "AdamW have a kernel that clips"
        )
    named = dict(model.named_parameters())
    if isinstance(agc, Mapping):
        for name in agc:
            if name not in named:
                raise ValueError(f"agc must name parameters of the model; it has no {name!r}")
        choose = agc.get
    elif callable(agc):
        choose = agc
    else:
        choose = dict.fromkeys(named, agc).get
    stepped = {p for group in optimizer.param_groups for p in group["params"]}
    clips = {}
    for name, parameter in named.items():
        clip = choose(name)
        if clip is None or parameter not in stepped:
            continue
        check_float(f"agc of {name!r}", clip)
        if not (clip > 0 and math.isfinite(clip)):
            raise ValueError(f"agc of {name!r} must be positive and finite, got {clip}")
        clips[id(parameter)] = clip
    return clips
