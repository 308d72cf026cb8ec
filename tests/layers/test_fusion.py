"""Batch normalization fused into a standardizing layer: right or an error, never wrong."""

import copy

import pytest
import torch
import torch_ws
from torch import nn
from torch.fx.experimental import optimization
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

# layer, batch normalization, shape of the input; each class of ours that torch's functions accept
PAIRS = {
    "conv1d": (lambda: torch_ws.WSConv1d(4, 6, 3), nn.BatchNorm1d, (2, 4, 9)),
    "conv2d": (
        lambda: torch_ws.WSConv2d(4, 6, 3, groups=2, gain=True),
        nn.BatchNorm2d,
        (2, 4, 9, 9),
    ),
    "conv3d": (lambda: torch_ws.WSConv3d(4, 6, 3, bias=False), nn.BatchNorm3d, (2, 4, 5, 5, 5)),
    "transposed": (lambda: torch_ws.WSConvTranspose2d(4, 6, 3), nn.BatchNorm2d, (2, 4, 5, 5)),
    "linear": (lambda: torch_ws.WSLinear(4, 6, shift=True), nn.BatchNorm1d, (5, 4)),
}


def pair(name):
    make, norm, shape = PAIRS[name]
    model = nn.Sequential(make(), norm(6)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
        model[1].running_mean.normal_()
        model[1].running_var.uniform_(0.5, 2)
    return model, torch.randn(shape, dtype=torch.float64)


def fuse(name, layer, norm):
    if name == "linear":
        return fuse_linear_bn_eval(layer, norm)
    return fuse_conv_bn_eval(layer, norm, transpose=name == "transposed")


@pytest.mark.parametrize("name", PAIRS)
def test_fusing_a_standardizing_layer_is_an_error(name):
    model, x = pair(name)
    before, state = model(x), copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match=rf"fuse_.*{type(model[0]).__name__}.*torch_ws\.fold"):
        fuse(name, *model)
    assert torch.equal(model(x), before)
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key])


@pytest.mark.parametrize("name", PAIRS)
def test_fold_then_fuse(name):
    model, x = pair(name)
    expected = model(x)
    fused = fuse(name, *torch_ws.fold(model))
    torch.testing.assert_close(fused(x), expected, rtol=1e-12, atol=1e-12)


def test_other_libraries_functions_that_set_the_weight_are_noticed():
    model, _ = pair("conv2d")

    def _fuse_conv_bn(conv, bn):  # mmcv's is called so
        factor = bn.weight / torch.sqrt(bn.running_var + bn.eps)
        conv.weight = nn.Parameter(conv.weight * factor.reshape(-1, 1, 1, 1))

    with pytest.raises(RuntimeError, match="_fuse_conv_bn would scale"):
        _fuse_conv_bn(*model)


def efficient_conv_bn_eval_forward(bn, conv, x):
    """As mmcv's ConvModule does it in evaluation: the weight is scaled anew in each pass."""
    scale = bn.weight * torch.rsqrt(bn.running_var + bn.eps)
    weight = conv.weight * scale.reshape(-1, *[1] * (conv.weight.dim() - 1))
    bias = torch.zeros_like(bn.running_var) if conv.bias is None else conv.bias
    return conv._conv_forward(x, weight, bn.bias + scale * (bias - bn.running_mean))


@pytest.mark.parametrize("name", ["conv1d", "conv2d", "conv3d"])  # what mmcv takes
def test_fusion_of_each_pass_is_an_error_and_right_after_fold(name):
    model, x = pair(name)
    expected = model(x)
    layer = type(model[0]).__name__
    message = rf"efficient_conv_bn_eval_forward would apply .* {layer} .*torch_ws\.fold"
    with pytest.raises(RuntimeError, match=message):
        efficient_conv_bn_eval_forward(model[1], model[0], x)
    torch_ws.fold(model)
    actual = efficient_conv_bn_eval_forward(model[1], model[0], x)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_others_may_apply_a_weight_of_theirs():
    model, x = pair("conv2d")
    layer = model[0]
    actual = layer._conv_forward(x, layer.standardized_weight(), layer.bias)
    assert torch.equal(actual, layer(x))


def test_batch_normalization_may_be_fused_into_gain_and_bias():
    """Which are applied after standardization: right, whatever the function is called."""
    model, x = pair("conv2d")
    expected = model(x)

    def fuse_into_gain(conv, bn):
        factor = bn.weight / torch.sqrt(bn.running_var + bn.eps)
        conv.gain = nn.Parameter((conv.gain * factor).detach())
        conv.bias = nn.Parameter(((conv.bias - bn.running_mean) * factor + bn.bias).detach())

    fuse_into_gain(*model)
    torch.testing.assert_close(model[0](x), expected, rtol=1e-12, atol=1e-12)


def test_functions_that_only_sound_alike_may_set_the_weight():
    model, x = pair("conv2d")

    def diffuse(layer):
        layer.weight = nn.Parameter(2 * layer.weight.detach() + 1)

    before = model(x)
    diffuse(model[0])
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-4)  # all but eps


def test_pytorchs_fusion_of_whole_models_leaves_standardizing_layers_alone_or_refuses():
    model, x = pair("conv2d")
    assert torch.equal(optimization.fuse(copy.deepcopy(model))(x), model(x))
    with pytest.raises(AssertionError, match="did not find fuser method"):
        torch.ao.quantization.fuse_modules(copy.deepcopy(model), ["0", "1"])


def test_inductor_fuses_with_the_standardized_weight():
    """Freezing folds batch normalization into the convolution of the compiled graph."""
    model, x = pair("conv2d")
    torch._dynamo.reset()
    with torch.no_grad():
        fast = torch.compile(model, options={"freezing": True})
        torch.testing.assert_close(fast(x), model(x), rtol=1e-12, atol=1e-12)
