"""The layers: torch.nn's layer with the reference's weight, in every way torch.nn's can be used."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
import torch_ws
from every_layer import LAYERS, make
from torch import nn
from torch_ws import Formula, reference


def output_channels(plain):
    """The weight as one row an output channel, and back: by slicing, channel after channel."""
    weight = plain.weight
    if not isinstance(plain, nn.modules.conv._ConvTransposeNd):
        return list(weight)
    inputs, outputs = weight.shape[0] // plain.groups, weight.shape[1]
    return [
        weight[group * inputs : (group + 1) * inputs, o]
        for group in range(plain.groups)
        for o in range(outputs)
    ]


@pytest.mark.parametrize("options", [{}, {"formula": "timm_nfnet", "gain": True, "shift": True}])
@pytest.mark.parametrize("name", LAYERS)
def test_equals_torch_nn_with_the_standardized_weight(name, options):
    layer, plain, x = make(name, **options)
    formula = options.get("formula", "paper")
    for i, channel in enumerate(output_channels(plain)):
        gain = layer.gain[i : i + 1].double() if options else None
        shift = layer.shift[i : i + 1].double() if options else None
        row = reference.standardize(channel.reshape(1, -1).double(), gain, shift, formula=formula)
        channel.data.copy_(row.view(channel.shape))
    torch.testing.assert_close(layer(x), plain(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_reach_every_parameter(name):
    layer, _, x = make(name, gain=True, shift=True)
    layer.double()(x.double()).square().sum().backward()
    for parameter in layer.parameters():
        assert parameter.grad.abs().sum() > 0
    # standardization does not see a channel's mean: its gradient has none
    channels = 1 if "Transpose" in name else 0
    if "grouped" not in name and "Transpose2d depthwise" not in name:
        sums = layer.weight.grad.movedim(channels, 0).flatten(1).sum(1)
        assert sums.abs().max() < 1e-9 * layer.weight.grad.abs().max()


@pytest.mark.parametrize("name", LAYERS)
def test_state_dict_keys_are_those_of_torch_nn(name):
    layer, plain, _ = make(name)
    assert list(layer.state_dict()) == list(plain.state_dict())
    layer, _, _ = make(name, gain=True, shift=True)
    assert list(layer.state_dict()) == [*plain.state_dict(), "gain", "shift"]
    assert (
        layer.gain.shape
        == layer.shift.shape
        == (layer.bias if layer.bias is not None else layer.gain).shape
    )


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "dilation", "padding"),
    # by hand, from TensorFlow's definition: ceil(size / stride) outputs, the odd element at the end
    [
        (5, 3, 2, 1, (1, 1)),
        (6, 3, 2, 1, (0, 1)),
        (7, 2, 3, 1, (0, 1)),
        (4, 1, 2, 1, (0, 0)),  # nothing to pad, and nothing cut off
        (9, 3, 4, 2, (2, 2)),  # dilated: the kernel spans 5
    ],
)
@pytest.mark.parametrize("mode", ["zeros", "replicate"])
def test_same_padding_with_a_stride(size, kernel, stride, dilation, padding, mode):
    layer = torch_ws.WSConv2d(
        3, 4, (kernel, 1), (stride, 1), "same", (dilation, 1), padding_mode=mode
    )
    x = torch.randn(2, 3, size, 5)
    padded = F.pad(x, (0, 0, *padding), mode="constant" if mode == "zeros" else mode)
    weight = reference.standardize(layer.weight)
    expected = F.conv2d(padded, weight, layer.bias, (stride, 1), dilation=(dilation, 1))
    out = layer(x)
    assert out.shape[2] == -(-size // stride)
    torch.testing.assert_close(out, expected)
    assert "padding=same" in repr(layer)


def test_output_size_of_a_transposed_convolution():
    layer = torch_ws.WSConvTranspose2d(3, 4, 3, stride=2)
    assert layer(torch.randn(1, 3, 5, 5), output_size=(12, 12)).shape == (1, 4, 12, 12)


class Recorder(torch.utils._python_dispatch.TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.calls.append((str(function), args, out))
        return out


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_standardizes_into_its_dtype(name, dtype):
    layer, _, x = make(name)
    with torch.autocast("cpu", dtype=dtype):
        assert layer.standardized_weight().dtype == dtype
        with Recorder() as recorder:
            out = layer(x)
    assert out.dtype == dtype
    # the weight is not cast by an operation of its own: only the input and the bias are
    casts = [args[0] for call, args, _ in recorder.calls if "_to_copy" in call]
    assert all(t.shape != layer.weight.shape for t in casts)
    assert layer.standardized_weight().dtype == torch.float32


@pytest.mark.parametrize("formula", ["bit", Formula(eps=0.5, gamma=2.0)])
def test_copies_and_pickles(formula):
    layer = torch_ws.WSConv2d(3, 4, 3, formula=formula, gain=True)
    x = torch.randn(1, 3, 5, 5)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), layer(x))
        assert other.formula == layer.formula


def test_repr_names_the_formula():
    assert "formula='nfnet', gain=True" in repr(
        torch_ws.WSConv2d(3, 4, 3, formula="nfnet", gain=True)
    )
    assert "formula=Formula(eps=0.5" in repr(torch_ws.WSLinear(3, 4, formula=Formula(eps=0.5)))


def test_device_and_dtype_arguments_reach_every_parameter():
    layer = torch_ws.WSConv2d(3, 4, 3, gain=True, shift=True, device="meta", dtype=torch.float64)
    assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("meta", torch.float64)}


@pytest.mark.parametrize("name", LAYERS)
def test_meta_device(name):
    """Shapes flow through layers without memory, also under autocast, which meta does not have."""
    layer, _, x = make(name, gain=True)
    expected = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer.to("meta")(x.to("meta"))
    assert out.is_meta and out.shape == expected.shape and out.dtype == expected.dtype


@pytest.mark.parametrize("name", LAYERS)
def test_rows_are_the_output_channels(name):
    """_to_rows orders the weight so that channel_dim counts its channels; _from_rows undoes it."""
    layer, plain, _ = make(name)
    rows = layer._to_rows(layer.weight)
    assert torch.equal(layer._from_rows(rows), layer.weight)
    channels = output_channels(plain)
    assert rows.shape[layer.channel_dim] == len(channels)
    for row, channel in zip(rows.movedim(layer.channel_dim, 0), channels, strict=True):
        assert torch.equal(row, channel)


def test_a_gain_that_is_a_buffer():
    """As mmcv's ConvAWS2d has it: what the layer calls gain is used, parameter or not."""
    layer = torch_ws.WSConv2d(3, 4, 3, formula="mmcv_aws")
    del layer.gain
    layer.register_buffer("gain", torch.arange(4.0))
    expected = torch_ws.standardize(layer.weight, layer.gain, formula="mmcv_aws")
    assert torch.equal(layer.standardized_weight(), expected)
