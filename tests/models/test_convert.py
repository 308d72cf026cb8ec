"""convert: what becomes of a model's layers, and that everything around them stays as it was."""

import copy
import pickle
import warnings

import pytest
import torch
import torch_ws
from architectures import ARCHITECTURES, build, resnet
from conversions import quietly
from torch import nn
from torch_ws import Standardized, reference

CLASSES = {
    nn.Conv1d: torch_ws.WSConv1d,
    nn.Conv2d: torch_ws.WSConv2d,
    nn.Conv3d: torch_ws.WSConv3d,
    nn.ConvTranspose1d: torch_ws.WSConvTranspose1d,
    nn.ConvTranspose2d: torch_ws.WSConvTranspose2d,
    nn.ConvTranspose3d: torch_ws.WSConvTranspose3d,
    nn.Linear: torch_ws.WSLinear,
}


def by_hand(layer, weight, formula):
    """The layer's standardized weight, channel after channel, by the reference in float64."""
    out = torch.empty_like(weight, dtype=torch.float64)
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        inputs = weight.shape[0] // layer.groups
        places = [
            (slice(g * inputs, (g + 1) * inputs), o)
            for g in range(layer.groups)
            for o in range(weight.shape[1])
        ]
    else:
        places = [(i,) for i in range(weight.shape[0])]
    for place in places:
        channel = weight[place].double()
        out[place] = reference.standardize(channel.reshape(1, -1), formula=formula).view_as(channel)
    return out


@pytest.mark.parametrize("formula", ["paper", "nfnet"])  # without and with the fan-in
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_layer_becomes_its_ws_class(name, formula):
    model, x = build(name, torch.float64)
    plain = copy.deepcopy(model)
    assert quietly(model, formula, linear=True) is model
    standardized = {}  # by the weight that the plain model has: a tied one has two results
    for (path, ours), theirs in zip(model.named_modules(), plain.modules(), strict=True):
        assert type(ours) is CLASSES.get(type(theirs), type(theirs)), path
        if isinstance(ours, Standardized):
            expected = by_hand(theirs, theirs.weight, formula)
            torch.testing.assert_close(ours.standardized_weight(), expected)
            standardized[theirs] = expected
    for layer, weight in standardized.items():
        layer.weight = nn.Parameter(weight)
    torch.testing.assert_close(model(x), plain(x))


def test_without_linear_only_convolutions():
    model = quietly(resnet())
    assert type(model[3]) is nn.Linear
    convolutions = [m for m in model.modules() if isinstance(m, torch_ws.WSConv2d)]
    assert len(convolutions) == 1 + 3 * 3 + 2


def test_everything_else_stays():
    model = resnet().to(torch.bfloat16).to(memory_format=torch.channels_last).train()
    model[0][0].weight.requires_grad_(False)
    model[0].eval()
    layer, calls = model[0][0], []
    layer.register_forward_hook(lambda *_: calls.append("forward"))
    layer.my_attribute = "mine"
    before = dict(model.named_parameters())
    modes = [module.training for module in model.modules()]
    strides = [parameter.stride() for parameter in model.parameters()]
    keys = list(model.state_dict())

    torch_ws.convert(model)

    after = dict(model.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)
    assert [parameter.stride() for parameter in model.parameters()] == strides
    assert list(model.state_dict()) == keys
    assert [module.training for module in model.modules()] == modes
    assert not layer.weight.requires_grad and layer.my_attribute == "mine"
    model(torch.randn(2, 3, 32, 32, dtype=torch.bfloat16))
    assert calls == ["forward"]


def test_checkpoints_go_both_ways():
    plain, ours = resnet(), quietly(resnet())
    ours.load_state_dict(plain.state_dict())
    for ours_tensor, tensor in zip(
        ours.state_dict().values(), plain.state_dict().values(), strict=True
    ):
        assert torch.equal(ours_tensor, tensor)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(1)
    plain.load_state_dict(ours.state_dict())
    assert torch.equal(plain[3].weight, ours[3].weight)


def train(model, optimizer, x, steps):
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_an_optimizer_made_before_goes_on():
    torch.manual_seed(1)
    model, x = resnet().double(), torch.randn(4, 3, 16, 16, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    train(model, optimizer, x, 2)
    # the same from here on by a model built from WS layers, with the momentum handed over
    other = quietly(resnet().double())
    other.load_state_dict(model.state_dict())
    other_optimizer = torch.optim.SGD(other.parameters(), lr=0.01, momentum=0.9)
    other_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))

    momentum = optimizer.state[model[0][0].weight]["momentum_buffer"]
    torch_ws.convert(model)
    assert optimizer.state[model[0][0].weight]["momentum_buffer"] is momentum
    before = model[0][0].weight.detach().clone()
    assert train(model, optimizer, x, 2) == train(other, other_optimizer, x, 2)
    assert not torch.equal(model[0][0].weight, before)


