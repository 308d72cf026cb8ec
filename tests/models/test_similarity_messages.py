"""weight_similarity refuses what is no chain, or no pair of chains, by name and before any work."""

import pytest
import torch
import torch_ws
from architectures import build
from torch import nn
from torch.nn.utils import prune
from torch_ws import weight_similarity

CONV = nn.Conv2d(3, 4, 3)


def layer_with(change):
    layer = nn.Linear(3, 4)
    weight = change(layer.weight.detach())
    layer.weight = nn.Parameter(weight, requires_grad=weight.is_floating_point())
    return layer


def sharded():
    """As a DTensor is told, which a process group makes."""
    layer = nn.Linear(3, 4)
    layer.weight.device_mesh = None
    return layer


class Own(nn.Conv2d):
    """Whose forward may do anything with its weight."""


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ((None, CONV), TypeError, "a must be a torch.nn.Module, got NoneType"),
        ((CONV, "x"), TypeError, "b must be a torch.nn.Module, got str"),
        # a str is an iterable of names of one letter
        ((CONV, CONV, "0"), TypeError, "layers must be an iterable of names, got str"),
        ((CONV, CONV, 3), TypeError, "layers must be an iterable of names, got int"),
        ((CONV, CONV, ["", 0]), TypeError, "layers must hold names, got int"),
        ((CONV, CONV, []), ValueError, "a must have a convolution or linear layer, got none"),
        ((nn.ReLU(), CONV), ValueError, "a must have a convolution or linear layer, got none"),
        # in b alone
        (
            (nn.Sequential(CONV), CONV, ["0"]),
            ValueError,
            "layers: b has no module named '0'",
        ),
        (
            (nn.ModuleDict({"stem": CONV}), CONV, ["stm"]),
            ValueError,
            "layers: a has no module named 'stm'; near matches: 'stem'",
        ),
        (
            (nn.Sequential(CONV), CONV, [""]),
            TypeError,
            r"a: the model \(Sequential\): must",
        ),
    ],
)
def test_arguments(arguments, kind, message):
    with pytest.raises(kind, match=f"^{message}"):
        weight_similarity(*arguments)


@pytest.mark.parametrize(
    ("module", "called"),
    [
        # branches
        (build("resnet")[0], r"'1\.0' \(Bottleneck\)"),
        # weights that no submodule has
        (nn.Sequential(nn.LSTM(3, 4)), r"'0' \(LSTM\)"),
        (nn.Sequential(nn.MultiheadAttention(4, 2)), r"'0' \(MultiheadAttention\)"),
        (nn.Sequential(nn.Sequential(nn.Embedding(5, 3)), CONV), r"'0\.0' \(Embedding\)"),
        # in which nothing says what is called
        (nn.ModuleList([CONV]), r"the model \(ModuleList\)"),
        (nn.Sequential(nn.ModuleDict({"a": CONV})), r"'0' \(ModuleDict\)"),
        (build("tied")[0], r"the model \(Autoencoder\)"),
    ],
)
def test_what_is_no_sequence_names_where(module, called):
    message = f"{called} has weights in it, .* is unknown: only nn.Sequential is a chain. `layers`"
    with pytest.raises(ValueError, match=f"^a: {message}"):
        weight_similarity(module, CONV)
    with pytest.raises(ValueError, match=f"^b: {message}"):
        weight_similarity(CONV, module)


@pytest.mark.parametrize(
    ("layer", "kind", "message"),
    [
        (Own(3, 4, 3), TypeError, "must be a convolution or linear layer of torch.nn or torch_ws"),
        (nn.LazyConv2d(4, 3), ValueError, "is not initialized: first run the model once"),
        # hooks make the weight for each call, and it is stale between
        (prune.identity(nn.Linear(3, 4), "weight"), ValueError, "its weight is not a parameter"),
        (sharded(), ValueError, "its weight is sharded: compare models loaded from checkpoints"),
        (nn.Linear(3, 4, device="meta"), ValueError, "has no values: it is on the meta device"),
        (layer_with(torch.Tensor.to_sparse), NotImplementedError, "weight must be a dense"),
        (layer_with(torch.Tensor.char), ValueError, "weight must have dtype float32.*; got int8"),
        # whose imaginary part would be lost
        (layer_with(lambda w: w.cfloat()), ValueError, "weight must have dtype .*; got complex64"),
        # the formula's own, at fan-in 1
        (
            torch_ws.WSConv2d(1, 4, 1, formula="qiao"),
            ValueError,
            "correction must be smaller than the elements of a channel",
        ),
    ],
)
def test_layers_that_cannot_be_read_are_named(layer, kind, message):
    model = nn.Sequential(nn.ReLU(), layer)
    with pytest.raises(kind, match=rf"^b: '1' \({type(layer).__name__}\): .*{message}"):
        weight_similarity(nn.Linear(3, 4), model)


def conv(inputs, outputs, size=3, **options):
    return nn.Conv2d(inputs, outputs, size, **options)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (
            [conv(3, 4), conv(5, 4)],
            r"'1' \(Conv2d\) takes 5 channels, and '0' .* gives 4",
        ),
        # all groups together
        (
            [conv(3, 4), conv(8, 4, groups=4)],
            r"'1' \(Conv2d\) takes 8 channels, .* gives 4",
        ),
        # no number of positions
        ([conv(3, 4), nn.Linear(6, 2)], r"'1' \(Linear\) takes 6 channels, and '0' .* gives 4"),
        # 8 values again as channels
        ([nn.Linear(3, 8), nn.Unflatten(1, (2, 2, 2)), conv(2, 4)], r"'2' \(Conv2d\) takes 2 "),
        ([layer_with(lambda w: w[:0])], r"'0' \(Linear\) is empty"),
    ],
)
def test_layers_that_do_not_follow_each_other(layers, message):
    model = nn.Sequential(*layers)
    with pytest.raises(ValueError, match=f"^a: {message}"):
        weight_similarity(model, model)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([conv(3, 8)], r"as many layers, got 2 up to '1' \(Linear\) and 1 up to '0' \(Conv2d\)"),
        ([conv(1, 8), nn.Linear(32, 5)], r"'0' \(Conv2d\) must take as many input .*, got 3 and 1"),
        (
            [conv(3, 8, (3, 1)), nn.Linear(32, 5)],
            r"'0' \(Conv2d\) must have equal kernels, got 3×3 and 3×1",
        ),
        # a position of which is mirrored
        (
            [nn.ConvTranspose2d(3, 8, 3), nn.Linear(32, 5)],
            r"'0' \(Conv2d\) and '0' \(ConvTranspose2d\) must have .* 3×3 and 3×3 transposed",
        ),
        # positions of another size of image
        ([conv(3, 8), nn.Linear(72, 5)], r"'1' \(Linear\) must have equal kernels, got 4 and 9"),
    ],
)
def test_chains_that_differ_in_more_than_hidden_widths(layers, message):
    a = nn.Sequential(conv(3, 4), nn.Linear(16, 5))
    with pytest.raises(ValueError, match=f"^a and b:? (?:must have )?{message}"):
        weight_similarity(a, nn.Sequential(*layers))


def test_nothing_is_computed_before_an_error(monkeypatch):
    def forbidden(*_):
        raise AssertionError

    monkeypatch.setattr(torch_ws.similarity, "similarities", forbidden)
    with pytest.raises(ValueError, match="equal kernels"):
        weight_similarity(conv(3, 4), conv(3, 4, 5))
