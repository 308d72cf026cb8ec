"""fold: plain torch.nn modules that compute the same to the last bit, and need torch_ws no more."""

import copy
import pickle

import other_process
import pytest
import torch
import torch_ws
from architectures import ARCHITECTURES, Autoencoder, build, transformer
from conversions import quietly
from torch import nn
from torch.nn.utils import parametrizations
from torch_ws import Standardized
from torch_ws.models.fold import PLAIN

# how a model is converted: the default, and with everything that a layer can have
OPTIONS = [{}, {"formula": "timm_nfnet", "gain": True, "shift": True}]


def converted(name, dtype=torch.float32, **options):
    model, x = build(name, dtype)
    plain = copy.deepcopy(model)
    quietly(model, linear=True, **options)
    with torch.no_grad():
        for layer in model.modules():
            for vector in (getattr(layer, "gain", None), getattr(layer, "shift", None)):
                if vector is not None:
                    vector.normal_()
    return model, plain, x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_plain_modules_that_compute_the_same(name, options, dtype):
    model, plain, x = converted(name, dtype, **options)
    expected = model(x)
    assert torch_ws.fold(model) is model
    for (path, folded), original in zip(model.named_modules(), plain.modules(), strict=True):
        assert type(folded) is type(original), path
        assert vars(folded).keys() == vars(original).keys(), path
    assert torch.equal(model(x), expected)
    assert list(model.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(model.state_dict())
    if name != "tied":  # two results there, which the plain model has one place for
        assert torch.equal(plain(x), expected)


def test_the_same_under_autocast():
    model, _, x = converted("unet 2-d")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = model(x)
        torch_ws.fold(model)
        assert model.head.weight.dtype == torch.float32
        assert torch.equal(model(x), expected)


def test_what_stays():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 8, 3))
    model = model.to(memory_format=torch.channels_last).double()
    torch_ws.convert(model.requires_grad_(False), skip=["2"])
    torch_ws.convert(model.requires_grad_(True), formula="timm", gain=True, skip=["0"])
    model[0].weight.requires_grad_(False)
    model[2].eval()
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append("forward"))
    biases = [model[0].bias, model[2].bias]
    old = model[0].weight

    torch_ws.fold(model)

    assert model[0].bias is biases[0] and model[2].bias is biases[1]
    assert model[0].weight is not old
    assert not model[0].weight.requires_grad and model[2].weight.requires_grad
    assert all(type(model[i].weight) is nn.Parameter and model[i].weight.is_leaf for i in (0, 2))
    assert all(model[i].weight.is_contiguous(memory_format=torch.channels_last) for i in (0, 2))
    assert [m.training for m in model] == [True, True, False]
    model(torch.randn(2, 3, 8, 8, dtype=torch.float64))
    assert calls == ["forward"]


def test_fold_of_a_copy_leaves_the_model_training():
    model, _, x = converted("unet 2-d", torch.float64)
    expected = model(x)
    folded = torch_ws.fold(copy.deepcopy(model))
    assert isinstance(model.head, torch_ws.WSConv2d) and torch.equal(model(x), expected)
    assert torch.equal(folded(x), expected)


def test_folded_weights_are_not_what_eval_mode_keeps():
    """The tensor that a layer in eval mode hands out may be in other hands."""
    layer = torch_ws.WSConv2d(3, 4, 3).eval()
    with torch.no_grad():
        handed_out = layer.standardized_weight()
        kept = handed_out.clone()
        torch_ws.fold(layer)
        layer.weight.zero_()
    assert torch.equal(handed_out, kept)


def test_inside_inference_mode_the_weight_is_an_ordinary_parameter():
    layer = torch_ws.WSLinear(3, 4)
    with torch.inference_mode():
        torch_ws.fold(layer)
    layer(torch.randn(2, 3)).sum().backward()
    assert layer.weight.grad is not None


@pytest.mark.parametrize("gain", [False, True])
def test_tied_weights_stay_tied_where_the_result_is_the_same(gain):
    model = nn.Sequential(*(torch_ws.WSConv2d(3, 3, 3, gain=gain, padding=1) for _ in range(3)))
    model[1].weight = model[2].weight = model[0].weight
    if gain:
        nn.init.constant_(model[2].gain, 2.0)
    expected = model(x := torch.randn(1, 3, 5, 5))
    torch_ws.fold(model)
    assert model[0].weight is model[1].weight
    assert (model[0].weight is model[2].weight) == (not gain)
    assert torch.equal(model(x), expected)


def test_layers_that_standardize_a_weight_along_different_axes_are_untied():
    model, x = Autoencoder().eval(), torch.randn(2, 3, 8, 8)
    torch_ws.convert(model, gain=True)
    expected = model(x)
    torch_ws.fold(model)
    assert model.encoder.weight is not model.decoder.weight
    assert torch.equal(model(x), expected)


@pytest.mark.slow
def test_pickled_whole_it_loads_where_torch_ws_is_not(tmp_path):
    models = {}
    for name in ("resnet", "unet 2-d", "transformer"):
        model, _, x = converted(name, **OPTIONS[1])
        models[name] = torch_ws.fold(model), x, model(x).detach()
    whole = nn.ModuleDict({name.replace(" ", "_"): m for name, (m, _, _) in models.items()})
    assert b"torch_ws" not in pickle.dumps(whole)
    torch.save(models["unet 2-d"], tmp_path / "model.pt")
    code = """
import sys, torch
model, x, expected = torch.load(sys.argv[1], weights_only=False)
assert torch.equal(model(x), expected)
"""
    other_process.run(code, tmp_path / "model.pt", torch_ws=False)