def test_gain_and_shift_are_new_parameters_of_the_layers_kind():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, dtype=torch.float64), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)
    )
    model[2].weight.requires_grad_(False)
    torch_ws.convert(model, gain=True, shift=True)
    assert list(model[0].state_dict()) == ["weight", "bias", "gain", "shift"]
    assert torch.equal(model[0].gain, torch.ones(4, dtype=torch.float64))
    assert torch.equal(model[0].shift, torch.zeros(4, dtype=torch.float64))
    assert model[0].gain.requires_grad and not model[2].gain.requires_grad
    assert model[2].gain.dtype == torch.float32


@pytest.mark.parametrize(
    ("skip", "converted"),
    [
        ((), ["0.0", "1.0", "1.1.0", "2"]),
        (["1"], ["0.0", "2"]),  # a name, with what is below
        ("1.1", ["0.0", "1.0", "2"]),  # a single one
        (["1.1", "2"], ["0.0", "1.0"]),
        ([nn.ConvTranspose2d], ["0.0", "1.0", "1.1.0"]),  # a type
        (nn.ConvTranspose2d, ["0.0", "1.0", "1.1.0"]),
        ([nn.Identity, "0"], ["1.0", "1.1.0", "2"]),  # a type that is not there
        ((name for name in ["2"]), ["0.0", "1.0", "1.1.0"]),  # any iterable
        (lambda name, layer: layer.kernel_size == (1, 1), ["0.0", "1.0", "2"]),
        (lambda name, layer: name.startswith("1."), ["0.0", "2"]),
    ],
)
def test_skip(skip, converted):
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 3, 3)),
        nn.Sequential(nn.Conv2d(3, 3, 3), nn.Sequential(nn.Conv2d(3, 3, 1))),
        nn.ConvTranspose2d(3, 3, 3),
    )
    quietly(model, skip=skip)
    assert [n for n, m in model.named_modules() if isinstance(m, Standardized)] == converted


def test_skip_knows_every_name_of_a_shared_layer():
    layer = nn.Conv2d(3, 3, 3)
    model = nn.ModuleDict({"first": layer, "second": layer})
    quietly(model, skip=["second"])
    assert type(layer) is nn.Conv2d
    quietly(model, skip=lambda name, _: name == "second")
    assert type(layer) is nn.Conv2d


def test_the_root_itself():
    layer = nn.Conv2d(3, 4, 3)
    assert quietly(layer) is layer and type(layer) is torch_ws.WSConv2d


class MyConv(nn.Conv2d):
    pass


@pytest.mark.parametrize(
    ("layer", "cls"),
    [
        (MyConv(3, 4, 3), "MyConv"),
        (nn.MultiheadAttention(4, 2), "NonDynamicallyQuantizableLinear"),
        (torch.ao.nn.qat.Linear(3, 4, qconfig=torch.ao.quantization.default_qconfig), "Linear"),
    ],
)
def test_subclasses_are_left_alone_with_a_warning(layer, cls):
    model = nn.ModuleDict({"there": layer, "conv": nn.Conv2d(3, 4, 3), "bn": nn.BatchNorm2d(4)})
    types = {m: type(m) for m in layer.modules()}
    with pytest.warns(UserWarning, match=rf"left alone 'there\S*' \({cls}\)"):
        torch_ws.convert(model, linear=True)
    assert all(type(m) is types[m] for m in types)
    assert type(model["conv"]) is torch_ws.WSConv2d
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch_ws.convert(model, linear=True, skip=[type(layer)])


def test_what_is_parametrized_by_us_stays_as_layers_of_ours_do():
    model = nn.Sequential(
        torch_ws.parametrize(nn.Conv2d(1, 2, 3)), nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 1)
    )
    quietly(model)
    assert type(model[1]) is torch_ws.WSConv2d
    assert not isinstance(model[0], Standardized)
    torch.testing.assert_close(
        model[0].weight, torch_ws.standardize(model[0].parametrizations.weight.original)
    )


def test_attention_is_left_alone_whatever_its_projection_is():
    attention = nn.MultiheadAttention(4, 2)
    attention.out_proj = nn.Linear(4, 4)  # still read by its parent
    with pytest.warns(UserWarning, match="out_proj"):
        torch_ws.convert(nn.Sequential(attention, nn.Linear(4, 4), nn.LayerNorm(4)), linear=True)
    assert type(attention.out_proj) is nn.Linear


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_transformer_computes_the_same_in_training_and_in_inference():
    """torch.nn computes encoder layers from their weights in inference, past the layers."""
    model, x = build("transformer")
    plain = copy.deepcopy(model)
    quietly(model, linear=True)
    mask = torch.zeros(2, 7, dtype=torch.bool)
    mask[1, 5:] = True
    for options in ({}, {"src_key_padding_mask": mask}):
        expected = model(x, **options)
        with torch.inference_mode():
            actual = model(x, **options)
            assert (actual - plain(x, **options))[0].abs().max() > 0.01
        keep = ~mask if options else slice(None)
        torch.testing.assert_close(actual[keep], expected[keep])


def test_converted_models_copy_pickle_and_print():
    model, x = build("unet 2-d")
    quietly(model, "timm", preserve=True)
    expected = model(x)
    assert "formula='timm', gain=True, shift=True" in repr(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), expected)
