"""convert on a model that has standardizing layers already: they stay, or the call is refused.

They stay where the call asks for nothing else than they have; and their formula can be changed.
"""

import copy
import warnings

import pytest
import torch
import torch_ws
from architectures import build
from conversions import quietly
from torch import nn
from torch_ws import Standardized


def mixed():
    """A layer of ours, one standardized by parametrize(), a plain one."""
    return nn.Sequential(
        torch_ws.WSConv2d(3, 4, 3, formula="timm"),
        torch_ws.parametrize(nn.Conv2d(4, 4, 3), formula="timm"),
        nn.Conv2d(4, 2, 3),
        nn.BatchNorm2d(2),
    )


def convert_strictly(model, *arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return torch_ws.convert(model, *arguments, **options)


@pytest.mark.parametrize(
    "formula",
    # by name; and equal, but another object without a name
    ["timm", torch_ws.Formula(eps=1e-6, eps_mode="var")],
)
def test_what_asks_for_nothing_else_converts_the_rest(formula):
    model = mixed()
    kept = [copy.deepcopy(model[i].state_dict()) for i in (0, 1)]
    convert_strictly(model, formula)
    assert type(model[2]) is torch_ws.WSConv2d and model[2].formula == torch_ws.formulas["timm"]
    for i in (0, 1):
        assert list(model[i].state_dict()) == list(kept[i])
    weight = model[2].weight
    convert_strictly(model, formula)  # and once more, when nothing is left to do
    assert model[2].weight is weight and model[2].gain is None


def test_a_gain_or_shift_that_is_there_and_not_asked_for_stays():
    layer = torch_ws.WSConv2d(3, 4, 3, gain=True, shift=True)
    gain = layer.gain
    for options in ({}, {"gain": True}, {"gain": True, "shift": True}):
        convert_strictly(layer, **options)
        assert layer.gain is gain and layer.shift is not None


@pytest.mark.parametrize(
    ("arguments", "options", "asked"),
    [
        (("qiao",), {}, "formula='qiao'"),  # by name
        ((), {}, "formula='paper'"),  # the default asks for the paper's formula
        ((torch_ws.Formula(eps=0.5),), {}, r"formula=Formula\(eps=0.5, "),  # one without a name
        (("timm",), {"gain": True}, "formula='timm', gain=True"),
        (("timm",), {"shift": True}, "formula='timm', shift=True"),
        (("timm",), {"preserve": True}, "formula='timm', preserve=True"),
    ],
)
@pytest.mark.parametrize(
    "kept",
    [0, 1],  # a layer of ours; one standardized by parametrize()
)
def test_what_asks_for_something_else_is_refused_by_name_and_nothing_changes(
    kept, arguments, options, asked
):
    model = mixed()
    model[1 - kept] = nn.Identity()
    types = [type(m) for m in model.modules()]
    kept_types = [type(m) for m in model[kept].modules()]
    keys = list(model.state_dict())
    cls = type(model[kept]).__name__
    message = (
        rf"convert was asked for {asked}.*, but '{kept}' \({cls}\) with formula='timm' standardize"
        r".*layer\.formula = .*torch_ws\.Standardized.* in skip"
    )
    with pytest.raises(ValueError, match=message):
        quietly(model, *arguments, **options)
    assert [type(m) for m in model.modules()] == types
    assert list(model.state_dict()) == keys
    quietly(model, *arguments, **options, skip=[str(kept)])  # as the message says
    assert type(model[2]) is torch_ws.WSConv2d
    assert [type(m) for m in model[kept].modules()] == kept_types


def test_the_message_says_what_each_layer_has():
    model = nn.Sequential(
        *(torch_ws.WSConv2d(4, 4, 1, formula="bit") for _ in range(2)),
        torch_ws.WSConv2d(4, 4, 1, gain=True),
        torch_ws.WSConv2d(4, 4, 1, formula=torch_ws.Formula(gamma=2), gain=True, shift=True),
        torch_ws.WSConv2d(4, 4, 1, formula="qiao"),
    )
    with pytest.raises(ValueError) as caught:
        torch_ws.convert(model, "qiao")
    text = str(caught.value)
    assert "1 more and '1' (WSConv2d) with formula='bit', '2' (WSConv2d) with formula=" in text
    assert f"'3' (WSConv2d) with formula={torch_ws.Formula(gamma=2)}, gain=True, shift=True" in text
    assert "'4'" not in text  # it has what was asked for


def test_what_is_not_the_calls_affair_is_not_compared():
    """Linear layers without linear=True, and modules that are no convolutions."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        torch_ws.WSLinear(4, 4, formula="timm"),
        torch_ws.parametrize(nn.Embedding(5, 4), formula="timm"),
    )
    convert_strictly(model, "qiao")
    assert type(model[0]) is torch_ws.WSConv2d
    with pytest.raises(ValueError, match="'2'"):
        torch_ws.convert(model, "qiao", linear=True)


@pytest.mark.parametrize(
    "skip",
    [
        Standardized,  # the type of all of them
        ["0"],
        lambda name, layer: isinstance(layer, Standardized),
    ],
)
def test_skip_exempts(skip):
    model = nn.Sequential(torch_ws.WSConv2d(3, 4, 3), nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2))
    convert_strictly(model, "timm", skip=skip, preserve=True)
    assert model[0].formula == torch_ws.formulas["paper"] and model[0].gain is None
    assert model[1].formula == torch_ws.formulas["timm"] and model[1].gain is not None


def test_what_adopt_made_is_skipped_to_convert_the_rest():
    model = nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)),
        nn.Conv2d(4, 2, 3),
        nn.BatchNorm2d(2),
    )
    torch_ws.adopt(model)
    with pytest.raises(ValueError, match=r"'0' \(WSConv2d\) with formula='weight_norm', gain=True"):
        torch_ws.convert(model)
    convert_strictly(model, skip=Standardized)
    names = [module.formula for module in model if isinstance(module, Standardized)]
    assert names == [torch_ws.formulas["weight_norm"], torch_ws.formulas["paper"]]


def changed(model, formula):
    """The model with another formula, and its first layer with a shift."""
    for module in model.modules():
        if isinstance(module, Standardized):
            module.formula = formula
    layer = next(module for module in model.modules() if isinstance(module, Standardized))
    layer.shift = nn.Parameter(torch.full_like(layer.weight[:, 0, 0, 0], 0.1))
    return model


@pytest.mark.parametrize("training", [True, False])  # False: the layers keep what they computed
@pytest.mark.parametrize("around", ["nothing", "group", "hold"])
@pytest.mark.parametrize("formula", [torch_ws.formulas["nfnet"], "nfnet"])  # a name does as well
def test_another_formula_can_be_assigned_to_a_layer(around, training, formula):
    """And a shift: then the model is one that had both from the beginning."""
    model, x = build("resnet", torch.float64)
    fresh = changed(quietly(copy.deepcopy(model), "nfnet").train(training), formula)
    quietly(model, "paper").train(training)
    if around == "group":
        torch_ws.group(model)
    norms = [m for net in (model, fresh) for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.eval()  # else the passes would move the running estimates
    with torch.no_grad():
        before = model(x)
    if around == "hold":
        with torch_ws.hold(model):
            model(x)
            out = changed(model, formula)(x)
            out.square().mean().backward()
    else:
        model(x)
        out = changed(model, formula)(x)
        out.square().mean().backward()
    expected = fresh(x)
    expected.square().mean().backward()
    assert (before - expected).abs().max() > 1e-3 * expected.abs().max()
    torch.testing.assert_close(out, expected)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected)
    for ours, theirs in zip(model.parameters(), fresh.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_another_formula_for_what_parametrize_made():
    layer = torch_ws.parametrize(nn.Conv2d(3, 4, 3))
    layer.parametrizations.weight[0].formula = torch_ws.formulas["timm"]
    expected = torch_ws.standardize(layer.parametrizations.weight.original, formula="timm")
    assert torch.equal(layer.weight, expected)
    convert_strictly(nn.Sequential(layer, nn.BatchNorm2d(4)), "timm")


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_code_notices_another_formula():
    model = nn.Sequential(torch_ws.WSConv2d(3, 4, 3), nn.ReLU(), torch_ws.WSConv2d(4, 2, 3))
    fast, x = torch.compile(model, fullgraph=True, backend="eager"), torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(fast(x), model(x))
    old = model(x)
    changed(model, torch_ws.formulas["nfnet"])
    torch.testing.assert_close(fast(x), model(x))
    assert (model(x) - old).abs().max() > 0.01 * old.abs().max()
