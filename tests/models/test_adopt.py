"""adopt: other libraries' layers become ours and compute the same; what else stays as it is."""

import copy
import dataclasses
import pickle
import warnings

import pytest
import torch
import torch_ws
from architectures import transformer
from peer_layers import (
    NORMS,
    BitStdConv2d,
    ConvAWS2d,
    ConvWS2d,
    OldScaledStdConv2d,
    OldStdConv2d,
    ScaledStdConv2d,
    ScaledStdConv2dSame,
    StdConv2d,
    StdConv2dSame,
    WeightStandardizedConv2d,
    composer,
    randomize,
)
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils import parametrize as torch_parametrize
from torch_ws import Formula, Standardized

# a layer, and the formula that ours must have
LAYERS = {
    "timm": (lambda: StdConv2d(4, 6, 3, padding=1), "timm"),
    "timm eps": (lambda: StdConv2d(4, 6, 3, groups=2, eps=1e-8, bias=False), "timm_bit"),
    "timm same": (lambda: StdConv2dSame(4, 6, 3, stride=2, eps=1e-8), "timm_bit"),
    "timm same uneven": (lambda: StdConv2dSame(4, 6, 4, dilation=2), "timm"),
    "timm same by number": (lambda: StdConv2dSame(4, 6, 3, padding=1, same_pad=False), "timm"),
    "timm scaled": (lambda: ScaledStdConv2d(4, 6, 3), "timm_scaled"),
    "timm scaled gamma": (
        lambda: ScaledStdConv2d(4, 6, (3, 5), groups=2, gamma=1.7015043497085571, eps=1e-5),
        Formula(eps=1e-5, eps_mode="var", scale="fan_in", gamma=1.7015043497085571),
    ),
    "timm scaled same": (lambda: ScaledStdConv2dSame(4, 6, 3, stride=2), "timm_scaled"),
    "timm 0.4.5": (lambda: OldStdConv2d(4, 6, 3, eps=1e-5), "paper"),
    "timm 0.4.5 scaled": (lambda: OldScaledStdConv2d(4, 6, 3), Formula(scale="fan_in")),
    "timm 0.4.5 layer norm": (
        lambda: OldScaledStdConv2d(4, 6, 3, eps=1e-3, use_layernorm=True),
        "timm_scaled",
    ),
    "transformers": (lambda: WeightStandardizedConv2d(4, 6, 3, stride=2, eps=1e-8), "timm_bit"),
    "transformers by number": (
        lambda: WeightStandardizedConv2d(4, 6, 3, padding=1, pad=False),
        "timm",
    ),
    "mmcv": (lambda: ConvWS2d(4, 6, 3, stride=2), "qiao"),
    "mmcv eps": (lambda: ConvWS2d(4, 6, 3, eps=1e-3), Formula(eps=1e-3, correction=1)),
    "mmcv aws": (lambda: ConvAWS2d(4, 6, 3, groups=2), "mmcv_aws"),
    "bit": (lambda: BitStdConv2d(4, 6, 3, padding=1, bias=False), "bit"),
    "composer": (lambda: composer(nn.Conv2d(4, 6, 3)), "bit"),
    "composer 1-d": (lambda: composer(nn.Conv1d(4, 6, 3)), "bit"),
    "composer 3-d": (lambda: composer(nn.Conv3d(4, 6, 2, bias=False)), "bit"),
}
for kind, norm in NORMS.items():
    LAYERS |= {
        f"{kind} conv": (lambda norm=norm: norm(nn.Conv2d(4, 6, 3, groups=2)), "weight_norm"),
        f"{kind} 1-d": (lambda norm=norm: norm(nn.Conv1d(4, 6, 3, bias=False)), "weight_norm"),
        f"{kind} linear": (lambda norm=norm: norm(nn.Linear(4, 6)), "weight_norm"),
        f"{kind} transposed": (
            lambda norm=norm: norm(nn.ConvTranspose2d(4, 6, 3), dim=1),
            "weight_norm",
        ),
    }


def layer_and_input(name):
    layer = randomize(LAYERS[name][0]().double())
    dims = 0 if isinstance(layer, nn.Linear) else len(layer.kernel_size)
    return layer, torch.randn(2, 4, *[9] * dims, dtype=torch.float64)


