"""Provider: a layer asks it first, group and hold take its place or leave it, and five are one."""

import copy
import inspect

import pytest
import torch
import torch_ws
from small_network import batch, network
from torch_ws.layers.cache import EvalCache
from torch_ws.training.fused_layer import FusedLayer
from torch_ws.training.group import Group, _Pass
from torch_ws.training.hold import Hold
from torch_ws.training.provider import Provider

PROVIDERS = [Group, _Pass, Hold, FusedLayer, EvalCache]
if torch.distributed.is_available():
    from torch_ws.distributed.gather import _Gathering

    PROVIDERS.append(_Gathering)


class Scripted(Provider):
    """Gives what it was made with, and notes what it was asked for."""

    def __init__(self, result, idle=False, permanent=False):
        self.result, self.idle, self.permanent = result, idle, permanent
        self.asked = []

    def take(self, layer, tensors, dtype):
        self.asked.append((layer, tensors, dtype))
        return self.result


def provided(layer, provider):
    layer.__dict__["_provider"] = provider
    return provider


def test_a_layer_applies_what_its_provider_gives():
    layer = torch_ws.WSLinear(3, 4, gain=True, bias=False)
    provider = provided(layer, Scripted(torch.full((4, 3), 2.0)))
    with torch.autocast("cpu", torch.bfloat16):
        layer.standardized_weight()
    torch.testing.assert_close(layer(torch.ones(1, 3)), torch.full((1, 4), 6.0))
    tensors = layer.weight, layer.gain, None
    for (asked_layer, asked, dtype), expected in zip(
        provider.asked, (torch.bfloat16, None), strict=True
    ):
        assert asked_layer is layer and dtype == expected
        assert all(a is b for a, b in zip(asked, tensors, strict=True))


@pytest.mark.parametrize("training", [True, False])  # in evaluation the eval cache is asked next
def test_a_layer_goes_on_where_its_provider_has_none(training):
    layer = torch_ws.WSLinear(3, 4).train(training)
    provider = provided(layer, Scripted(None))
    with torch.no_grad():
        results = [layer.standardized_weight() for _ in range(2)]
    assert (results[0] is results[1]) != training and len(provider.asked) == 2
    for result in results:
        torch.testing.assert_close(result, torch_ws.standardize(layer.weight), rtol=0, atol=0)


def test_a_provider_is_no_part_of_a_copy():
    layer = torch_ws.WSLinear(3, 4)
    provided(layer, Scripted(None))
    assert "_provider" not in vars(copy.deepcopy(layer))


@pytest.mark.parametrize("permanent", [True, False])
def test_a_pass_and_a_block_leave_a_permanent_provider_alone(permanent):
    model = network()
    provider = provided(model.stem, Scripted(None, idle=True, permanent=permanent))
    handle = torch_ws.group(model)
    model(batch())
    assert len(provider.asked) == permanent
    handle.remove()
    provided(model.stem, provider)
    with torch_ws.hold(model):
        model(batch())
    assert len(provider.asked) == 2 * permanent and model.stem._provider is provider


@pytest.mark.parametrize("cls", PROVIDERS)
def test_implements_the_protocol(cls):
    names = list(inspect.signature(Provider.take).parameters)
    assert list(inspect.signature(cls.take).parameters) == names
    assert isinstance(cls.idle, bool) and isinstance(cls.permanent, bool)
