"""convert: what it refuses, warns of and logs, by name, and that a refusal changes nothing."""

import logging
import re
import warnings

import pytest
import torch
import torch_ws
from architectures import build, resnet
from conversions import quietly
from torch import nn
from torch.nn.utils import parametrizations, prune, weight_norm
from torch_ws import Standardized


class MyConv(nn.Conv2d):
    pass


def remove_weight(layer):
    weight = layer.weight.data
    del layer._parameters["weight"]
    layer.weight = weight
    return layer


@pytest.mark.parametrize(
    ("layer", "options", "kind", "message"),
    [
        (parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), {}, ValueError, "parametrized"),
        (
            parametrizations.spectral_norm(nn.Linear(3, 4)),
            {"linear": True},
            ValueError,
            "parametri",
        ),
        (weight_norm(nn.Conv2d(3, 4, 3)), {}, ValueError, "made anew"),
        (prune.random_unstructured(nn.Conv2d(3, 4, 3), "weight", 2), {}, ValueError, "made anew"),
        (remove_weight(nn.Conv2d(3, 4, 3)), {}, ValueError, "not a parameter"),
        (nn.LazyConv2d(4, 3), {}, ValueError, "not initialized"),
        (nn.LazyLinear(4), {"linear": True}, ValueError, "not initialized"),
        (nn.Conv2d(3, 4, 3, dtype=torch.complex64), {}, ValueError, "complex64"),
        (nn.Conv2d(4, 4, 1, groups=4), {"formula": "qiao"}, ValueError, "correction"),
        (nn.Conv2d(3, 4, 3, device="meta"), {"preserve": True}, ValueError, "meta"),
    ],
)
def test_what_cannot_be_converted_is_refused_by_name_and_nothing_changes(
    layer, options, kind, message
):
    model = nn.ModuleDict({"first": nn.Conv2d(3, 4, 3), "odd": layer})
    types = [type(m) for m in model.modules()]
    keys = list(model.state_dict())
    with pytest.raises(kind, match=rf"'odd' \({type(layer).__name__}\): .*{message}"):
        quietly(model, **options)
    assert [type(m) for m in model.modules()] == types
    assert list(model.state_dict()) == keys
    quietly(model, **options, skip=["odd"])  # as the message says


def test_an_attribute_named_gain_is_not_overwritten():
    layer = nn.Conv2d(3, 4, 3)
    layer.gain = 2.0
    with pytest.raises(ValueError, match="attribute 'gain'"):
        torch_ws.convert(layer)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"formula": "papers"}, ValueError, "formula must be one of"),
        ({"formula": 1}, TypeError, "formula must be a name or a Formula"),
        ({"linear": 1}, TypeError, "linear must be a bool"),
        ({"gain": None}, TypeError, "gain must be a bool"),
        ({"preserve": "yes"}, TypeError, "preserve must be a bool"),
        ({"skip": 3}, TypeError, "skip must be an iterable of names and types"),
        ({"skip": [3]}, TypeError, "skip must hold names and types, got int"),
        ({"skip": ["1.conv4"]}, ValueError, r"no module named '1.conv4'; near matches: '1\..*conv"),
        ({"skip": ["xyz"]}, ValueError, "no module named 'xyz'$"),
    ],
)
def test_wrong_arguments(options, kind, message):
    model = resnet()
    with pytest.raises(kind, match=message):
        torch_ws.convert(model, **options)
    assert not any(isinstance(module, Standardized) for module in model.modules())


def test_no_module():
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got Parameter"):
        torch_ws.convert(nn.Parameter(torch.ones(3, 3)))


@pytest.mark.parametrize(
    ("name", "options", "last"),
    [
        ("resnet", {"linear": True}, "'3'"),  # the classifier
        ("resnet", {}, None),
        ("bit", {}, "'4'"),  # normalizations come first in a block: the last one is the head's
        ("bit", {"skip": ["4"]}, None),
        ("unet 2-d", {}, "'head'"),
        ("nfnet", {}, r"9 more and '2\.excite\.1', '2\.excite\.3', '3'"),  # no normalization
        ("nfnet", {"gain": True}, None),
        ("tied", {}, "'decoder'"),
        ("conv", {}, "'the model'"),
        ("conv", {"preserve": True}, None),
        ("transformer", {"linear": True, "skip": [nn.MultiheadAttention]}, None),
    ],
)
def test_a_last_layer_without_a_normalization_after_it_is_warned_of(name, options, last):
    model, _ = build(name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch_ws.convert(model, **options)
    if last is None:
        assert caught == []
    else:
        [warning] = caught
        assert warning.filename == __file__
        assert re.match(f"no normalization follows {last}: ", str(warning.message))


def test_other_warnings():
    with pytest.warns(UserWarning, match="did nothing.*see linear=True"):
        torch_ws.convert(nn.Sequential(nn.Linear(3, 3)))
    with pytest.warns(UserWarning, match="weight of '0' is 0: its channels have one element"):
        torch_ws.convert(nn.Sequential(nn.Conv2d(4, 4, 1, groups=4), nn.BatchNorm2d(4)))


def test_a_warning_that_is_an_error_changes_nothing():
    model = nn.Conv2d(3, 4, 3)
    with warnings.catch_warnings(), pytest.raises(UserWarning):
        warnings.simplefilter("error")
        torch_ws.convert(model)
    assert type(model) is nn.Conv2d


def test_what_was_done_is_logged(caplog):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), MyConv(4, 4, 3))
    with caplog.at_level(logging.INFO, "torch_ws"):
        quietly(model, skip=["1"])
    assert caplog.messages == [
        "'1' (Conv2d): skipped",
        "'2' (MyConv): left alone",
        "'0' (Conv2d): converted",
    ]
