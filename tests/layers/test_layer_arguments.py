"""Construction of the layers: torch.nn's arguments in every form, initialization, signatures."""

import inspect
import itertools

import pytest
import torch
import torch.nn.functional as F
import torch_ws
from torch import nn

LAYERS = [
    (torch_ws.WSConv1d, nn.Conv1d, (3, 4, 3)),
    (torch_ws.WSConv2d, nn.Conv2d, (3, 4, 3)),
    (torch_ws.WSConv3d, nn.Conv3d, (3, 4, 3)),
    (torch_ws.WSConvTranspose1d, nn.ConvTranspose1d, (3, 4, 3)),
    (torch_ws.WSConvTranspose2d, nn.ConvTranspose2d, (3, 4, 3)),
    (torch_ws.WSConvTranspose3d, nn.ConvTranspose3d, (3, 4, 3)),
    (torch_ws.WSLinear, nn.Linear, (3, 4)),
]


@pytest.mark.parametrize(("ours", "theirs", "arguments"), LAYERS)
def test_torch_nns_parameters_by_name_order_and_default(ours, theirs, arguments):
    own, expected = inspect.signature(ours).parameters, inspect.signature(theirs).parameters
    leading = list(own.values())[: len(expected)]
    assert [(p.name, p.default, p.kind) for p in leading] == [
        (p.name, p.default, p.kind) for p in expected.values()
    ]
    assert list(own)[len(expected) :] == ["formula", "gain", "shift"]
    assert issubclass(ours, torch_ws.Standardized)
    assert ours.__doc__ not in [cls.__doc__ for cls, _, _ in LAYERS if cls is not ours]


@pytest.mark.parametrize(("ours", "theirs", "arguments"), LAYERS)
def test_skip_init_makes_an_ordinary_layer(ours, theirs, arguments):
    layer = nn.utils.skip_init(ours, *arguments, gain=True, formula="timm")
    assert type(layer) is ours and layer.formula == torch_ws.formulas["timm"]
    shapes = {name: p.shape for name, p in ours(*arguments, gain=True).named_parameters()}
    assert {name: p.shape for name, p in layer.named_parameters()} == shapes
    assert not any(p.is_meta for p in layer.parameters())


class Mine(torch_ws.WSConv2d):
    pass


@pytest.mark.parametrize("cls", [*(cls for cls, _, _ in LAYERS), Mine])
def test_errors_name_the_class_that_was_called(cls):
    with pytest.raises(TypeError, match=rf"^{cls.__name__}\.__init__\(\) missing .* positional"):
        cls()
    with pytest.raises(TypeError, match=rf"^{cls.__name__}\.__init__\(\) got an unexpected"):
        cls(3, 4, 3, kernel=3)


@pytest.mark.parametrize("flag", ["gain", "shift"])
@pytest.mark.parametrize("value", [0.5, 1, "yes", None])  # truthy and not: none of them is a flag
def test_flags_are_bools(flag, value):
    with pytest.raises(TypeError, match=f"{flag} must be a bool, got {type(value).__name__}"):
        torch_ws.WSLinear(3, 4, **{flag: value})


STATEFUL = [
    *((cls, arguments, {"gain": True, "shift": True}) for cls, _, arguments in LAYERS),
    (torch_ws.BatchChannelNorm1d, (8, 2), {}),
    (torch_ws.BatchChannelNorm2d, (8, 2), {"estimated": True}),
    (torch_ws.EstimatedBatchNorm, (8,), {"rate": 0.3}),
]


@pytest.mark.parametrize(("cls", "arguments", "options"), STATEFUL)
def test_meta_to_empty_and_reset_parameters_initialize_everything(cls, arguments, options):
    with torch.device("meta"):
        layer = cls(*arguments, **options)
    layer.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*layer.parameters(), *layer.buffers()):
            tensor.fill_(7)  # stands for what was in memory
    for seeded in (layer, fresh := cls(*arguments, **options)):
        torch.manual_seed(1)
        for module in seeded.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    for (name, value), (_, expected) in zip(
        layer.state_dict().items(), fresh.state_dict().items(), strict=True
    ):
        assert torch.equal(value, expected), name
    if isinstance(layer, torch_ws.Standardized):
        assert torch.equal(layer.gain, torch.ones_like(layer.gain))
        assert torch.equal(layer.shift, torch.zeros_like(layer.shift))


def test_reset_parameters_of_a_parametrization():
    layer = torch_ws.parametrize(nn.Linear(3, 4, device="meta"), gain=True, shift=True)
    layer.to_empty(device="cpu")
    for module in layer.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    [made] = layer.parametrizations.weight
    assert torch.equal(made.gain, torch.ones(4)) and torch.equal(made.shift, torch.zeros(4))


