"""The published formulas as their sources compute them, in plain PyTorch: the judge of the names.

A name in torch_ws.formulas promises what a certain repository computes. Here is that arithmetic,
from each repository's code and in its order of operations: batch norm on a reshaped weight, a
standard deviation of PyTorch's, an L2 norm, a fused multiply and subtract. It shares nothing with
torch_ws.

Every function takes a weight of shape (C, ...) and gives the weight that the source would convolve
with. The sources are written for one layer, mostly a convolution in two dimensions; here all axes
but the channels' take the part of theirs. Sources in JAX and TensorFlow have the channels last, and
get them there. Each docstring names repository : path.

`PUBLISHED` says which name each of them proves. Where a name has several sources that compute the
same in the same way, one stands for them and names the others.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import NamedTuple

import torch
import torch.nn.functional as F


def inner_axes(weight):
    return tuple(range(1, weight.dim()))


def per_channel(vector, weight):
    """(C,) as (C, 1, ...), which is how PyTorch's sources store what they keep a channel."""
    return vector.view(-1, *[1] * (weight.dim() - 1))


def channels_last(compute):
    """For sources whose kernels are (..., C): moves the channels there and back."""

    @wraps(compute)
    def moved(weight, **options):
        kernel = weight.movedim(0, -1)
        return compute(kernel, tuple(range(kernel.dim() - 1)), **options).movedim(-1, 0)

    return moved


# Without gain, eps added to the standard deviation


@channels_last
def big_vision(kernel, axes):
    """google-research/big_vision : big_vision/models/bit.py; google-research/vision_transformer :
    vit_jax/models_resnet.py. jnp.std is the population's. (torch's std has the derivative 0 where
    it is 0; jnp's has NaN.)"""
    kernel = kernel - kernel.mean(axes)
    return kernel / (kernel.std(axes, correction=0) + 1e-5)


@channels_last
def qiao_tensorflow(kernel, axes):
    """joe-siyuan-qiao/WeightStandardization : README.md, the snippet for TensorFlow, with the
    population's standard deviation of tf.keras.backend.std."""
    kernel = kernel - kernel.mean(axes, keepdim=True)
    return kernel / (kernel.std(axes, correction=0, keepdim=True) + 1e-5)


def qiao_pytorch(weight):
    """joe-siyuan-qiao/WeightStandardization : README.md, the snippet for PyTorch, where std_mean
    takes the sample's standard deviation."""
    std, mean = torch.std_mean(weight, dim=inner_axes(weight), keepdim=True)
    return (weight - mean) / (std + 1e-5)


def mean_of_means(weight):
    """The mean over one axis after the other, as the authors' earlier code takes it."""
    for axis in inner_axes(weight):
        weight = weight.mean(dim=axis, keepdim=True)
    return weight


def qiao_2019(weight):
    """joe-siyuan-qiao/Batch-Channel-Normalization : DeepLabV3/deeplab.py, the authors' code of 2019
    that most copies are made from."""
    weight = weight - mean_of_means(weight)
    std = weight.reshape(weight.size(0), -1).std(dim=1) + 1e-5
    return weight / per_channel(std, weight).expand_as(weight)


def mmcv_conv_ws(weight):
    """open-mmlab/mmcv : mmcv/cnn/bricks/conv_ws.py, conv_ws_2d; joe-siyuan-qiao/DetectoRS :
    mmdet/ops/conv_ws.py."""
    flat = weight.reshape(weight.size(0), -1)
    mean = per_channel(flat.mean(dim=1), weight)
    std = per_channel(flat.std(dim=1), weight)
    return (weight - mean) / (std + 1e-5)


# Without gain, eps inside the root


def qiao_imagenet(weight):
    """joe-siyuan-qiao/Batch-Channel-Normalization : imagenet/models/layers.py."""
    weight = weight - mean_of_means(weight)
    std = torch.pow(weight.reshape(weight.size(0), -1).var(dim=1) + 1e-5, 0.5)
    return weight / per_channel(std, weight).expand_as(weight)


def mmcv_conv_aws(weight, gain, shift):
    """open-mmlab/mmcv : mmcv/cnn/bricks/conv_ws.py, ConvAWS2d; gain and shift are its buffers
    weight_gamma and weight_beta."""
    flat = weight.reshape(weight.size(0), -1)
    mean = per_channel(flat.mean(dim=1), weight)
    std = per_channel(torch.sqrt(flat.var(dim=1) + 1e-5), weight)
    return per_channel(gain, weight) * ((weight - mean) / std) + per_channel(shift, weight)


