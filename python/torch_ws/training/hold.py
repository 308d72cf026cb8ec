"""Gradient accumulation with one standardization: the results of a block are leaves of its graphs.

Inside the block the standardized weights are tensors of their own that collect gradients. At its
end one backward launch turns what they have collected into the gradients of the parameters. That is
the same sum, because a gradient passes through standardization linearly.
"""

from __future__ import annotations

import functools

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ..layers.cache import Inputs
from ..layers.standardized import autocast_dtype
from .batch import Launch, launches, standardized_layers

_CHANGED = (
    "{} changed inside torch_ws.hold: the standardized weights that the block used are not its "
    "own any more. Step the optimizer, and load or write parameters, after the block. No gradient "
    "of a standardized weight was added"
)


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
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    return Hold(model)


class _Held:
    """One layer's standardized weight during the block, in one dtype, and its gradient so far."""

    def __init__(self, layer, tensors, dtype, result):
        self.layer = layer
        self.dtype = dtype
        self.tensors = tensors
        self.inputs = Inputs(layer, tensors)
        self.grad = None
        self.open = True
        self.leaf = result
        if any(t is not None and t.requires_grad for t in tensors):
            self.leaf.requires_grad_().register_post_accumulate_grad_hook(self._collect)

    def _collect(self, leaf):
        grad, leaf.grad = leaf.grad.detach(), None
        if not self.open:
            raise RuntimeError(
                "a backward pass after the end of a torch_ws.hold block reached a weight that was "
                "standardized in it; call backward inside the block"
            )
        if self.grad is None:
            self.grad = grad.to(self.tensors[0].dtype)  # a sum in bfloat16 would soon stand still
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


def _take(launch, some):
    """The gradients of the launch's tensors from those of its results, which are let go of."""
    grads = [held.grad for held in some]
    for held in some:
        held.leaf = held.grad = None
    return [gradient for triple in launch.backward(grads) for gradient in triple]


