"""Before a step is timed: is it right?

The judge is the same network with the same weights in float64, standardized by the reference in
plain PyTorch with the variant's own formula, and stepped by torch.optim's default implementation.
Compared are, after two steps, the gradients' moving averages that the optimizer keeps: the first
step's gradients are in them, and the second's, which the clipped and updated weights gave. The
network without weight standardization is checked too: its error is what the network itself loses.

ReLU and max pooling are replaced by softplus and average pooling for this: where two values are
about equal, float32 and float64 choose differently, and a few such choices in a deep network move
its gradients by percents, which would hide a missing term. Everything else is what is then timed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
import torch_ws
from torch import nn

from ..common.optimizers import CLIPS, make_optimizer
from .networks import Network
from .variants import SEED, MicroBatch, Settings, Trainer, Variant, moving_averages

# Of the error below. Rounding gives up to 3e-5 in float32 and 0.1 in bfloat16, and a gradient
# without the derivative of the standard deviation is off by 0.1: so bfloat16 is only looked at
# after float32 has been found right.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.3}
CHECKED = 2  # micro-batches at most: one more than the first shows whether they are summed
STEPS = 2
# A rate at which the first step changes the second's gradients by more than the tolerance
RATES = {"sgd": 0.01, "adamw": 1e-3}


@dataclass(frozen=True)
class Check:
    """Largest |g - g64| / |g64|, 2-norms, of all parameters, by dtype of the step.

    g: the gradients' moving averages after two steps.
    """

    errors: dict[torch.dtype, float]

    @property
    def passed(self) -> bool:
        # a NaN fails, since it compares as false
        return all(error <= TOLERANCE[dtype] for dtype, error in self.errors.items())

    @property
    def verdict(self) -> str:
        return ", ".join(
            f"gradient error {error:.1e} in {dtype_name(dtype)}, "
            f"where {TOLERANCE[dtype]:.1e} is allowed"
            for dtype, error in self.errors.items()
        )


class Judge:
    """Checks variants of one network on the same micro-batches."""

    def __init__(self, network: Network, micro_batches: Sequence[MicroBatch], settings: Settings):
        self.network = replace(network, make=lambda conv: _smooth(network.make(conv)))
        self.micro_batches = micro_batches[:CHECKED]
        self.settings = settings
        self._expected: dict[str | None, dict[str, torch.Tensor]] = {}

    def check(self, variant: Variant) -> Check:
        errors = {torch.float32: self._error(variant, replace(self.settings, autocast=False))}
        if self.settings.autocast:
            errors[torch.bfloat16] = self._error(variant, self.settings)
        return Check(errors)

    def _error(self, variant: Variant, settings: Settings) -> float:
        trainer = Trainer(variant, self.network, settings, lr=RATES[settings.optimizer])
        # PyTorch's default lets CUDA convolutions round their inputs to TF32
        with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False):
            for _ in range(STEPS):
                trainer.step(self.micro_batches)
        found = moving_averages(trainer.model, trainer.optimizer, settings)
        return gradient_error(found, self._reference(variant.formula))

    def _reference(self, formula: str | None) -> dict[str, torch.Tensor]:
        if formula not in self._expected:
            self._expected[formula] = reference_averages(
                self.network, formula, self.micro_batches, self.settings
            )
        return self._expected[formula]


def reference_averages(
    network: Network,
    formula: str | None,
    micro_batches: Sequence[MicroBatch],
    settings: Settings,
) -> dict[str, torch.Tensor]:
    class ReferenceConv2d(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            weight = torch_ws.reference.standardize(self.weight, formula=formula)
            return self._conv_forward(x, weight, self.bias)

    torch.manual_seed(SEED)
    model = network.make(nn.Conv2d if formula is None else ReferenceConv2d)
    model.to(micro_batches[0][0].device, torch.float64)
    optimizer = make_optimizer(
        settings.optimizer, model.parameters(), "default", lr=RATES[settings.optimizer]
    )
    for _ in range(STEPS):
        for images, labels in micro_batches:
            loss = F.cross_entropy(model(images.double()), labels)
            (loss / len(micro_batches)).backward()
        CLIPS[settings.clip](model.parameters())
        optimizer.step()
        optimizer.zero_grad()
    return moving_averages(model, optimizer, settings)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def gradient_error(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    if actual.keys() != expected.keys() or any(gradient is None for gradient in actual.values()):
        return float("inf")  # other parameters, or one without a gradient
    errors = [
        (actual[name].double() - gradient).norm() / gradient.norm()
        for name, gradient in expected.items()
    ]
    return torch.stack(errors).amax().item()  # amax hands a NaN on


def _smooth(model: nn.Module) -> nn.Module:
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.ReLU):
                setattr(parent, name, nn.Softplus())
            elif isinstance(child, nn.MaxPool2d):
                pool = nn.AvgPool2d(child.kernel_size, child.stride, child.padding)
                setattr(parent, name, pool)
    return model
