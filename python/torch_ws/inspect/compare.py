"""How similar two checkpoints' weights are, layer by layer, as stored and standardized.

A checkpoint says neither whether its layers standardize nor in which order they are applied. So
both are computed, for the chosen tensors as a chain in the checkpoint's order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from ..core.standardize import standardize
from ..formulas import formulas
from ..similarity import Chain, Link, check_chains, similarities
from .stored import Checkpoint, Stored, Unreadable, reading

MOST_CHANNELS = 2**14  # so that a matrix of channels x channels has 2 GiB at most


class Selected(NamedTuple):
    checkpoint: Checkpoint
    chosen: dict[str, Stored]
    transposed: set[str]


class Similarity(NamedTuple):
    name: str
    other: str  # the tensor of the other checkpoint
    stored: float
    standardized: float  # NaN from the first layer on where the formula is undefined


def compare(
    a: Selected, b: Selected, formula: str, advance: Callable[[int], None]
) -> list[Similarity]:
    """Reads every tensor twice; `advance` is told how many bytes were read.

    Raises Unreadable, before anything is read, unless the two can be compared.
    """
    chains = _chain(a, advance), _chain(b, advance)
    _check(*chains)
    stored = similarities(*chains)
    standardized = similarities(*(_standardized(chain, formula) for chain in chains))
    rows = zip(a.chosen, b.chosen, stored, standardized, strict=True)
    return [Similarity(*row) for row in rows]


def _chain(selected, advance):
    checkpoint, chosen, transposed = selected

    def link(name, stored):
        def read():
            with reading(checkpoint.path):
                weight = stored.block(0, 0, stored.shape[0])
            advance(stored.bytes)
            return weight.transpose(0, 1) if name in transposed else weight

        shape = list(stored.shape)
        if name in transposed:
            shape[:2] = shape[1], shape[0]
        return Link(name, tuple(shape), read, transposed=name in transposed)

    return Chain(str(checkpoint.path), [link(*item) for item in chosen.items()])


def _check(*chains):
    try:
        check_chains(*chains)
    except ValueError as error:
        why = "layers that branch or are grouped are no chain; --include and --exclude choose one"
        raise Unreadable(f"{error}; {why}") from None
    for chain in chains:
        for link in chain.links:
            if link.shape[0] > MOST_CHANNELS:
                what = f"more than {MOST_CHANNELS} output channels"
                raise Unreadable(f"{chain.of}: {link.name} has {what}; --exclude leaves it out")


def _standardized(chain, formula):
    def standardized(link):
        def read():
            weight = link.read().double()
            if formulas[formula].correction >= math.prod(link.shape[1:]):
                return torch.full_like(weight, math.nan)
            return standardize(weight, formula=formula)

        return link._replace(read=read)

    return Chain(chain.of, [standardized(link) for link in chain.links])
