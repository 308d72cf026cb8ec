"""checkpoints: another library's network and ours, loaded from its state dict, compute the same."""

import copy
import warnings
from collections import OrderedDict

import pytest
import safetensors.torch
import torch
import torch_ws
from conversions import quietly
from peer_layers import (
    NORMS,
    ConvAWS2d,
    ConvWS2d,
    ScaledStdConv2d,
    StdConv2d,
    composer,
    randomize,
)
from torch import nn
from torch_ws import checkpoints

DIMS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def network(conv=nn.Conv2d, dims=2):
    """Dense, grouped and depthwise convolutions, one that is never standardized, a linear layer."""
    conv = DIMS[dims] if dims != 2 else conv
    layers = {
        "stem": conv(3, 8, 3, stride=2, padding=1),
        "norm": nn.GroupNorm(2, 8),
        "grouped": conv(8, 8, 3, padding=1, groups=2),
        "depthwise": conv(8, 8, 3, padding=1, groups=8, bias=False),
        "act": nn.ReLU(),
        "plain": DIMS[dims](8, 2, 1),
        "flat": nn.Flatten(),
        "head": nn.Linear(2 * 4**dims, 5),
    }
    return nn.Sequential(OrderedDict(layers)), torch.randn(2, 3, *[8] * dims, dtype=torch.float64)


def standardized(model, apply, kinds):
    """`model` with `apply` on its layers of those kinds."""
    for name, layer in model.named_children():
        if isinstance(layer, kinds) and name != "plain":
            apply(layer)
    return model


def with_composer(dims):
    model, x = network(dims=dims)
    return standardized(model, composer, DIMS[dims]), x


def with_weight_norm(weight_norm, dims):
    model, x = network(dims=dims)
    return standardized(model, weight_norm, (DIMS[dims], nn.Linear)), x


GAIN = {"gain": True}
# their network; the function; dimensions; how ours is converted
CASES = {
    "timm": (lambda: network(StdConv2d), checkpoints.from_timm, 2, {"formula": "timm"}),
    "timm scaled": (
        lambda: network(ScaledStdConv2d),
        checkpoints.from_timm,
        2,
        {"formula": "timm_scaled", **GAIN},
    ),
    "mmcv": (lambda: network(ConvWS2d), checkpoints.from_mmcv, 2, {"formula": "qiao"}),
    "mmcv aws": (
        lambda: network(ConvAWS2d),
        checkpoints.from_mmcv,
        2,
        {"formula": "mmcv_aws", **GAIN, "shift": True},
    ),
}
for d in (1, 2, 3):
    CASES[f"composer {d}-d"] = (
        lambda d=d: with_composer(d),
        checkpoints.from_composer,
        d,
        {"formula": "bit"},
    )
for style, weight_norm in NORMS.items():
    for d in (1, 2, 3):
        CASES[f"{style} {d}-d"] = (
            lambda d=d, weight_norm=weight_norm: with_weight_norm(weight_norm, d),
            checkpoints.from_weight_norm,
            d,
            {"formula": "weight_norm", "linear": True, **GAIN},
        )


def theirs_and_ours(case):
    make, translate, dims, options = CASES[case]
    theirs, x = make()
    theirs = randomize(theirs.double())
    ours = network(dims=dims)[0].double()
    state = translate(theirs.state_dict())
    if "gain" in options:  # as documented: what has a gain was standardized
        quietly(ours, **options, skip=lambda name, layer: f"{name}.gain" not in state)
    else:
        quietly(ours, **options, skip=["plain"])
    return theirs, ours, x, state


def assert_same(theirs, ours, x):
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_computes_the_same(case):
    theirs, ours, x, state = theirs_and_ours(case)
    ours.load_state_dict(state)
    converted = [n for n, m in ours.named_modules() if hasattr(m, "standardized_weight")]
    head = ["head"] if "weight_norm" in case else []
    assert converted == ["stem", "grouped", "depthwise", *head]
    assert_same(theirs, ours, x)


@pytest.mark.parametrize("case", CASES)
def test_through_files(case, tmp_path):
    theirs, ours, x, _ = theirs_and_ours(case)
    translate = CASES[case][1]
    torch.save(theirs.state_dict(), tmp_path / "model.pt")
    safetensors.torch.save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    for state in (
        torch.load(tmp_path / "model.pt", weights_only=True),
        safetensors.torch.load_file(tmp_path / "model.safetensors"),
    ):
        randomize(ours)
        ours.load_state_dict(translate(state))
        assert_same(theirs, ours, x)
        # and ours saved in the same way
        torch.save(ours.state_dict(), tmp_path / "ours.pt")
        safetensors.torch.save_file(ours.state_dict(), tmp_path / "ours.safetensors")
        for again in (
            torch.load(tmp_path / "ours.pt", weights_only=True),
            safetensors.torch.load_file(tmp_path / "ours.safetensors"),
        ):
            randomize(ours)
            ours.load_state_dict(translate(again) if "weight_norm" not in case else again)
            assert_same(theirs, ours, x)


