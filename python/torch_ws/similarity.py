"""How similar two networks' weights are, layer by layer, whatever the order of hidden channels.

A chain of layers without biases and activations is P_l = W_l P_(l-1): one row an output channel,
one column for each input channel and choice of a position in every kernel so far. The feature of
layer l is G_l = P_l^T P_l, which no permutation of hidden channels changes, and two networks are as
similar there as the cosine of their features (Wang et al. 2020, 2022: docs/inspecting.md). G_l
grows with every kernel. With M_l(a, b) = P_l^a (P_l^b)^T, channels x channels,

    <G_l^a, G_l^b> = |M_l(a, b)|_F^2
    M_l(a, b) = sum over positions k of W_l^a[:, :, k] M_(l-1)(a, b) W_l^b[:, :, k]^T,  M_0 = I
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from ._check import called, check_module, check_weight, naming
from .layers.standardized import TRANSPOSED, Standardized, regrouped
from .models.convert import CONVOLUTIONS, LINEAR, NORMALIZATIONS
from .models.convertible import near_matches, own_class

Tensor = torch.Tensor

LAYERS = (*CONVOLUTIONS, *LINEAR)
CHUNK = 2**22  # elements of a product, for several kernel positions at a time: 32 MiB


def weight_similarity(
    a: nn.Module, b: nn.Module, layers: Iterable[str] | None = None
) -> list[float]:
    """How similar the weights of two networks are, layer by layer, in any order of hidden channels.

    For a chain of linear layers, equivalent to

        p_a, p_b = w_a @ p_a, w_b @ p_b  # at each layer; from the identity on
        g_a, g_b = p_a.T @ p_a, p_b.T @ p_b
        (g_a * g_b).sum() / (g_a.norm() * g_b.norm())

    in float64; a convolution is such a matrix for every position in its kernel. 1: the same
    features of the input, in whatever order and at whatever scale. Layers that standardize count
    with their standardized weights. Biases, normalizations, activations, strides and paddings do
    not take part: it compares what the weights make of the input, and not what the networks do.

    Args:
        a: convolutions, transposed ones and linear layers of torch.nn and torch_ws, parametrized
            ones too, in nested ``nn.Sequential``; a layer alone is a chain of one. A linear layer
            after a flattening takes channels times positions.
        b: the other network. Hidden widths may differ; input channels, kernels and the number of
            layers must be equal.
        layers: the names of the layers, the same for both, in the order of the chain, as in
            ``model.named_modules()``; for networks that are no sequence. None: all of them.

    Returns:
        A value in [0, 1] a layer, of the chain from the input up to it: 0 where a weight is 0, NaN
        from the first weight with NaN or Inf on. Computed on the device of the first weight if that
        is a GPU, else on the CPU, from matrices of channels x channels.

    Raises:
        TypeError: an argument is of the wrong type; a layer is of another class.
        ValueError: without `layers`, a module other than ``nn.Sequential`` has weights in it, whose
            order or branches are unknown; a name that a model does not have; layers that do not
            follow each other; chains that differ in more than hidden widths; a weight that is
            lazy, sharded, without values, or made by weight_norm or pruning.
        NotImplementedError: a sparse or quantized weight.
    """
    check_module(a, "a")
    check_module(b, "b")
    names = None if layers is None else _names(layers)
    chain_a, chain_b = _chain("a", a, names), _chain("b", b, names)
    check_chains(chain_a, chain_b)
    first = chain_a.links[0].read()
    return list(similarities(chain_a, chain_b, first.device if first.is_cuda else "cpu"))


class Link(NamedTuple):
    """A layer of a chain, with output channels first whatever its class."""

    name: str
    shape: tuple[int, ...]  # (outputs, inputs / groups, *kernel)
    read: Callable[[], Tensor]  # gives the weight, of that shape
    groups: int = 1
    transposed: bool = False

    @property
    def inputs(self) -> int:
        return self.groups * self.shape[1]


class Chain(NamedTuple):
    of: str  # whose layers they are
    links: list[Link]


def check_chains(a: Chain, b: Chain) -> None:
    """Raises ValueError unless each is a chain and they differ in hidden widths at most."""
    both, kernels = f"{a.of} and {b.of}", [_kernels(a), _kernels(b)]
    if len(a.links) != len(b.links):
        got = " and ".join(f"{len(c.links)} up to {c.links[-1].name}" for c in (a, b))
        raise ValueError(f"{both} must have as many layers, got {got}")
    for i, (x, y) in enumerate(zip(a.links, b.links, strict=True)):
        where = f"{both}: {x.name}" if x.name == y.name else f"{both}: {x.name} and {y.name}"
        if i == 0 and x.inputs != y.inputs:
            got = f"{x.inputs} and {y.inputs}"
            raise ValueError(f"{where} must take as many input channels, got {got}")
        if kernels[0][i] != kernels[1][i]:
            got = f"{kernels[0][i]} and {kernels[1][i]}"
            raise ValueError(f"{where} must have equal kernels, got {got}")


def _kernels(chain):
    """Each layer's kernel in words; that of a linear layer are the positions flattened before it.

    Raises ValueError where a layer does not take what the one before it gives.
    """
    before, channels, kernels = "", chain.links[0].inputs, []
    for link in chain.links:
        if 0 in link.shape:
            raise ValueError(f"{chain.of}: {link.name} is empty")
        linear = len(link.shape) == 2
        if link.inputs % channels if linear else link.inputs != channels:
            raise ValueError(
                f"{chain.of}: {link.name} takes {link.inputs} channels, and {before}, before it in "
                f"the chain, gives {channels}"
            )
        sizes = (link.inputs // channels,) if linear else link.shape[2:]
        kernels.append("×".join(map(str, sizes)) + " transposed" * link.transposed)
        before, channels = link.name, link.shape[0]
    return kernels


@torch.no_grad()
def similarities(a: Chain, b: Chain, device: torch.device | str = "cpu") -> Iterator[float]:
    """Of chains that are checked, layer by layer; each layer is read when its turn comes."""
    m_aa = m_ab = m_bb = None  # the identity
    inputs = a.links[0].inputs, b.links[0].inputs
    for x, y in zip(a.links, b.links, strict=True):
        outputs = x.shape[0], y.shape[0]
        step = max(1, CHUNK // (max(inputs) * max(outputs)))
        sum_aa = sum_ab = sum_bb = torch.zeros((), dtype=torch.float64, device=device)
        blocks = _blocks(x, inputs[0], step, device), _blocks(y, inputs[1], step, device)
        for w_a, w_b in zip(*blocks, strict=True):
            sum_aa = sum_aa + _between(w_a, m_aa, w_a)
            sum_ab = sum_ab + _between(w_a, m_ab, w_b)
            sum_bb = sum_bb + _between(w_b, m_bb, w_b)
        # Unit norms, so that chains of any length stay in range; where a product is 0, it stays 0.
        norms = [m.norm().item() or 1.0 for m in (sum_aa, sum_bb)]
        m_aa, m_bb = sum_aa / norms[0], sum_bb / norms[1]
        m_ab = sum_ab / math.sqrt(norms[0] * norms[1])
        yield min(m_ab.norm().item() ** 2, 1.0)  # rounded; min() keeps a NaN that comes first
        inputs = outputs


def _blocks(link, inputs, step, device):
    """The blocks of the weight's block-diagonal matrices, some kernel positions k at a time.

    (k, groups, outputs / groups, inputs / groups) in float64; the largest element of all is 1.
    """
    weight = link.read()
    largest = weight.abs().amax().item() or 1.0
    blocks = weight.reshape(link.groups, link.shape[0] // link.groups, inputs // link.groups, -1)
    for some in blocks.movedim(-1, 0).split(step):
        yield some.to(device, torch.float64) / largest


def _between(left, m, right):
    """The sum over k of left[k] @ m @ right[k].T, of block-diagonal matrices; m None: identity."""
    if m is not None or left.shape[1] > 1:
        if m is None:
            m = torch.eye(left.shape[1] * left.shape[3], dtype=left.dtype, device=left.device)
        left = left @ m.unflatten(0, (left.shape[1], left.shape[3]))
    left = left.flatten(1, 2).unflatten(2, (right.shape[1], right.shape[3]))
    return torch.einsum("kagi,kgbi->agb", left, right).flatten(1)


def _names(layers):
    if isinstance(layers, str) or not isinstance(layers, Iterable):
        raise TypeError(f"layers must be an iterable of names, got {type(layers).__name__}")
    names = list(layers)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"layers must hold names, got {type(name).__name__}")
    return names


def _chain(of, model, names):
    if names is None:
        found = list(_in_sequence("", model, of))
    else:
        by_name = dict(model.named_modules(remove_duplicate=False))
        for name in names:
            if name not in by_name:
                hint = near_matches(name, by_name)
                raise ValueError(f"layers: {of} has no module named {name!r}{hint}")
        found = [(name, by_name[name]) for name in names]
    if not found:
        raise ValueError(f"{of} must have a convolution or linear layer, got none")
    links = []
    for name, layer in found:
        with naming(f"{of}: {called(name, layer)}"):
            links.append(_link(called(name, layer), layer))
    return Chain(of, links)


def _in_sequence(name, module, of):
    """The layers of nested nn.Sequential by name, in the order in which they are called."""
    if isinstance(module, LAYERS):
        yield name, module
    elif inspect.unwrap(type(module).forward) is nn.Sequential.forward:  # also a grouped one
        for child, below in module._modules.items():  # named_children() has each but once
            yield from _in_sequence(f"{name}.{child}" if name else child, below, of)
    elif any(map(_has_weights, module.modules())):
        raise ValueError(
            f"{of}: {called(name, module)} has weights in it, and in which order it applies them, "
            "or in branches, is unknown: only nn.Sequential is a chain. `layers` can name one"
        )


def _has_weights(module):
    parameters = module.parameters(recurse=False)
    return not isinstance(module, NORMALIZATIONS) and any(p.dim() > 1 for p in parameters)


def _link(name, layer):
    ours = isinstance(layer, Standardized)
    if not isinstance(layer, LAYERS) or not (ours or own_class(layer) in LAYERS):
        raise TypeError(
            "must be a convolution or linear layer of torch.nn or torch_ws itself: what a class "
            "of another name applies is unknown"
        )
    weight = _applied(layer)
    groups, transposed = getattr(layer, "groups", 1), isinstance(layer, TRANSPOSED)
    if transposed:
        weight = regrouped(weight, groups)
    return Link(name, tuple(weight.shape), lambda: weight, groups, transposed)


@torch.no_grad()
def _applied(layer):
    """The weight that the layer applies, computed beside it: no pass, no cache, no other state."""
    if parametrize.is_parametrized(layer, "weight"):
        weight = copy.deepcopy(layer.parametrizations.weight)()  # spectral_norm changes its buffers
    else:
        weight = layer._parameters.get("weight")
    if weight is None:
        raise ValueError(
            "its weight is not a parameter but made anew for each call, as by weight_norm, "
            "spectral_norm or pruning: remove that first"
        )
    if is_lazy(weight):
        raise ValueError("is not initialized: first run the model once")
    if hasattr(weight, "device_mesh"):
        raise ValueError("its weight is sharded: compare models loaded from checkpoints")
    check_weight(weight)
    if weight.is_meta:
        raise ValueError("its weight has no values: it is on the meta device")
    if isinstance(layer, Standardized):
        weight = layer._standardize((weight, layer.gain, layer.shift), None)
    return weight.detach()
