"""Who standardizes: torch_ws and its peers, as functions from a list of weights to a list.

Each peer computes the formula that its users run, so each is checked against the float64 reference
of that formula and not of another's. All of them differ from `paper` by a scalar per channel only,
which takes no time.

`copy` standardizes nothing. It is the measure of the others: a clone that moves as many bytes. On
CUDA a clone is the driver's copy, so `elementwise` is timed beside it, a kernel of PyTorch's that
reads and writes what the direction does: neither is the faster one everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch_ws

from ..common.peers import chained_formula, layer_norm, timm_batch_norm

Tensor = torch.Tensor
Standardize = Callable[[list[Tensor]], list[Tensor]]

COPY = "copy"
ELEMENTWISE = "elementwise"
OURS = "torch_ws"


@dataclass(frozen=True)
class Provider:
    name: str
    what: str  # what exactly runs, for the report
    formula: str | None = None  # of torch_ws.formulas; None: nothing to check
    make: Callable[[torch.dtype], Standardize] | None = None  # from the outputs' dtype
    capability: str | None = None  # the instruction set that torch_ws is lowered to


def _each(function: Callable[[Tensor], Tensor]) -> Callable[[torch.dtype], Standardize]:
    def make(dtype: torch.dtype) -> Standardize:
        return lambda weights: [function(weight).to(dtype) for weight in weights]

    return make


def _ours(dtype: torch.dtype) -> Standardize:
    return lambda weights: [torch_ws.standardize(weight, dtype=dtype) for weight in weights]


def _ours_many(dtype: torch.dtype) -> Standardize:
    return lambda weights: torch_ws.standardize_many(weights, dtype=dtype)


def _compiled(dtype: torch.dtype) -> Standardize:
    # All weights in one graph, as in a compiled model: one call and one check of the guards.
    torch.compiler.reset()
    function = torch.compile(
        lambda *weights: [chained_formula(weight).to(dtype) for weight in weights],
        fullgraph=True,
        dynamic=False,
    )
    return lambda weights: function(*weights)


def peers() -> dict[str, Provider]:
    chain = "chained means, (w - mean) / (std + 1e-5), the authors' 2019 code"
    found = [
        Provider("formula", f"eager: {chain}", "qiao", _each(chained_formula)),
        Provider(
            "batch_norm",
            "F.batch_norm(w.reshape(1, O, -1), training=True, momentum=0, eps=1e-6) as in timm",
            "timm",
            _each(timm_batch_norm),
        ),
        Provider(
            "layer_norm", "F.layer_norm(w, w.shape[1:], eps=1e-5)", "nnabla", _each(layer_norm)
        ),
        Provider(
            "compile",
            "torch.compile(fullgraph=True, dynamic=False) of `formula`, all weights in one graph",
            "qiao",
            _compiled,
        ),
        Provider(COPY, "clone() of half the bytes that the direction moves"),
        Provider(ELEMENTWISE, "forward: -w, or w.to(dtype); backward: w + g"),
    ]
    return {provider.name: provider for provider in found}


def ours(many: bool = False, capability: str | None = None) -> Provider:
    name = OURS if capability is None else f"{OURS} {capability}"
    what = "torch_ws.standardize_many(weights)" if many else "torch_ws.standardize(w)"
    return Provider(name, what, "paper", _ours_many if many else _ours, capability)
