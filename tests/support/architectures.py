"""Small networks with the structure of well-known ones, in plain torch.nn, and inputs for them.

No torch_ws here: a process in which it cannot be imported loads these.
"""

import torch
import torch.nn.functional as F
from torch import nn


def conv_bn(inputs, outputs, size, **options):
    padding = options.pop("padding", size // 2)
    conv = nn.Conv2d(inputs, outputs, size, padding=padding, bias=False, **options)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class Bottleneck(nn.Module):
    """ResNet-50's block: normalization after each convolution."""

    def __init__(self, inputs, width, stride=1):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.downsample = None
        if stride != 1 or inputs != 4 * width:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
            )

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(out)))))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


def resnet():
    blocks = nn.Sequential(Bottleneck(8, 4), Bottleneck(16, 4), Bottleneck(16, 8, 2))
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(conv_bn(3, 8, 7, stride=2), blocks, pool, nn.Linear(32, 10))


class PreActivation(nn.Module):
    """BiT's block: normalization before each convolution, with groups."""

    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(4, inputs), nn.GroupNorm(4, outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, stride, 1, bias=False)
        self.project = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x):
        out = F.relu(self.norm1(x))
        return self.project(out) + self.conv2(F.relu(self.norm2(self.conv1(out))))


def bit():
    head = nn.Sequential(nn.GroupNorm(4, 16), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    stem = nn.Sequential(nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.MaxPool2d(3, 2, 1))
    return nn.Sequential(
        stem, PreActivation(8, 16), PreActivation(16, 16, 2), head, nn.Conv2d(16, 5, 1)
    )


class NormFree(nn.Module):
    """NFNet's block: no normalization; grouped convolutions, squeeze and excitation, scales."""

    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels // 2, 1)
        self.conv2 = nn.Conv2d(channels // 2, channels // 2, 3, padding=1, groups=2)
        self.conv3 = nn.Conv2d(channels // 2, channels, 1)
        self.excite = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, channels // 2, 1),
            nn.ReLU(),
            nn.Conv2d(channels // 2, channels, 1),
            nn.Sigmoid(),
        )
        self.skip_gain = nn.Parameter(torch.full((), 0.1))

    def forward(self, x):
        out = self.conv1(F.gelu(x) * 1.7)
        out = self.conv3(F.gelu(self.conv2(F.gelu(out) * 1.7)) * 1.7)
        return x + 0.2 * self.skip_gain * 2 * self.excite(out) * out


def nfnet():
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), NormFree(8), NormFree(8), nn.Conv2d(8, 4, 1))


class UNet(nn.Module):
    """A U-Net of 1, 2 or 3 dimensions with transposed convolutions on the way up."""

    def __init__(self, dims):
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        up = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
        self.down1 = nn.Sequential(conv(1, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU())
        norm = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)[dims - 1]
        self.down2 = nn.Sequential(conv(8, 16, 3, 2, 1), norm(16), nn.ReLU())
        self.up = nn.Sequential(up(16, 8, 2, 2, groups=2), nn.GroupNorm(2, 8))
        self.merge = nn.Sequential(conv(16, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU())
        self.head = conv(8, 3, 1)

    def forward(self, x):
        first = self.down1(x)
        return self.head(self.merge(torch.cat([first, self.up(self.down2(first))], 1)))


def transformer():
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2)


class Autoencoder(nn.Module):
    """Tied weights: the decoder's transposed convolution has the encoder's weight."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Conv2d(3, 8, 4, 2, 1)
        self.norm = nn.BatchNorm2d(8)
        self.decoder = nn.ConvTranspose2d(8, 3, 4, 2, 1)
        self.decoder.weight = self.encoder.weight

    def forward(self, x):
        return self.decoder(F.relu(self.norm(self.encoder(x))))


def depthwise():
    """MobileNet's separable convolutions."""
    return nn.Sequential(conv_bn(3, 8, 3), conv_bn(8, 8, 3, groups=8), conv_bn(8, 16, 1))


# name -> (network, the shape of its input)
ARCHITECTURES = {
    "resnet": (resnet, (2, 3, 32, 32)),
    "bit": (bit, (2, 3, 32, 32)),
    "nfnet": (nfnet, (2, 3, 16, 16)),
    "unet 1-d": (lambda: UNet(1), (2, 1, 16)),
    "unet 2-d": (lambda: UNet(2), (2, 1, 16, 16)),
    "unet 3-d": (lambda: UNet(3), (2, 1, 8, 8, 8)),
    "depthwise": (depthwise, (2, 3, 8, 8)),
    "transformer": (transformer, (2, 7, 16)),
    "tied": (Autoencoder, (2, 3, 8, 8)),
    "conv": (lambda: nn.Conv2d(3, 8, 3), (2, 3, 8, 8)),
    "linear": (lambda: nn.Linear(6, 5), (2, 6)),
}


def build(name, dtype=torch.float32):
    """The network in eval mode, with weights off zero mean and other normalization statistics."""
    make, shape = ARCHITECTURES[name]
    model = make().to(dtype).eval()
    with torch.no_grad():
        for module in model.modules():
            weight = getattr(module, "weight", None)
            if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
                weight.add_(0.1 * torch.randn(weight.shape[0], *[1] * (weight.dim() - 1)))
            elif isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return model, torch.randn(shape, dtype=dtype)