def test_the_fused_inference_path_of_a_transformer_comes_back():
    model, x = transformer().eval(), torch.randn(2, 7, 16)
    before = [(m.activation_relu_or_gelu, m.linear1.weight) for m in model.layers]
    quietly(model, linear=True)
    assert not any(m.activation_relu_or_gelu for m in model.layers)
    expected = model(x)
    torch_ws.fold(model)
    assert [m.activation_relu_or_gelu for m in model.layers] == [fused for fused, _ in before]
    with torch.inference_mode():
        torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "padding"),
    [
        (1, 2, 1, (0, 0)),  # nothing to pad: a strided 1x1 convolution, as in BiT
        ((1, 3), (2, 1), (1, 2), (0, 2)),  # to pad only where there is no stride
    ],
)
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_same_padding_with_a_stride_where_it_is_a_number(kernel, stride, dilation, padding, mode):
    layer = torch_ws.WSConv2d(3, 4, kernel, stride, "same", dilation, padding_mode=mode)
    inputs = [torch.randn(2, 3, height, 9) for height in (7, 8)]
    expected = [layer(x) for x in inputs]
    torch_ws.fold(layer)
    assert type(layer) is nn.Conv2d and layer.padding == padding
    for x, out in zip(inputs, expected, strict=True):
        torch.testing.assert_close(layer(x), out)


def test_same_padding_without_a_stride_is_torch_nns():
    layer = torch_ws.WSConv2d(3, 4, 4, padding="same")
    expected = layer(x := torch.randn(2, 3, 7, 7))
    torch_ws.fold(layer)
    assert layer.padding == "same" and torch.equal(layer(x), expected)


class MyLayer(torch_ws.WSConv2d):
    pass


def sharded():
    layer = torch_ws.WSLinear(3, 4)
    layer.weight.device_mesh = "as a DTensor has"
    return layer


@pytest.mark.parametrize(
    ("odd", "kind", "message"),
    [
        (torch_ws.WSConv2d(3, 4, 3, 2, "same"), ValueError, "no counterpart in torch.nn"),
        (torch_ws.WSConv2d(3, 4, (1, 2), (2, 1), "same"), ValueError, "no counterpart"),  # uneven
        (MyLayer(3, 4, 3), TypeError, "subclass, MyLayer"),
        (parametrizations.weight_norm(torch_ws.WSConv2d(3, 4, 3)), TypeError, "Parametrized"),
        (nn.utils.weight_norm(torch_ws.WSConv2d(3, 4, 3)), ValueError, "made anew"),
        (sharded(), ValueError, "sharded"),
    ],
)
def test_what_cannot_be_folded_is_refused_by_name_and_nothing_changes(odd, kind, message):
    model = nn.ModuleDict({"first": torch_ws.WSConv2d(3, 4, 3), "odd": odd})
    weight = model["first"].weight
    with pytest.raises(kind, match=rf"'odd' \({type(odd).__name__}\): .*{message}"):
        torch_ws.fold(model)
    assert type(model["first"]) is torch_ws.WSConv2d and model["first"].weight is weight


def test_no_module():
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got Tensor"):
        torch_ws.fold(torch.ones(3, 3))


def test_a_grouped_model_is_folded_after_its_handle_is_removed():
    model, _, x = converted("unet 2-d")
    expected = model(x)
    handle = torch_ws.group(model)
    with pytest.raises(RuntimeError, match=r"the model \(UNet\): is grouped: remove\(\)"):
        torch_ws.fold(model)
    assert isinstance(model.head, torch_ws.WSConv2d)
    folded = torch_ws.fold(copy.deepcopy(model))  # a copy is not grouped
    assert b"torch_ws" not in pickle.dumps(folded)
    assert torch.equal(folded(x), expected)
    handle.remove()
    torch_ws.fold(model)
    assert not any(isinstance(module, Standardized) for module in model.modules())
    assert torch.equal(model(x), expected)


def test_a_held_model_is_folded_after_the_block():
    model, _, x = converted("unet 2-d", torch.float64)
    with torch_ws.hold(model.train()):
        model(x)
        with pytest.raises(RuntimeError, match=r"'\S+' \(WS\w+\): is inside hold\(\)"):
            torch_ws.fold(model)
    torch_ws.fold(model)
    assert not any(isinstance(module, Standardized) for module in model.modules())


def test_other_modules_of_ours_are_warned_of():
    class Companion(nn.Module):
        pass

    Companion.__module__ = "torch_ws.companion"
    model = nn.Sequential(torch_ws.WSConv2d(3, 4, 3), Companion())
    with pytest.warns(UserWarning, match=r"leaves '1' \(Companion\): the model still needs"):
        torch_ws.fold(model)
    assert type(model[0]) is nn.Conv2d


def test_convert_and_fold_know_the_same_classes():
    ours = {getattr(torch_ws, name) for name in dir(torch_ws) if name.startswith("WS")}
    assert set(PLAIN) == ours
