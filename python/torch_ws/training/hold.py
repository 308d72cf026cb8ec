"""Gradient accumulation with one standardization: the results of a block are leaves of its graphs.

Inside the block the standardized weights are tensors of their own that collect gradients. At its
end one backward call turns what they have collected into the gradients of the parameters. That is
the same sum, because a gradient passes through standardization linearly.
"""

from __future__ import annotations

import functools

import torch
from torch import nn

from .._check import check_module
from ..core.private import is_compiled
from ..layers.cache import Inputs
from ..layers.standardized import autocast_dtype
from . import batch
from .batch import Member, batches, standardized_layers
from .provider import Provider
from .watch import CHANGED, Watch


def hold(model: nn.Module) -> Hold:
    """A context manager for gradient accumulation: weights are standardized once for the block.

    Equivalent to the same block without it, but with one standardization forward and one backward,
    however many passes are in between:

        with torch_ws.hold(model):
            for x, y in micro_batches:
                loss(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()

    The gradients of the standardized layers' `weight`, `gain` and `shift` appear in `.grad` at the
    end of the block; the gradients of all other parameters appear with every backward pass, as
    usual. So ``unscale_``, clipping, ``zero_grad`` and ``optimizer.step`` belong after the block.

    Args:
        model: any module; its torch_ws layers are held. Give a compiled module, not what it wraps.

    Raises:
        TypeError: `model` is not a module.
        ValueError: DistributedDataParallel with ``find_unused_parameters`` or ``static_graph``.
        RuntimeError: blocks are nested; an optimizer of the model steps inside the block; or, at
            the latest at the end of the block and with no gradient of a standardized weight added:
            a parameter, or a gradient that other parameters had collected, was changed inside the
            block; or a second synchronizing pass; or a backward pass after the block through
            weights held by it.
    """
    check_module(model)
    return Hold(model)


class _Held:
    """One layer's standardized weight during the block, in one dtype, and its gradient so far."""

    def __init__(self, member, result):
        self.member = member
        self.inputs = Inputs(member.layer, member.tensors)
        self.grad = None
        self.open = True
        self.leaf = result
        if any(t is not None and t.requires_grad for t in member.tensors):
            self.leaf.requires_grad_().register_post_accumulate_grad_hook(self._collect)

    def _collect(self, leaf):
        grad, leaf.grad = leaf.grad.detach(), None
        if not self.open:
            raise RuntimeError(
                "a backward pass after the end of a torch_ws.hold block reached a weight that was "
                "standardized in it; call backward inside the block"
            )
        if self.grad is None:  # in the weight's dtype: a sum in bfloat16 would soon stand still
            self.grad = grad.to(self.member.tensors[0].dtype)
        else:
            self.grad += grad

    def close(self):
        self.open = False
        self.leaf = self.grad = None


class _Gradients(torch.autograd.Function):
    """A node whose backward gives the tensors it was made of the gradients that `take` returns.

    Nobody else refers to them then, so autograd takes them over as `.grad`. Given to
    torch.autograd.backward as a list, every one of them would be copied.
    """

    @staticmethod
    def forward(ctx, take, *tensors):
        ctx.take = take
        return tensors[0].new_empty(())

    @staticmethod
    def backward(ctx, _):
        return None, *ctx.take()


def _take(some):
    """The gradients of the layers' tensors from those of their results, which are let go of."""
    grads = [held.grad for held in some]
    for held in some:
        held.leaf = held.grad = None
    triples = batch.backward([held.member for held in some], grads)
    return [gradient for triple in triples for gradient in triple]


class Hold(Provider):
    """What `hold` returns. Entered once; in the block its layers' Provider."""

    idle = permanent = False

    def __init__(self, model):
        self._model = model
        self._entered = False
        self._layers: dict = {}  # layer -> its (weight, gain, shift) at the beginning
        self._held: dict = {}  # (layer, dtype) -> _Held
        self._leaves: dict = {}  # dtype -> layer -> (formula, leaf), for compiled code
        self._watch: Watch  # in the block
        self._providers: dict = {}  # layer -> the provider that it had, where it had one

    def __enter__(self):
        if self._entered:
            raise RuntimeError("torch_ws.hold: a block can be entered once; call hold again")
        layers = standardized_layers(self._model)
        if any(layer._is_provided_for() for layer in layers):
            raise RuntimeError("torch_ws.hold: blocks of one model cannot be nested")
        found = {layer: layer._tensors() for layer in layers}
        self._watch = Watch(self._model, found.values())
        self._layers, self._entered = found, True
        self._providers = {m: m._provider for m in layers if "_provider" in m.__dict__}
        for layer in layers:
            layer.__dict__["_provider"] = self
        if any(map(is_compiled, self._model.modules())):
            self._make(layers)  # compiled code can use results, but not keep what it makes
        return self

    def take(self, layer, tensors, dtype):
        """The layer's held result; None: the layer computes its own."""
        known = self._layers.get(layer)
        if known is None or any(a is not b for a, b in zip(tensors, known, strict=True)):
            return None  # a replica; or torch.func.functional_call has put other tensors there
        if torch.compiler.is_compiling():
            formula, leaf = self._leaves.get(dtype, {}).get(layer, (None, None))
            return leaf if layer.formula == formula else None
        if (layer, dtype) not in self._held:
            self._make([layer] if self._held else self._layers)
        held = self._held[layer, dtype]
        if held.inputs.are(layer, tensors):
            return held.leaf
        if not held.inputs.unchanged():
            raise RuntimeError(CHANGED.format(f"a parameter of {layer}"))
        return None

    def _make(self, layers):
        known = [(layer, self._layers[layer]) for layer in layers]
        members = [Member(m, t, autocast_dtype(t[0]), m.formula) for m, t in known]
        with torch.inference_mode(False), torch.enable_grad():
            for some in batches(members):
                with torch.no_grad():
                    outs = batch.forward(some)
                for member, out in zip(some, outs, strict=True):
                    layer, _, dtype, formula = member
                    held = _Held(member, layer._from_rows(out))
                    self._held[layer, dtype] = held
                    self._leaves.setdefault(dtype, {})[layer] = formula, held.leaf

    def __exit__(self, kind, error, traceback):
        for layer in self._layers:  # as they were, which compiled code guards
            layer.__dict__.pop("_provider", None)
            if layer in self._providers:
                layer.__dict__["_provider"] = self._providers[layer]
        self._watch.remove()
        try:
            if error is None:
                if not all(held.inputs.unchanged() for held in self._held.values()):
                    raise RuntimeError(CHANGED.format("a parameter"))
                self._watch.check()
                self._leaves = {}  # or they would be there beside the gradients of both kinds
                self._backward()
        finally:
            for held in self._held.values():
                held.close()
            self._held, self._leaves = {}, {}
            del self._watch

    def _backward(self):
        by_device: dict = {}
        for held in self._held.values():
            if held.grad is not None:
                by_device.setdefault(held.grad.device, []).append(held)
        tokens = []
        for some in by_device.values():
            with torch.enable_grad():
                tensors = [t for held in some for t in held.member.tensors]
                tokens.append(_Gradients.apply(functools.partial(_take, some), *tensors))
        if tokens:
            # through autograd, not into .grad: for the hooks of DistributedDataParallel and others
            torch.autograd.backward(tokens)