def detectors_conv_aws(weight, gain, shift):
    """joe-siyuan-qiao/DetectoRS : mmdet/ops/conv_ws.py, ConvAWS2d, from which mmcv's is made."""
    weight = weight - mean_of_means(weight)
    std = torch.sqrt(weight.reshape(weight.size(0), -1).var(dim=1) + 1e-5)
    weight = weight / per_channel(std, weight)
    return per_channel(gain, weight) * weight + per_channel(shift, weight)


def batch_norm_of_rows(weight, eps, gain=None):
    """Each output channel as a channel of one sample in training."""
    rows = weight.reshape(1, weight.size(0), -1)
    out = F.batch_norm(rows, None, None, weight=gain, training=True, momentum=0.0, eps=eps)
    return out.reshape_as(weight)


def timm_std_conv(weight, eps=1e-6):
    """huggingface/pytorch-image-models : timm/layers/std_conv.py, StdConv2d and StdConv2dSame;
    huggingface/transformers : src/transformers/models/bit/modeling_bit.py."""
    return batch_norm_of_rows(weight, eps)


def nnabla(weight):
    """sony/nnabla : src/nbla/function/generic/weight_standardization.cpp, tensor_normalization.cpp:
    batch normalization by the batch's statistics, with channel_axis as the channels."""
    return batch_norm_of_rows(weight, 1e-5)


def chainer(weight):
    """chainer/chainer : chainer/link_hooks/weight_standardization.py: group normalization in one
    group, each output channel a sample; gamma and beta, a value an input channel, are 1 and 0."""
    gamma, beta = weight.new_ones(weight.size(1)), weight.new_zeros(weight.size(1))
    return F.group_norm(weight, 1, gamma, beta, eps=1e-5)


@channels_last
def tensorflow_deeplab(kernel, axes):
    """tensorflow/models : research/deeplab/core/conv2d_ws.py."""
    mean = kernel.mean(axes, keepdim=True)
    var = (kernel - mean).square().mean(axes, keepdim=True)
    return (kernel - mean) / torch.sqrt(var + 1e-5)


def lucidrains(weight, eps=1e-5):
    """lucidrains/denoising-diffusion-pytorch :
    denoising_diffusion_pytorch/denoising_diffusion_pytorch.py, WeightStandardizedConv2d, until
    June 2023. eps is 1e-5 where the layer's input is float32, and 1e-3 elsewhere."""
    mean = weight.mean(inner_axes(weight), keepdim=True)
    var = torch.var(weight, inner_axes(weight), unbiased=False, keepdim=True)
    return (weight - mean) * (var + eps).rsqrt()


def bit_pytorch(weight):
    """google-research/big_transfer : bit_pytorch/models.py; mosaicml/composer :
    composer/algorithms/weight_standardization/weight_standardization.py."""
    var, mean = torch.var_mean(weight, dim=inner_axes(weight), keepdim=True, unbiased=False)
    return (weight - mean) / torch.sqrt(var + 1e-10)


@channels_last
def bit_jax(kernel, axes):
    """google-research/big_transfer : bit_jax/models.py (and, by moments, bit_tf2/models.py);
    google-research/big_vision : big_vision/models/bit_paper.py."""
    kernel = kernel - kernel.mean(axes, keepdim=True)
    return kernel / torch.sqrt(kernel.square().mean(axes, keepdim=True) + 1e-10)


# With gain, scaled by the fan-in


def timm_scaled_std_conv(weight, gain, eps=1e-6, gamma=1.0):
    """huggingface/pytorch-image-models : timm/layers/std_conv.py, ScaledStdConv2d and
    ScaledStdConv2dSame; NFNets pass eps=1e-5 (timm/models/nfnet.py, std_conv_eps)."""
    scale = gamma * weight[0].numel() ** -0.5
    return batch_norm_of_rows(weight, eps, gain=gain * scale)


@channels_last
def deepmind(kernel, axes, gain):
    """google-deepmind/deepmind-research : nfnets/base.py, WSConv2D.standardize_weight."""
    mean = kernel.mean(axes, keepdim=True)
    var = (kernel - mean).square().mean(axes, keepdim=True)
    fan_in = kernel[..., 0].numel()
    eps = torch.tensor(1e-4, dtype=kernel.dtype)
    scale = torch.rsqrt(torch.maximum(var * fan_in, eps)) * gain
    return kernel * scale - mean * scale


