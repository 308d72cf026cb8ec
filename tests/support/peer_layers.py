"""Other libraries' standardized layers in a few lines each, under those libraries' names.

The same parameters, buffers, attributes and results as theirs; written from the mathematics.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize


def named(module, name=None):
    """Gives a class the qualified name by which a library's own is known."""

    def rename(cls):
        cls.__module__, cls.__qualname__ = module, name or cls.__name__
        cls.__name__ = cls.__qualname__
        return cls

    return rename


def tensorflow_same(x, layer):
    """Zeros around x such that there are ceil(size / stride) outputs, the odd one at the end."""
    for axis in (0, 1):
        size, stride = x.shape[axis + 2], layer.stride[axis]
        reach = (layer.kernel_size[axis] - 1) * layer.dilation[axis] + 1
        total = max((math.ceil(size / stride) - 1) * stride + reach - size, 0)
        before, after = total // 2, total - total // 2
        x = F.pad(x, (0, 0, before, after) if axis == 0 else (before, after))
    return x


class Peer(nn.Conv2d):
    same_pad = False

    def forward(self, x):
        if self.same_pad:
            x = tensorflow_same(x, self)
        return F.conv2d(
            x, self.effective(), self.bias, self.stride, self.padding, self.dilation, self.groups
        )

    def moments(self, correction):
        rows = self.weight.flatten(1)
        return (
            rows.mean(1).view(-1, 1, 1, 1),
            rows.var(1, correction=correction).view(-1, 1, 1, 1),
        )


@named("timm.layers.std_conv")
class StdConv2d(Peer):
    def __init__(self, *arguments, eps=1e-6, **options):
        super().__init__(*arguments, **options)
        self.eps = eps

    def effective(self):
        mean, var = self.moments(0)
        return (self.weight - mean) / (var + self.eps).sqrt()


@named("timm.layers.std_conv")
class StdConv2dSame(StdConv2d):
    def __init__(self, *arguments, same_pad=True, **options):
        super().__init__(*arguments, **options)
        self.same_pad = same_pad  # False where a number does


@named("timm.layers.std_conv")
class ScaledStdConv2d(StdConv2d):
    def __init__(self, *arguments, gamma=1.0, gain_init=1.0, **options):
        super().__init__(*arguments, **options)
        self.scale = gamma / math.sqrt(self.weight[0].numel())
        self.gain_init = gain_init
        self.gain = nn.Parameter(torch.full((self.out_channels, 1, 1, 1), gain_init))

    def effective(self):
        return self.gain * self.scale * super().effective()


@named("timm.layers.std_conv")
class ScaledStdConv2dSame(ScaledStdConv2d):
    def __init__(self, *arguments, same_pad=True, **options):
        super().__init__(*arguments, **options)
        self.same_pad = same_pad


@named("timm.models.layers.std_conv", "StdConv2d")
class OldStdConv2d(StdConv2d):
    """timm before 0.4.12."""

    def get_weight(self):
        mean, var = self.moments(0)
        return (self.weight - mean) / (var.sqrt() + self.eps)

    effective = get_weight


@named("timm.models.layers.std_conv", "ScaledStdConv2d")
class OldScaledStdConv2d(ScaledStdConv2d):
    """timm before 0.4.12."""

    def __init__(self, *arguments, eps=1e-5, use_layernorm=False, **options):
        super().__init__(*arguments, eps=eps**2 if use_layernorm else eps, **options)
        self.use_layernorm = use_layernorm

    def get_weight(self):
        mean, var = self.moments(0)
        d = (var + self.eps).sqrt() if self.use_layernorm else var.sqrt() + self.eps
        return self.gain * self.scale * (self.weight - mean) / d

    effective = get_weight


class DynamicPad2d(nn.Module):
    def __init__(self, layer, value=0):
        super().__init__()
        self.layer, self.value = [layer], value

    def forward(self, x):
        return tensorflow_same(x, self.layer[0])


@named("transformers.models.bit.modeling_bit")
class WeightStandardizedConv2d(StdConv2d):
    def __init__(self, *arguments, pad=True, **options):
        super().__init__(*arguments, **options)
        self.pad = DynamicPad2d(self) if pad else None

    def forward(self, x):
        return super().forward(x if self.pad is None else self.pad(x))


@named("mmcv.cnn.bricks.conv_ws")
class ConvWS2d(Peer):
    def __init__(self, *arguments, eps=1e-5, **options):
        super().__init__(*arguments, **options)
        self.eps = eps

    def effective(self):
        mean, var = self.moments(1)
        return (self.weight - mean) / (var.sqrt() + self.eps)


@named("mmcv.cnn.bricks.conv_ws")
class ConvAWS2d(Peer):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.register_buffer("weight_gamma", torch.ones(self.out_channels, 1, 1, 1))
        self.register_buffer("weight_beta", torch.zeros(self.out_channels, 1, 1, 1))

    def effective(self):
        mean, var = self.moments(1)
        return self.weight_gamma * (self.weight - mean) / (var + 1e-5).sqrt() + self.weight_beta


@named("bit_pytorch.models", "StdConv2d")
class BitStdConv2d(Peer):
    def effective(self):
        mean, var = self.moments(0)
        return (self.weight - mean) / (var + 1e-10).sqrt()


@named("composer.algorithms.weight_standardization.weight_standardization")
class WeightStandardizer(nn.Module):
    def forward(self, weight):
        rows = weight.flatten(1)
        var, mean = torch.var_mean(rows, 1, correction=0, keepdim=True)
        return ((rows - mean) / (var + 1e-10).sqrt()).view_as(weight)


def composer(layer):
    """The layer, standardized as composer does it."""
    return parametrize.register_parametrization(layer, "weight", WeightStandardizer())


# torch's own, in both styles
NORMS = {"weight_norm": parametrizations.weight_norm, "weight_norm's hook": nn.utils.weight_norm}


def randomize(model):
    """Values of no special kind everywhere; gammas positive, as standard deviations are."""
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            tensor.normal_(mean=0.1)
            if name.endswith("weight_gamma"):
                tensor.abs_().add_(0.1)
    return model
