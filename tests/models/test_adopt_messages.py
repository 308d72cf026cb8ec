"""adopt: what it leaves alone, warns of and refuses, by name; a refusal changes nothing."""

import logging
import warnings

import pytest
import torch
import torch_ws
from peer_layers import NORMS, ConvWS2d, ScaledStdConv2d, StdConv2d, StdConv2dSame, composer
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils import parametrize as torch_parametrize


class MyStdConv2d(StdConv2d):
    pass


def with_padding(layer):
    layer.padding = (1, 1)
    return layer


ODD = {
    "subclass": lambda: MyStdConv2d(3, 4, 3),
    "same and more": lambda: with_padding(StdConv2dSame(3, 4, 3)),
    "parametrized on top": lambda: composer(StdConv2d(3, 4, 3)),
    "hook on top": lambda: nn.utils.weight_norm(StdConv2d(3, 4, 3)),
    "twice": lambda: composer(composer(nn.Conv2d(3, 4, 3))),
    "composer transposed": lambda: composer(nn.ConvTranspose2d(3, 4, 3)),
    "composer embedding": lambda: composer(nn.Embedding(3, 4)),
    "bias too": lambda: nn.utils.weight_norm(
        nn.utils.weight_norm(nn.Linear(3, 4)), name="bias", dim=0
    ),
    "bias only": lambda: nn.utils.weight_norm(nn.Linear(3, 4), name="bias", dim=0),
}
for kind, norm in NORMS.items():
    ODD |= {
        f"{kind} of inputs": lambda norm=norm: norm(nn.Conv2d(3, 4, 3), dim=1),
        f"{kind} of all": lambda norm=norm: norm(nn.Linear(3, 4), dim=None),
        f"{kind} transposed": lambda norm=norm: norm(nn.ConvTranspose2d(3, 3, 3)),
        f"{kind} transposed, groups": lambda norm=norm: norm(
            nn.ConvTranspose2d(4, 4, 3, groups=2), dim=1
        ),
        f"{kind} recurrent": lambda norm=norm: norm(nn.LSTM(3, 4), "weight_hh_l0"),
    }


@pytest.mark.parametrize("name", ODD)
def test_what_may_compute_something_else_is_left_alone_with_a_warning(name, caplog):
    layer = ODD[name]()
    model = nn.ModuleDict({"there": layer, "conv": StdConv2d(3, 4, 3)})
    cls, keys = type(layer), list(layer.state_dict())
    message = rf"left alone 'there' \({cls.__name__}\): "
    with (
        caplog.at_level(logging.INFO, "torch_ws"),
        pytest.warns(UserWarning, match=message) as caught,
    ):
        torch_ws.adopt(model)
    assert caught[0].filename == __file__
    assert type(layer) is cls and list(layer.state_dict()) == keys
    assert type(model["conv"]) is torch_ws.WSConv2d
    assert caplog.messages == [
        f"'there' ({cls.__name__}): left alone",
        "'conv' (StdConv2d): adopted",
    ]


def test_attention_reads_its_projection_itself():
    attention = nn.MultiheadAttention(4, 2)
    attention.out_proj = parametrizations.weight_norm(nn.Linear(4, 4))
    with pytest.warns(UserWarning, match="left alone 'out_proj'"):
        torch_ws.adopt(attention)
    assert torch_parametrize.is_parametrized(attention.out_proj)


def test_nothing_known():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), torch_ws.WSConv2d(4, 4, 3), nn.LSTM(3, 4))
    parametrizations.spectral_norm(model[0])
    with pytest.warns(UserWarning, match="adopt did nothing"):
        torch_ws.adopt(model)
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got Tensor"):
        torch_ws.adopt(torch.ones(2, 2))


def with_gain(shape):
    layer = ScaledStdConv2d(3, 4, 3)
    layer.gain = nn.Parameter(torch.ones(shape))
    return layer


def sharded(layer):
    layer.weight.device_mesh = "as a DTensor has"
    return layer


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (with_gain((3, 1, 1, 1)), r"gain must have shape \(4,\)"),
        (ConvWS2d(4, 4, 1, groups=4), "correction must be smaller"),  # NaN in mmcv
        (StdConv2d(3, 4, 3, dtype=torch.complex64), "complex64"),
        (sharded(ScaledStdConv2d(3, 4, 3)), "is sharded already"),
    ],
)
def test_what_is_refused_changes_nothing(odd, message):
    model = nn.ModuleDict({"first": StdConv2d(3, 4, 3), "odd": odd})
    with pytest.raises(ValueError, match=rf"'odd' \({type(odd).__name__}\): .*{message}"):
        torch_ws.adopt(model)
    assert type(model["first"]) is StdConv2d and type(odd) is not torch_ws.WSConv2d


def test_a_warning_that_is_an_error_changes_nothing():
    model = nn.ModuleList([StdConv2d(3, 4, 3), MyStdConv2d(3, 4, 3)])
    with warnings.catch_warnings(), pytest.raises(UserWarning):
        warnings.simplefilter("error")
        torch_ws.adopt(model)
    assert type(model[0]) is StdConv2d
