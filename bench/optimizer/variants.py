"""Who updates a model's weights, and whom that is compared with.

All start from the same float32 weights and the same gradients, which stay: of the standardized
weights, or for torch.optim on a plain model of the weights themselves, then in float32. torch_ws's
are the calls that `fuse` makes in a step of the optimizer, and in a norm.

`copy` updates nothing. It reads and writes as many bytes as `fused`, in the same proportion and
past as many different places, in operations of PyTorch's on one tensor each: weights and states
are negated where they are, and the gradients copied to the place of the standardized weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch_ws
from torch_ws.core.update import raw_norms_many, raw_update_many

from ..common.optimizers import AGC, AGC_EPS, CLIPS, KINDS, make_optimizer
from ..weights.workloads import Tensors

COPY = "copy"
TORCH = "torch_fused"  # what all are compared with
FORMULA = "paper"
Lists = dict[str, list[torch.Tensor]]


@dataclass(frozen=True)
class Update:
    run: Callable[[], object]  # the timed part, any number of times
    results: Lists  # what it writes: its parameters, states by torch's names, and the like


# From the tensors, the optimizer's name, and its numbers where they are not the timed ones
Make = Callable[[Tensors, str, dict[str, float]], Update]


@dataclass(frozen=True)
class Variant:
    name: str
    what: str  # what exactly runs, for the report
    make: Make
    formula: str | None = None  # of torch_ws.formulas; None: nothing is standardized
    clip: str = "none"
    is_ours: bool = field(default=False)


def _fused(clip: float) -> Make:
    def make(tensors: Tensors, kind: str, numbers: dict[str, float]) -> Update:
        weights, grads = [weight.detach() for weight in tensors.weights], tensors.grads
        outs = [torch.empty_like(grad) for grad in grads]
        states = [[torch.zeros_like(w) for _ in KINDS[kind].states] for w in weights]
        adam = kind == "adamw"
        device = weights[0].device  # where torch's fused AdamW has its steps, too
        steps = [torch.zeros(1, device=device) for _ in weights] if adam else []
        none, count = [None] * len(weights), len(weights)
        arguments = [*_formula(weights), _rule(kind, numbers), [0] * count, [clip] * count, steps]

        def run():
            if adam:
                torch._foreach_add_(steps, 1)
            in_a_row = [state for of_weight in states for state in of_weight]
            raw_update_many(outs, weights, in_a_row, grads, none, none, none, none, *arguments)

        named = zip(KINDS[kind].states, map(list, zip(*states, strict=True)), strict=True)
        return Update(run, {"weight": weights, **dict(named), "standardized": outs})

    return make


def _formula(weights: list[torch.Tensor]) -> tuple[list[int], list[float]]:
    """The ops' arguments: channel_dims and formulas."""
    numbers = torch_ws.formulas[FORMULA].arguments
    formulas = [float(n) for weight in weights for n in numbers(weight[0].numel())]
    return [0] * len(weights), formulas


def _rule(kind: str, numbers: dict[str, float]) -> list[float]:
    """ws::update_many's, of the options that torch's optimizer has."""
    options = {**KINDS[kind].options, **numbers}
    lr, decay = options["lr"], options["weight_decay"]
    if kind == "sgd":
        return [0.0, lr, decay, options["momentum"], 0.0, 0.0, 0.0, 0.0, 0.0, AGC_EPS]
    return [1.0, lr, decay, *BETAS, options["eps"], 0.0, 1.0, 0.0, AGC_EPS]


BETAS = (0.9, 0.999)  # torch's


def _torch(implementation: str, clip: str = "none", standardizes: bool = False) -> Make:
    def make(tensors: Tensors, kind: str, numbers: dict[str, float]) -> Update:
        weights = tensors.weights
        for weight, grad in zip(weights, tensors.grads, strict=True):
            weight.grad = grad.to(weight.dtype)
        # a CUDA graph, in which updates are timed, takes no other AdamW
        capturable = {"capturable": True} if kind == "adamw" and weights[0].is_cuda else {}
        optimizer = make_optimizer(kind, weights, implementation, **numbers, **capturable)
        states: Lists = {name: [] for name in KINDS[kind].states}
        results = {"weight": weights, **states}

        def run():
            if standardizes:
                _standardize(tensors)
            CLIPS[clip](weights)
            optimizer.step()
            if not states[KINDS[kind].states[0]]:
                for name, found in states.items():
                    found += [optimizer.state[weight][name] for weight in weights]

        return Update(run, results)

    return make