# Every form in which torch.nn takes a pair: a tuple, a list, any iterable.
FORMS = {"tuple": tuple, "list": list, "iterable": iter}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("stride", [(1, 1), (2, 1)])
@pytest.mark.parametrize("padding", ["same", "valid", (1, 2)])
@pytest.mark.parametrize("mode", ["zeros", "circular"])  # which torch.nn pads by two ways
def test_lists_and_other_iterables(form, stride, padding, mode):
    make = FORMS[form]
    options = {"padding_mode": mode, "dtype": torch.float64}
    layer = torch_ws.WSConv2d(
        4,
        6,
        make((3, 2)),
        stride=make(stride),
        padding=padding if isinstance(padding, str) else make(padding),
        dilation=make((1, 2)),
        **options,
    )
    x = torch.randn(1, 4, 9, 10, dtype=torch.float64)
    # torch.nn has "same" with a stride of 1 only; a stride picks every so many of its outputs,
    # where the padding is even and the size a multiple
    if padding == "same" and stride != (1, 1):
        top = (-(-9 // 2) - 1) * 2 + 3 - 9
        padded = F.pad(x, (1, 1, top // 2, top - top // 2), "constant" if mode == "zeros" else mode)
        expected = F.conv2d(padded, layer.standardized_weight(), layer.bias, (2, 1), 0, (1, 2))
    else:
        plain = nn.Conv2d(4, 6, (3, 2), stride, padding, (1, 2), **options)
        plain.weight, plain.bias = nn.Parameter(layer.standardized_weight()), layer.bias
        expected = plain(x)
        assert torch.equal(torch_ws.fold(layer)(x), expected)
        return
    assert torch.equal(layer(x), expected)


def test_one_number_that_is_no_int():
    two = torch.tensor(2).numpy()[()]  # a NumPy scalar
    layer = torch_ws.WSConv2d(4, 6, 3, stride=two, padding="same")
    twin = torch_ws.WSConv2d(4, 6, 3, stride=2, padding="same")
    twin.load_state_dict(layer.state_dict())
    x = torch.randn(1, 4, 9, 9)
    assert torch.equal(layer(x), twin(x))


def test_a_stride_that_is_changed_later():
    layer = torch_ws.WSConv2d(4, 6, 3, stride=2, padding="same", padding_mode="reflect")
    layer.stride = (1, 1)  # as those do who dilate a trained network
    plain = nn.Conv2d(4, 6, 3, padding="same", padding_mode="reflect")
    plain.weight, plain.bias = nn.Parameter(layer.standardized_weight()), layer.bias
    x = torch.randn(1, 4, 9, 9)
    assert torch.equal(layer(x), plain(x))
    assert torch.equal(torch_ws.fold(layer)(x), plain(x))


@pytest.mark.parametrize("form", FORMS)
def test_transposed_convolutions_take_them_too(form):
    make = FORMS[form]
    layer = torch_ws.WSConvTranspose2d(4, 6, make((3, 2)), make((2, 3)), make((1, 0)), make((1, 2)))
    x = torch.randn(1, 4, 5, 5)
    weight = torch_ws.standardize(layer.weight, channel_dim=1)
    expected = F.conv_transpose2d(x, weight, layer.bias, (2, 3), (1, 0), (1, 2))
    assert torch.equal(layer(x), expected)


def masked(layer, names):
    """The layer with properties in place of parameters, as torchtitan's SimpleFSDP makes them."""

    def doubled(name):
        return property(lambda self: self._parameters[name] * 2 + 1)

    properties = {name: doubled(name) for name in names}
    layer.__class__ = type(type(layer).__name__, (type(layer),), properties)
    return layer


@pytest.mark.parametrize(("ours", "theirs", "arguments"), LAYERS)
@pytest.mark.parametrize(("training", "grad"), itertools.product([True, False], repeat=2))
def test_a_weight_gain_or_shift_that_is_a_property(ours, theirs, arguments, training, grad):
    names = ("weight", "gain", "shift")
    plain = ours(*arguments, gain=True, shift=True)
    layer = masked(ours(*arguments, gain=True, shift=True), names)
    layer.train(training)
    x = torch.randn(1, 3, *[5] * (0 if theirs is nn.Linear else plain.weight.dim() - 2))
    for _ in range(2):  # values that change in between
        with torch.no_grad():
            for name, parameter in layer.named_parameters():
                parameter.normal_()
                by = 2 * parameter + 1 if name in names else parameter
                plain.get_parameter(name).copy_(by)
        with torch.set_grad_enabled(grad):
            assert torch.equal(layer(x), plain(x))


def test_a_weight_that_is_a_property_in_a_group():
    model = nn.Sequential(torch_ws.WSLinear(3, 4), masked(torch_ws.WSLinear(4, 2), ["weight"]))
    x, torch_group = torch.randn(2, 3), torch_ws.group(model)
    grouped = model(x)
    torch_group.remove()
    assert torch.equal(grouped, model(x))
