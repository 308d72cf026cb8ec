"""checkpoints: every key that does not fit is named, in one error, and nothing is changed."""

import itertools

import pytest
import torch
from peer_layers import ConvAWS2d, ScaledStdConv2d, StdConv2d, composer
from torch import nn
from torch.nn.utils import parametrizations
from torch_ws import checkpoints

SCALED = ScaledStdConv2d(3, 4, 3)
AWS = ConvAWS2d(3, 4, 3)
NORMED = parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
HOOKED = nn.utils.weight_norm(nn.Linear(3, 4))
COMPOSER = composer(nn.Conv2d(3, 4, 3))

FUNCTIONS = {
    "from_timm": (checkpoints.from_timm, SCALED),
    "from_mmcv": (checkpoints.from_mmcv, AWS),
    "from_composer": (checkpoints.from_composer, COMPOSER),
    "from_weight_norm": (checkpoints.from_weight_norm, NORMED),
}


def of(layer, name="conv", **changes):
    """The layer's state dict under a name, with tensors changed or, as None, left out."""
    state = {**layer.state_dict(), **changes}
    return {f"{name}.{key}": tensor for key, tensor in state.items() if tensor is not None}


def refused(translate, state, message, **options):
    before = dict(state)
    with pytest.raises(ValueError, match=message):
        translate(state, **options)
    assert list(state) == list(before) and all(state[key] is before[key] for key in before)


@pytest.mark.parametrize(("name", "other"), itertools.permutations(FUNCTIONS, 2))
def test_another_librarys_checkpoint_says_which_function(name, other):
    hint = f"^{name}: nothing to translate, but conv.*, which is for {other}$"
    refused(FUNCTIONS[name][0], of(FUNCTIONS[other][1]), hint)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_nobodys_passes(name):
    translate, _ = FUNCTIONS[name]
    state = {**of(StdConv2d(3, 4, 3)), "gain": torch.ones(3), "head.gain": torch.ones(2, 2)}
    assert translate(state) == state
    assert translate({}) == {}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_twice_is_once(name):
    """What a function returns it passes on: a script may load a file that was translated before."""
    translate, layer = FUNCTIONS[name]
    once = translate(of(layer))
    assert all(translate(once)[key] is once[key] for key in once)


@pytest.mark.parametrize(
    ("translate", "state", "message"),
    [
        (
            checkpoints.from_timm,
            {
                **of(SCALED, "a", gain=torch.ones(3, 1, 1, 1)),
                **of(SCALED, "b", gain=torch.ones(())),
            },
            r"a\.gain has shape \(3, 1, 1, 1\), not \(4, 1, 1, 1\); b\.gain has shape \(\)",
        ),
        (
            checkpoints.from_mmcv,
            {**of(AWS, "a", weight_gamma=None), **of(AWS, "b", weight=None), **of(AWS, "c")},
            r"^from_mmcv: a\.weight_beta without weight, .*; b\.weight_gamma without weight[^;]*$",
        ),
        (
            checkpoints.from_mmcv,
            of(AWS, weight_beta=torch.zeros(4)),
            r"conv\.weight_beta has shape \(4,\), not \(4, 1, 1, 1\)$",
        ),
        (
            checkpoints.from_mmcv,
            of(AWS, weight_diff=torch.zeros(4, 3, 3, 3)),
            r"conv\.weight_diff is SAConv2d's",
        ),
        (
            checkpoints.from_mmcv,
            of(AWS, weight_gamma=torch.full((4, 1, 1, 1), -1.0)),
            r"conv\.weight_gamma has a mean not above 0",
        ),
        (
            checkpoints.from_mmcv,
            of(AWS, gain=torch.ones(4)),
            r"conv\.weight_gamma would become conv\.gain, which is there already",
        ),
        (
            checkpoints.from_weight_norm,
            {**of(HOOKED, "a", weight_v=None), **of(HOOKED, "b", weight_g=None)},
            r"a\.weight_g without weight_g and weight_v; b\.weight_v without",
        ),
        (
            checkpoints.from_weight_norm,
            of(nn.utils.weight_norm(nn.Linear(3, 4), dim=None)),
            r"conv\.weight_g \(\) is not one norm a channel of a weight \(4, 3\)",
        ),
        (
            checkpoints.from_weight_norm,  # of a convolution's kernel positions
            of(parametrizations.weight_norm(nn.Conv1d(3, 4, 5), dim=2)),
            r"original0 \(1, 1, 5\) is not one norm a channel",
        ),
        (
            checkpoints.from_weight_norm,
            of(nn.utils.weight_norm(nn.Linear(3, 4, bias=False), dim=1)),
            r"conv\.weight_g \(1, 3\) has the norms of the input channels",
        ),
    ],
)
def test_keys_that_do_not_fit(translate, state, message):
    refused(translate, state, message)


INPUTS = "has the norms of the input channels; torch_ws's are of the output channels"


def test_norms_of_input_channels_are_refused_where_anything_shows_them():
    translate = checkpoints.from_weight_norm
    by_default = of(nn.utils.weight_norm(nn.ConvTranspose1d(4, 6, 3)))  # dim=0
    refused(translate, by_default, rf"conv\.weight_g \(4, 1, 1\) {INPUTS}")
    # dim=1 of a convolution
    refused(translate, of(parametrizations.weight_norm(nn.Conv1d(4, 6, 3), dim=1)), INPUTS)
    # as many outputs as inputs: only the model tells
    for layer in (nn.ConvTranspose1d(4, 4, 3), nn.ConvTranspose1d(4, 4, 3, groups=2)):
        model = nn.ModuleDict({"conv": layer})
        state = of(nn.utils.weight_norm(nn.ConvTranspose1d(4, 4, 3, groups=layer.groups)))
        assert translate(state)["conv.gain"].shape == (4,)
        refused(translate, state, INPUTS if layer.groups == 1 else "grouped", model=model)
    model = nn.ModuleDict({"conv": nn.Conv1d(4, 4, 3)})
    state = of(parametrizations.weight_norm(nn.Conv1d(4, 4, 3), dim=1))
    refused(translate, state, INPUTS, model=model)
    refused(translate, state, "the model does not have", model=nn.Conv1d(4, 4, 3))


def test_other_parametrizations_are_not_composers():
    spectral = parametrizations.spectral_norm(nn.Conv2d(3, 4, 3))
    linear = composer(nn.Linear(3, 4))  # composer's are convolutions
    state = {**of(spectral, "spectral"), **of(linear, "linear"), **of(COMPOSER)}
    result = checkpoints.from_composer(state)
    assert set(state) - set(result) == {"conv.parametrizations.weight.original"}
    assert set(result) - set(state) == {"conv.weight"}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_state_dict(name):
    translate, layer = FUNCTIONS[name]
    with pytest.raises(TypeError, match=r"state_dict must be a mapping, got "):
        translate(layer)
    with pytest.raises(TypeError, match="names as keys, got int"):
        translate({0: torch.ones(3)})
    with pytest.raises(ValueError, match="'state_dict' is a mapping"):
        translate({"epoch": 3, "state_dict": layer.state_dict()})


def test_no_model():
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module or None, got dict"):
        checkpoints.from_weight_norm({}, {})


def test_tensors_without_values():
    """A checkpoint on the meta device is translated as any other."""
    state = of(ConvAWS2d(3, 4, 3).to("meta"))
    assert checkpoints.from_mmcv(state)["conv.gain"].is_meta
