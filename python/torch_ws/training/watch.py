"""Notices what must not be done to a model while results made of its parameters stand for them."""

from __future__ import annotations

import functools
from collections.abc import Iterable

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

CHANGED = (
    "{} changed inside torch_ws.hold: the standardized weights that the block used are not its "
    "own any more. Step the optimizer, and load or write parameters, after the block. No gradient "
    "of a standardized weight was added"
)


class Watch:
    """Watches a model's parameters and their gradients until `remove`.

    held: the tensors of each layer whose gradients come later than the other parameters'.

    An optimizer's step, a gradient changed before a further backward pass, and a second pass that
    DistributedDataParallel synchronizes raise at once; whatever else has changed, in `check`.
    """

    def __init__(self, model: nn.Module, held: Iterable[tuple]):
        self._versions: dict = {}  # every parameter -> its version at the beginning
        self._collected: dict = {}  # other parameters -> the gradient they collected, its version
        self._hooks: list = []
        self._synchronized = False
        self._watch_ddp(model)
        self._watch_parameters(model, {id(t) for tensors in held for t in tensors})

    def check(self) -> None:
        """Raises if a parameter, or a gradient that another one had collected, was changed."""
        if any(p._version != version for p, version in self._versions.items()):
            raise RuntimeError(CHANGED.format("a parameter"))
        for parameter in self._collected:
            self._check_gradient(parameter)

    def remove(self) -> None:
        """The end: no hook stays."""
        for hook in self._hooks:
            hook.remove()

    def _watch_parameters(self, model, held):
        self._hooks.append(register_optimizer_step_pre_hook(self._refuse_step))
        # Reductions write to gradients too, and cannot be told from a user's hand.
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        for parameter in model.parameters():
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
                raise RuntimeError(CHANGED.format("a parameter would be"))

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

    def _watch_ddp(self, model):
        wrappers = [
            m for m in model.modules() if isinstance(m, nn.parallel.DistributedDataParallel)
        ]
        for option in ("find_unused_parameters", "static_graph"):
            if any(getattr(wrapper, option) for wrapper in wrappers):
                raise ValueError(
                    f"torch_ws.hold: DistributedDataParallel must have {option}=False, got "
                    "True: the weights' gradients come after its backward pass"
                )
        for wrapper in wrappers:
            self._hooks.append(wrapper.register_forward_pre_hook(self._check_synchronization))

    def _check_synchronization(self, module, args):
        if torch.is_grad_enabled() and module.require_backward_grad_sync:
            if self._synchronized:
                raise RuntimeError(
                    "torch_ws.hold: all passes but the last must run under the no_sync() of "
                    "DistributedDataParallel; this is the second that synchronizes"
                )
            self._synchronized = True