class Hold:
    """What `hold` returns. Entered once."""

    idle = False

    def __init__(self, model):
        self._model = model
        self._layers: dict | None = None  # layer -> its (weight, gain, shift) at the beginning
        self._held: dict = {}  # (layer, dtype) -> _Held
        self._leaves: dict = {}  # dtype -> layer -> (formula, leaf), for compiled code
        self._versions: dict = {}  # every parameter -> its version at the beginning
        self._collected: dict = {}  # other parameters -> the gradient they collected, its version
        self._hooks: list = []
        self._synchronized = False
        self._providers: dict = {}  # layer -> the provider that it had, where it had one

    def __enter__(self):
        if self._layers is not None:
            raise RuntimeError("torch_ws.hold: a block can be entered once; call hold again")
        layers = standardized_layers(self._model)
        if any(layer._is_provided_for() for layer in layers):
            raise RuntimeError("torch_ws.hold: blocks of one model cannot be nested")
        self._watch_ddp()
        self._layers = {layer: layer._tensors() for layer in layers}
        self._watch_parameters()
        self._providers = {m: m._provider for m in layers if "_provider" in m.__dict__}
        for layer in layers:
            layer.__dict__["_provider"] = self
        if any(m._compiled_call_impl or "_orig_mod" in m._modules for m in self._model.modules()):
            self._make(layers)  # compiled code can use results, but not keep what it makes
        return self

    def take(self, layer, tensors, dtype):
        """The layer's held result; None: the layer computes its own. See Standardized."""
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
            raise RuntimeError(_CHANGED.format(f"a parameter of {layer}"))
        return None

    def _make(self, layers):
        members = [(m, self._layers[m], autocast_dtype(self._layers[m][0])) for m in layers]
        with torch.inference_mode(False), torch.enable_grad():
            for launch in launches(members):
                with torch.no_grad():
                    outs = launch.forward()
                leaves = self._leaves.setdefault(launch.dtype, {})
                for layer, tensors, out in zip(launch.layers, launch.tensors, outs, strict=True):
                    held = _Held(layer, tensors, launch.dtype, layer._from_rows(out))
                    self._held[layer, launch.dtype] = held
                    leaves[layer] = layer.formula, held.leaf

    def __exit__(self, kind, error, traceback):
        for layer in self._layers:  # as they were, which compiled code guards
            layer.__dict__.pop("_provider", None)
            if layer in self._providers:
                layer.__dict__["_provider"] = self._providers[layer]
        for hook in self._hooks:
            hook.remove()
        try:
            if error is None:
                self._check_unchanged()
                self._leaves = {}  # or they would be there beside the gradients of both kinds
                self._backward()
        finally:
            for held in self._held.values():
                held.close()
            self._held, self._leaves, self._collected = {}, {}, {}

    def _backward(self):
        by_device: dict = {}
        for held in self._held.values():
            if held.grad is not None:
                by_device.setdefault(held.grad.device, []).append(held)
        tokens = []
        for some in by_device.values():
            with torch.enable_grad():
                launch = Launch([(held.layer, held.tensors) for held in some], None)
                # that of the results: the layer may have another by now
                launch.formulas = [held.inputs.formula for held in some]
                tensors = [t for held in some for t in held.tensors]
                tokens.append(_Gradients.apply(functools.partial(_take, launch, some), *tensors))
        if tokens:
            # through autograd, not into .grad: for the hooks of DistributedDataParallel and others
            torch.autograd.backward(tokens)

    def _watch_parameters(self):
        held = {id(t) for tensors in self._layers.values() for t in tensors}
        self._hooks.append(register_optimizer_step_pre_hook(self._refuse_step))
        # Reductions write to gradients too, and cannot be told from a user's hand.
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        for parameter in self._model.parameters():
            if parameter.is_inference():
                continue
            self._versions[parameter] = parameter._version
            if parameter.requires_grad and id(parameter) not in held and not distributed:
                check = functools.partial(self._check_gradient, parameter)
                self._hooks.append(parameter.register_hook(check))
                hook = parameter.register_post_accumulate_grad_hook(self._note_gradient)
                self._hooks.append(hook)

    def _refuse_step(self, optimizer, args, kwargs):
        if not torch.compiler.is_compiling():  # whose step counts versions
            parameters = (p for group in optimizer.param_groups for p in group["params"])
            if any(p in self._versions for p in parameters):
                raise RuntimeError(_CHANGED.format("a parameter would be"))

    def _check_gradient(self, parameter, _=None):
        """Raises if what `parameter` had collected is not there as it was."""
        grad, version = self._collected.get(parameter, (None, None))
        if grad is not None and (parameter.grad is not grad or grad._version != version):
            raise RuntimeError(
                "gradients were changed inside torch_ws.hold, before those of the standardized "
                "weights were there: unscale, clip, step and zero_grad after the block. No "
                "gradient of a standardized weight was added"
            )

    def _note_gradient(self, parameter):
        self._collected[parameter] = parameter.grad, parameter.grad._version

    def _check_unchanged(self):
        if any(p._version != version for p, version in self._versions.items()) or not all(
            held.inputs.unchanged() for held in self._held.values()
        ):
            raise RuntimeError(_CHANGED.format("a parameter"))
        for parameter in self._collected:
            self._check_gradient(parameter)

    def _watch_ddp(self):
        for module in self._model.modules():
            if not isinstance(module, nn.parallel.DistributedDataParallel):
                continue
            for option in ("find_unused_parameters", "static_graph"):
                if getattr(module, option):
                    raise ValueError(
                        f"torch_ws.hold: DistributedDataParallel must have {option}=False, got "
                        "True: the weights' gradients come after its backward pass"
                    )
            self._hooks.append(module.register_forward_pre_hook(self._check_synchronization))

    def _check_synchronization(self, module, args):
        if torch.is_grad_enabled() and module.require_backward_grad_sync:
            if self._synchronized:
                raise RuntimeError(
                    "torch_ws.hold: all passes but the last must run under the no_sync() of "
                    "DistributedDataParallel; this is the second that synchronizes"
                )
            self._synchronized = True