def _standardize(tensors: Tensors) -> None:
    """Forward and backward of all weights, which leaves their gradients."""
    outs = torch_ws.standardize_many(tensors.weights, dtype=tensors.grads[0].dtype)
    grads = torch.autograd.grad(outs, tensors.weights, tensors.grads)
    for weight, grad in zip(tensors.weights, grads, strict=True):
        weight.grad = grad


def _norms(tensors: Tensors, kind: str, numbers: dict[str, float]) -> Update:
    weights = [weight.detach() for weight in tensors.weights]
    arguments = [tensors.grads, weights, [None] * len(weights), *_formula(weights), False]
    found: list[torch.Tensor] = []

    def run():
        found[:] = raw_norms_many(*arguments)

    return Update(run, {"squared_norms": found})


def _clip_grad_norm(tensors: Tensors, kind: str, numbers: dict[str, float]) -> Update:
    for weight, grad in zip(tensors.weights, tensors.grads, strict=True):
        weight.grad = grad.to(weight.dtype)
    grads = [weight.grad for weight in tensors.weights]
    return Update(lambda: CLIPS["norm"](tensors.weights), {"grad": grads})


def _copy(tensors: Tensors, kind: str, numbers: dict[str, float]) -> Update:
    elements = sum(weight.numel() for weight in tensors.weights)
    device = tensors.weights[0].device
    in_place = [torch.ones(elements, device=device) for _ in ("weight", *KINDS[kind].states)]
    grads = torch.ones(elements, dtype=tensors.grads[0].dtype, device=device)
    outs = torch.empty_like(grads)

    def run():
        for tensor in in_place:
            tensor.neg_()
        outs.copy_(grads)

    return Update(run, {})


def moved_bytes(kind: str, elements: int, dtype: torch.dtype) -> int:
    """What `fused` has to read and write: 24 bytes a weight for SGD in float32."""
    in_place = 2 * torch.float32.itemsize * (1 + len(KINDS[kind].states))
    return elements * (in_place + 2 * dtype.itemsize)


def variants() -> dict[str, Variant]:
    one_pass = "ws::update_many: gradients, update and the next standardized weights"
    plain = "torch.optim on plain weights"
    found = [
        Variant("fused", f"{one_pass}, as fuse calls it", _fused(0.0), FORMULA, is_ours=True),
        Variant(
            "fused_agc",
            f"the same with adaptive gradient clipping to {AGC:g}",
            _fused(AGC),
            FORMULA,
            clip="agc",
            is_ours=True,
        ),
        Variant(TORCH, f"{plain}, fused=True", _torch("fused")),
        Variant("torch_foreach", f"{plain}, foreach=True", _torch("foreach")),
        Variant("torch_default", f"{plain}, no implementation named", _torch("default")),
        Variant(
            "torch_agc",
            f"adaptive gradient clipping by timm's operations, then {TORCH}",
            _torch("fused", clip="agc"),
            clip="agc",
        ),
        Variant(
            "grouped",
            f"torch_ws.standardize_many forward and backward, then {TORCH}",
            _torch("fused", standardizes=True),
            FORMULA,
            is_ours=True,
        ),
        Variant(
            "norms",
            "ws::norms_many: the norms of all gradients of the weights, as clip_grad_norm_ on a "
            "fused model",
            _norms,
            FORMULA,
            is_ours=True,
        ),
        Variant("clip_grad_norm", "torch's clip_grad_norm_ on plain weights", _clip_grad_norm),
        Variant(
            COPY,
            "as many bytes as fused reads and writes: neg_() of weights and states, copy_() of "
            "gradients",
            _copy,
        ),
    ]
    return {variant.name: variant for variant in found}
