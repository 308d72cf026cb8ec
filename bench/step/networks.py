"""The networks that ``python -m bench step`` trains, from torch.nn alone.

Each is made with a class in the place of nn.Conv2d, so that every variant of a network has the
same modules, names and initial weights, and differs in its convolutions only. A GroupNorm follows
each of them, as in micro-batch training, where weight standardization is at home; they have no
bias, which that GroupNorm would remove.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

Conv = Callable[..., nn.Module]  # with nn.Conv2d's arguments


class ResNet50(nn.Module):
    """He et al. 2015, arXiv:1512.03385, with the stride in the 3x3 convolution as torchvision has.

    GroupNorm of 32 groups in the place of BatchNorm (Wu & He 2018, arXiv:1803.08494). Images
    (B, 3, H, W) to class scores (B, classes). 53 convolutions, all of them standardized.
    """

    def __init__(self, conv: Conv = nn.Conv2d, classes: int = 1000):
        super().__init__()
        self.conv1 = conv(3, 64, 7, stride=2, padding=3, bias=False)
        self.norm1 = nn.GroupNorm(32, 64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        blocks, inputs = [], 64
        for width, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
            for i in range(count):
                blocks.append(Bottleneck(conv, inputs, width, stride if i == 0 else 1))
                inputs = 4 * width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(inputs, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(self.relu(self.norm1(self.conv1(x))))
        return self.head(self.blocks(x).mean((2, 3)))


class Bottleneck(nn.Module):
    """1x1 down to `width` channels, 3x3, 1x1 up to four times as many, and the shortcut."""

    def __init__(self, conv: Conv, inputs: int, width: int, stride: int):
        super().__init__()
        outputs = 4 * width
        self.conv1 = conv(inputs, width, 1, bias=False)
        self.norm1 = nn.GroupNorm(32, width)
        self.conv2 = conv(width, width, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(32, width)
        self.conv3 = conv(width, outputs, 1, bias=False)
        self.norm3 = nn.GroupNorm(32, outputs)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Identity()
        if inputs != outputs or stride != 1:
            self.shortcut = nn.Sequential(
                conv(inputs, outputs, 1, stride=stride, bias=False), nn.GroupNorm(32, outputs)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.norm1(self.conv1(x)))
        y = self.relu(self.norm2(self.conv2(y)))
        return self.relu(self.norm3(self.conv3(y)) + self.shortcut(x))


class UNet(nn.Module):
    """Ronneberger et al. 2015, arXiv:1505.04597, padded, with half its width and a level less.

    Two 3x3 convolutions a level, each followed by a GroupNorm of 8 groups; nearest-neighbour
    upsampling in the place of transposed convolutions, so that all convolutions but the last are
    of one kind. Images (B, 3, H, W), H and W divisible by 2 ** (levels - 1), to class scores of
    every pixel. The last convolution, 1x1 without a norm, is not standardized.
    """

    def __init__(
        self, conv: Conv = nn.Conv2d, classes: int = 4, widths: tuple[int, ...] = (32, 64, 128, 256)
    ):
        super().__init__()
        self.down = nn.ModuleList(
            _double(conv, inputs, outputs)
            for inputs, outputs in zip((3, *widths), widths, strict=False)
        )
        self.up = nn.ModuleList(
            _double(conv, below + skip, skip)
            for below, skip in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.pool = nn.MaxPool2d(2)
        self.upsample = nn.Upsample(scale_factor=2)
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = []
        for level in self.down:
            x = level(self.pool(x) if skips else x)
            skips.append(x)
        skips.pop()
        for level in self.up:
            x = level(torch.cat([self.upsample(x), skips.pop()], 1))
        return self.head(x)


def _double(conv: Conv, inputs: int, outputs: int) -> nn.Sequential:
    layers = []
    for channels in (inputs, outputs):
        layers += [
            conv(channels, outputs, 3, padding=1, bias=False),
            nn.GroupNorm(8, outputs),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


@dataclass(frozen=True)
class Network:
    title: str
    make: Callable[[Conv], nn.Module]
    classes: int
    per_pixel: bool  # a class for every pixel, else one for the image
    multiple: int  # of which a side of the image must be one
    skip: tuple[str, ...] = ()  # the names of convolutions that are never standardized

    def data(self, batch: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A micro-batch of random images and labels, the next ones of PyTorch's generator."""
        labels = (batch, size, size) if self.per_pixel else (batch,)
        return torch.randn(batch, 3, size, size), torch.randint(self.classes, labels)


NETWORKS = {
    "resnet50": Network("ResNet-50", ResNet50, 1000, per_pixel=False, multiple=32),
    "unet": Network("U-Net", UNet, 4, per_pixel=True, multiple=8, skip=("head",)),
    "tiny": Network(
        "tiny U-Net",
        lambda conv: UNet(conv, widths=(8, 16)),
        4,
        per_pixel=True,
        multiple=2,
        skip=("head",),
    ),
}
DEFAULT_NETWORKS = ("resnet50", "unet")  # tiny is for tests, and for trying out the command