@pytest.mark.parametrize("case", CASES)
def test_the_argument_is_untouched_and_its_memory_shared(case):
    theirs, _, _, _ = theirs_and_ours(case)
    state = theirs.state_dict()
    state["epoch"] = 3  # not a tensor, nobody's
    before, tensors = list(state), dict(state)
    metadata = copy.deepcopy(state._metadata)
    result = CASES[case][1](state)
    assert list(state) == before and all(state[key] is tensors[key] for key in before)
    assert state._metadata == metadata == result._metadata and type(result) is OrderedDict
    assert result["epoch"] == 3 and list(result)[-1] == "epoch"
    memory = [t.data_ptr() for t in tensors.values() if isinstance(t, torch.Tensor)]
    assert [t.data_ptr() for t in result.values() if isinstance(t, torch.Tensor)] == memory
    assert result["plain.weight"] is tensors["plain.weight"]
    assert type(CASES[case][1](dict(state))) is dict


def test_a_dict_that_has_metadata_becomes_a_plain_dict():
    class StateDict(dict):
        _metadata = None

    layer = ScaledStdConv2d(3, 4, 3)
    result = checkpoints.from_timm(StateDict(layer.state_dict()))
    assert type(result) is dict and result["gain"].shape == (4,)


def test_a_single_layer_and_a_prefix():
    layer = randomize(ScaledStdConv2d(3, 4, 3).double())
    state = checkpoints.from_timm(layer.state_dict())
    assert state["gain"].shape == (4,)
    state = checkpoints.from_timm({f"module.{k}": v for k, v in layer.state_dict().items()})
    assert torch.equal(state["module.gain"], layer.gain.flatten())


def test_a_mixed_model_is_translated_step_by_step():
    theirs = nn.ModuleDict(
        {
            "timm": ScaledStdConv2d(3, 4, 3),
            "mmcv": ConvAWS2d(3, 4, 3),
            "normed": nn.utils.weight_norm(nn.Linear(3, 4)),
            "composer": composer(nn.Conv2d(3, 4, 3)),
        }
    )
    state = theirs.state_dict()
    for translate in (
        checkpoints.from_composer,
        checkpoints.from_mmcv,
        checkpoints.from_weight_norm,
        checkpoints.from_timm,
    ):
        state = translate(state)
    assert sorted(state) == [
        "composer.bias",
        "composer.weight",
        "mmcv.bias",
        "mmcv.gain",
        "mmcv.shift",
        "mmcv.weight",
        "normed.bias",
        "normed.gain",
        "normed.weight",
        "timm.bias",
        "timm.gain",
        "timm.weight",
    ]


# as weight_norm's dim=1: output channels; without a bias nothing but load_state_dict could tell
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("weight_norm", NORMS.values(), ids=NORMS)
# one output channel: g is (1, 1, 1); as many inputs as outputs
@pytest.mark.parametrize(("inputs", "outputs"), [(4, 6), (4, 1), (1, 4), (4, 4)])
def test_transposed_convolutions_normed_by_output(inputs, outputs, weight_norm, bias):
    plain = nn.Sequential(nn.ConvTranspose1d(inputs, outputs, 3, bias=bias).double())
    theirs = copy.deepcopy(plain)
    weight_norm(theirs[0], dim=1)
    randomize(theirs)
    ours = quietly(plain, "weight_norm", gain=True)
    for model in (ours, None) if inputs != 1 else (ours,):
        ours.load_state_dict(checkpoints.from_weight_norm(theirs.state_dict(), model))
        assert_same(theirs, ours, torch.randn(2, inputs, 5, dtype=torch.float64))


def test_a_plain_checkpoint_for_aws_is_preserved_as_mmcv_does():
    theirs, ours = ConvAWS2d(3, 4, 3).double(), nn.Conv2d(3, 4, 3).double()
    randomize(ours)
    theirs.load_state_dict(ours.state_dict(), strict=False)
    with torch.no_grad():  # what ConvAWS2d's loading derives
        mean, var = theirs.moments(1)
        theirs.weight_beta.copy_(mean)
        theirs.weight_gamma.copy_((var + 1e-5).sqrt())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch_ws.convert(ours, "mmcv_aws", preserve=True)
    torch.testing.assert_close(ours.gain, theirs.weight_gamma.flatten())
    torch.testing.assert_close(ours.shift, theirs.weight_beta.flatten())
    assert_same(theirs, ours, torch.randn(2, 3, 5, 5, dtype=torch.float64))