def quietly(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return torch_ws.adopt(model)


def original(layer):
    """The tensor that the library's layer standardizes."""
    if torch_parametrize.is_parametrized(layer):
        held = layer.parametrizations.weight
        return held.original if held.is_tensor else held.original1
    return layer.weight_v if hasattr(layer, "weight_v") else layer.weight


@pytest.mark.parametrize("name", LAYERS)
def test_computes_the_same(name):
    layer, x = layer_and_input(name)
    layer.eval()
    expected, weight, bias = layer(x), original(layer), layer.bias
    grads = torch.autograd.grad(expected.square().sum(), weight)
    assert quietly(layer) is layer
    formula = torch_ws.formulas.get(LAYERS[name][1], LAYERS[name][1])
    assert layer.formula.gamma == pytest.approx(formula.gamma, rel=4e-16)  # less a rounding
    assert dataclasses.replace(layer.formula, gamma=formula.gamma) == formula
    assert layer.weight is weight and layer.bias is bias and not layer.training
    actual = layer(x)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad(actual.square().sum(), weight), grads)
    keys = [key for key in ("weight", "bias", "gain", "shift") if getattr(layer, key) is not None]
    assert list(layer.state_dict()) == keys


@pytest.mark.parametrize("name", LAYERS)
def test_what_comes_out_is_an_ordinary_layer_of_ours(name):
    """Nothing of the library is left: what a layer made by torch_ws has, this one has."""
    layer, x = layer_and_input(name)
    quietly(layer)
    assert type(layer).__module__ == "torch_ws.layers.modules"
    bias = layer.bias is not None
    arguments = (4, 6) if isinstance(layer, nn.Linear) else (4, 6, layer.kernel_size)
    fresh = type(layer)(*arguments, bias=bias)
    assert vars(layer).keys() == vars(fresh).keys()
    assert not layer._buffers and not layer._modules
    expected = layer(x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), expected)
    if getattr(layer, "padding", 0) != "same":
        assert torch.equal(torch_ws.fold(layer)(x), expected)


def test_gains_are_new_parameters_of_the_same_kind():
    model = nn.ModuleDict(
        {
            "scaled": ScaledStdConv2d(3, 4, 3),
            "frozen": ScaledStdConv2d(3, 4, 3).requires_grad_(False),
            "aws": ConvAWS2d(3, 4, 3),
            "normed": parametrizations.weight_norm(nn.Conv2d(3, 4, 3)),
        }
    )
    randomize(model)
    gains = [model["scaled"].gain, model["frozen"].gain, model["aws"].weight_gamma]
    gains.append(model["normed"].parametrizations.weight.original0)
    shift = model["aws"].weight_beta
    quietly(model)
    for layer, gain in zip(model.values(), gains, strict=True):
        assert torch.equal(layer.gain, gain.flatten())
        assert layer.gain.requires_grad == gain.requires_grad
        assert type(layer.gain) is nn.Parameter and layer.gain is not gain
    assert torch.equal(model["aws"].shift, shift.flatten())
    assert [layer.gain.requires_grad for layer in model.values()] == [True, False, False, True]


def test_hooks_memory_formats_and_shared_layers_stay():
    layer = StdConv2d(3, 3, 3, padding=1).to(memory_format=torch.channels_last)
    model = nn.Sequential(layer, nn.BatchNorm2d(3), layer)
    calls = []
    layer.register_forward_hook(lambda *_: calls.append("forward"))
    stride = layer.weight.stride()
    quietly(model)
    model(torch.randn(2, 3, 5, 5))
    assert model[2] is model[0] is layer and type(layer) is torch_ws.WSConv2d
    assert calls == ["forward"] * 2 and layer.weight.stride() == stride
    assert type(model[1]) is nn.BatchNorm2d


def test_without_gradients_too():
    layer = randomize(parametrizations.weight_norm(nn.Linear(4, 6)))
    expected = layer(x := torch.randn(2, 4))
    with torch.no_grad():
        quietly(layer)
        assert layer.weight.requires_grad
        torch.testing.assert_close(layer(x), expected)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_transformer_computes_the_same_in_inference():
    """There torch.nn reads encoder layers' weights past the layers."""
    model = transformer().eval()
    for layer in model.layers:
        for name in ("linear1", "linear2"):
            parametrizations.weight_norm(getattr(layer, name))
    randomize(model)
    x = torch.randn(2, 7, 16)
    expected = model(x)
    quietly(model)
    assert sum(isinstance(m, Standardized) for m in model.modules()) == 4
    with torch.inference_mode():
        torch.testing.assert_close(model(x), expected)
