"""The networks of the experiments: ResNet-8 for the panels, a chain without branches.

Convolutions and head begin as He's normal (arXiv:1502.01852), drawn by a generator of the seed in
one order, so that networks of a seed have the same weights whatever normalizes them. With a formula
all convolutions are standardized, the head is not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
import torch_ws
from torch import nn

from .settings import Setting

GROUPS = 8
WIDTHS = (16, 32, 64)
RELU_GAIN = (2 / (1 - 1 / torch.pi)) ** 0.5  # makes up for the variance that ReLU takes: 1.71


class MicroBatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d called on one micro-batch after another, in one pass.

    Each micro-batch is normalized by statistics of its own; the running ones move once for each,
    in their order: r <- (1 - momentum) r + momentum * statistics.
    """

    def __init__(self, channels: int, micro_batch: int):
        super().__init__(channels)
        self.micro_batch = micro_batch

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count = len(x) // self.micro_batch
        if not self.training or count == 1:
            return super().forward(x)
        # (B, C, H, W) to (micro_batch, count * C, H, W): a micro-batch's channels are its own
        own = x.unflatten(0, (count, self.micro_batch)).transpose(0, 1).flatten(1, 2)
        size = count * self.num_features
        mean, var = x.new_zeros(size), x.new_ones(size)  # a momentum of 1 puts statistics there
        weight, bias = self.weight.repeat(count), self.bias.repeat(count)
        own = F.batch_norm(own, mean, var, weight, bias, True, 1.0, self.eps)
        kept = 1 - self.momentum
        shares = self.momentum * kept ** torch.arange(count - 1, -1, -1, dtype=x.dtype)
        for running, found in ((self.running_mean, mean), (self.running_var, var)):
            running.mul_(kept**count).add_(shares @ found.view(count, -1))
        self.num_batches_tracked += count
        return own.unflatten(1, (count, self.num_features)).transpose(0, 1).flatten(0, 1)


def _group_norm(channels: int, micro_batch: int) -> nn.Module:
    return nn.GroupNorm(GROUPS, channels)  # the same for any micro-batch


def _batch_channel_norm(channels: int, micro_batch: int) -> nn.Module:
    return torch_ws.BatchChannelNorm2d(channels, GROUPS)


def _estimated_batch_channel_norm(channels: int, micro_batch: int) -> nn.Module:
    return torch_ws.BatchChannelNorm2d(channels, GROUPS, estimated=True)


# Each of (channels, micro_batch)
NORMS: dict[str, Callable[[int, int], nn.Module]] = {
    "gn": _group_norm,
    "bn": MicroBatchNorm2d,
    "bcn": _batch_channel_norm,
    "bcn_estimated": _estimated_batch_channel_norm,
    "none": lambda channels, micro_batch: nn.Identity(),
}

# What becomes of a convolution's initial weight of standard deviation `std`
INITIAL: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "std x 1": lambda weight, std: weight,
    "std x 0.1": lambda weight, std: 0.1 * weight,
    "std x 0.3": lambda weight, std: 0.3 * weight,
    "std x 3": lambda weight, std: 3 * weight,
    "std x 10": lambda weight, std: 10 * weight,
    "mean 1 std": lambda weight, std: weight + std,
}


class Block(nn.Module):
    """Two 3x3 convolutions and the shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Callable[[int], nn.Module]):
        super().__init__()
        bias = isinstance(norm(outputs), nn.Identity)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=bias)
        self.norm1 = norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=bias)
        self.norm2 = norm(outputs)
        self.shortcut = nn.Sequential()
        if inputs != outputs or stride != 1:
            self.shortcut.append(nn.Conv2d(inputs, outputs, 1, stride, bias=bias))
            self.shortcut.append(norm(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


def make_resnet(norm: Callable[[int], nn.Module], side: int, classes: int) -> nn.Sequential:
    """ResNet-8: a stem and a block a width, 78,000 parameters. Images (B, 1, side, side)."""
    stride = 2 if side > 16 else 1  # the smallest map keeps several positions
    bias = isinstance(norm(WIDTHS[0]), nn.Identity)
    stem = nn.Conv2d(1, WIDTHS[0], 3, stride, 1, bias=bias)
    layers = [stem, norm(WIDTHS[0]), nn.ReLU()]
    for i, width in enumerate(WIDTHS):
        layers.append(Block(WIDTHS[max(i - 1, 0)], width, 1 if i == 0 else 2, norm))
    return nn.Sequential(*layers, *_head(WIDTHS[-1], classes))


def make_chain(norm: Callable[[int], nn.Module], side: int, classes: int) -> nn.Sequential:
    """Convolutions after each other, whose layers weight_similarity compares."""
    layers, inputs = [], 1
    for width in (16, 32, 32, 64):
        stride = 2 if width != inputs and side > 16 else 1
        layers += [nn.Conv2d(inputs, width, 3, stride, 1, bias=False), norm(width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, *_head(inputs, classes))


def _head(inputs: int, classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes)]


def make(setting: Setting, side: int, classes: int, make_network=make_resnet) -> nn.Sequential:
    """As the setting says, on images (B, 1, side, side)."""

    def norm(channels: int) -> nn.Module:
        return NORMS[setting.norm](channels, setting.micro_batch)

    model = make_network(norm, side, classes)
    generator = torch.Generator().manual_seed(setting.seed)
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            _initialize(module, setting.initial, generator)
    head = str(len(model) - 1)
    if setting.formula:
        formula = torch_ws.formulas[setting.formula]
        gain = setting.norm == "none"  # nothing else gives a channel its scale
        gamma = RELU_GAIN if gain else formula.gamma
        torch_ws.convert(model, replace(formula, gamma=gamma), skip=[head], gain=gain)
    return model


def convolutions(model: nn.Module) -> list[nn.Conv2d]:
    return [module for module in model.modules() if isinstance(module, nn.Conv2d)]


@torch.no_grad()
def _initialize(module: nn.Conv2d | nn.Linear, initial: str, generator: torch.Generator) -> None:
    nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
    if module.bias is not None:
        module.bias.zero_()
    if isinstance(module, nn.Conv2d):
        fan_in = module.weight[0].numel()
        module.weight.copy_(INITIAL[initial](module.weight, (2 / fan_in) ** 0.5))
