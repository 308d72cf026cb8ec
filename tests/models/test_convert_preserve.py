"""convert(preserve=True): the model computes what it did before, for every formula and layer."""

import pytest
import torch
import torch_ws
from architectures import ARCHITECTURES, Autoencoder, build
from conversions import quietly
from torch import nn
from torch_ws import Formula, Standardized


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("formula", torch_ws.formulas)
def test_preserve_computes_what_it_did(name, formula):
    model, x = build(name, torch.float64)
    expected = model(x)
    quietly(model, formula, linear=True, preserve=True)
    assert any(isinstance(module, Standardized) for module in model.modules())
    error = (model(x) - expected).abs().max() / expected.abs().max()
    assert error < 1e-12  # a few dozen layers' roundings of 2e-16, times their condition
    for module in model.modules():
        if isinstance(module, Standardized):
            assert (module.shift is None) == (not torch_ws.formulas[formula].center)


@pytest.mark.parametrize(
    ("dtype", "bound"),
    # a rounding of gain, one of w_hat, one of their product and one of the shift
    [(torch.float32, 4 * 2**-24), (torch.bfloat16, 4 * 2**-8), (torch.float16, 4 * 2**-11)],
)
@pytest.mark.parametrize("formula", ["paper", "nfnet", "weight_norm"])
def test_preserve_is_exact_to_rounding(dtype, bound, formula):
    layer = nn.Conv2d(16, 8, 3).to(dtype)
    expected = layer.weight.detach().double()
    quietly(layer, formula, preserve=True)
    error = (layer.standardized_weight().double() - expected).abs().max()
    assert error <= bound * expected.abs().max()


@pytest.mark.parametrize("formula", torch_ws.formulas)
def test_preserve_with_constant_channels(formula):
    layer = nn.Conv2d(2, 4, 3)
    with torch.no_grad():
        layer.weight[0] = 0.1  # var = 0: w_hat is 0 where the formula centers
        layer.weight[1] = 0.0
    expected = layer.weight.detach().clone()
    quietly(layer, formula, preserve=True)
    actual = layer.standardized_weight()
    assert torch.equal(actual[1], expected[1])
    torch.testing.assert_close(actual, expected)
    if layer.formula.center:
        assert torch.equal(actual[0], expected[0])


def test_preserve_with_one_element_a_channel():
    model = nn.Sequential(nn.Conv2d(4, 4, 1, groups=4), nn.Linear(1, 3))
    expected = [layer.weight.detach().clone() for layer in model]
    torch_ws.convert(model, linear=True, preserve=True)  # and no warning
    for layer, weight in zip(model, expected, strict=True):
        assert torch.equal(layer.standardized_weight(), weight)


def test_preserve_of_a_tied_weight_suits_both_layers():
    model = Autoencoder().double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    expected = model(x)
    torch_ws.convert(model, preserve=True)
    assert model.encoder.weight is model.decoder.weight
    assert model.encoder.gain.shape == (8,) and model.decoder.gain.shape == (3,)
    torch.testing.assert_close(model(x), expected)


def test_preserve_cannot_undo_a_scale_of_0():
    with pytest.raises(ValueError, match="another scale than 0"):
        torch_ws.convert(nn.Conv2d(3, 4, 3), Formula(gamma=0), preserve=True)