@channels_last
def keras_cv_attention_models(kernel, axes, gain, gamma=1.0):
    """leondgarse/keras_cv_attention_models : keras_cv_attention_models/nfnets/nfnets.py,
    ScaledStandardizedConv2D, on TensorFlow."""
    mean = kernel.mean(axes, keepdim=True)
    var = (kernel - mean).square().mean(axes, keepdim=True)
    fan_in = float(kernel[..., 0].numel())
    eps = torch.tensor(1e-5, dtype=kernel.dtype)
    scale = torch.rsqrt(torch.maximum(var * fan_in, eps)) * (gain * gamma)
    return (kernel - mean) * scale


def spikingjelly(weight, gain):
    """fangwei123456/spikingjelly : spikingjelly/activation_based/layer/stateless_wrapper.py,
    WSConv2d and WSLinear; before, spikingjelly/activation_based/layer.py."""
    fan_in = weight[0].numel()
    mean = torch.mean(weight, dim=inner_axes(weight), keepdim=True)
    var = torch.var(weight, dim=inner_axes(weight), keepdim=True)
    return (weight - mean) / ((var * fan_in + 1e-4) ** 0.5) * per_channel(gain, weight)


def huang(weight, gain):
    """huangleiBuaa/CenteredWN : module/Linear_Weight_CenteredBN_Row.lua (with unitLength_flag) and
    the paper: a centered vector over its L2 norm. Torch7 multiplied by the norm to the power -1."""
    rows = weight.reshape(weight.size(0), -1)
    centered = rows - rows.mean(1, keepdim=True)
    out = centered * centered.norm(2, dim=1, keepdim=True).pow(-1)
    return per_channel(gain, weight) * out.view_as(weight)


def huang_pytorch(weight):
    """huangleiBuaa/CenteredWN : module_pytorch/CWN.py, which adds an eps to the norm."""
    rows = weight.reshape(weight.size(0), -1)
    rows = rows - rows.mean(dim=1, keepdim=True)
    return 1.414 * (rows / (rows.norm(dim=1, keepdim=True) + 1e-5)).view(weight.size())


def torch_weight_norm(weight, gain):
    """pytorch/pytorch : aten/src/ATen/native/WeightNorm.cpp, which torch.nn.utils.weight_norm and
    torch.nn.utils.parametrizations.weight_norm call."""
    return torch._weight_norm(weight, per_channel(gain, weight), 0)


def salimans(weight, gain):
    """openai/weightnorm : lasagne/nn.py, WeightNormLayer."""
    norm = torch.sqrt(weight.square().sum(inner_axes(weight), keepdim=True))
    return weight * (per_channel(gain, weight) / norm)


class Published(NamedTuple):
    formula: str  # the name in torch_ws.formulas
    compute: Callable
    takes: tuple[str, ...] = ()  # of "gain" and "shift": what the source keeps a channel

    def __str__(self):
        function = getattr(self.compute, "func", self.compute)  # below a partial
        return f"{self.formula}-{function.__name__}"


GAIN, BOTH = ("gain",), ("gain", "shift")

PUBLISHED = [
    Published("paper", big_vision),
    Published("paper", qiao_tensorflow),
    Published("qiao", qiao_pytorch),
    Published("qiao", qiao_2019),
    Published("qiao", mmcv_conv_ws),
    Published("qiao_bcn", qiao_imagenet),
    Published("mmcv_aws", mmcv_conv_aws, BOTH),
    Published("mmcv_aws", detectors_conv_aws, BOTH),
    Published("timm", timm_std_conv),
    Published("timm_bit", partial(timm_std_conv, eps=1e-8)),
    Published("timm_scaled", timm_scaled_std_conv, GAIN),
    Published("timm_nfnet", partial(timm_scaled_std_conv, eps=1e-5), GAIN),
    Published("bit", bit_pytorch),
    Published("bit", bit_jax),
    Published("nfnet", deepmind, GAIN),
    Published("keras_nfnet", keras_cv_attention_models, GAIN),
    Published("nnabla", nnabla),
    Published("nnabla", chainer),
    Published("nnabla", tensorflow_deeplab),
    Published("nnabla", lucidrains),
    Published("spikingjelly", spikingjelly, GAIN),
    Published("centered_weight_norm", huang, GAIN),
    Published("weight_norm", torch_weight_norm, GAIN),
    Published("weight_norm", salimans, GAIN),
]
