"""adopt and checkpoints with the libraries themselves, where they are installed."""

import copy

import pytest
import torch
import torch_ws
from peer_layers import randomize
from torch import nn
from torch_ws import Standardized, checkpoints


def adopted(model, x):
    """The model adopted; asserts that it computes the same, in float64."""
    model, x = randomize(model.double()).eval(), x.double()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_var.uniform_(0.5, 2)
        expected = model(x)
        torch_ws.adopt(model)
        actual = model(x)
    expected = getattr(expected, "last_hidden_state", expected)
    actual = getattr(actual, "last_hidden_state", actual)
    error = (actual - expected).abs().max() / expected.abs().max()
    assert error < 1e-10  # dozens of layers, each of which rounds
    return model


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("resnetv2_50x1_bit", "timm_bit"),  # StdConv2d
        ("vit_tiny_r_s16_p8_224", "timm_bit"),  # StdConv2dSame
        ("dm_nfnet_f0", "timm_nfnet"),  # ScaledStdConv2dSame, gamma in the activation
        ("nfnet_l0", None),  # ScaledStdConv2d, gamma in the convolution
        ("nf_regnet_b0", None),
    ],
)
def test_timm_models(name, formula):
    timm = pytest.importorskip("timm")
    std_conv = pytest.importorskip("timm.layers.std_conv")
    kinds = [getattr(std_conv, n) for n in dir(std_conv) if n.startswith(("Std", "Scaled"))]
    model = timm.create_model(name, num_classes=7)
    known = sum(type(m) in kinds for m in model.modules())
    theirs = copy.deepcopy(model).double()
    size = 224 if "vit" in name else 64
    x = torch.randn(1, 3, size, size)
    model = adopted(model, x)
    ours = [m for m in model.modules() if isinstance(m, Standardized)]
    assert len(ours) == known > 0 and not any(type(m) in kinds for m in model.modules())
    if formula is not None:
        assert {m.formula for m in ours} == {torch_ws.formulas[formula]}

    # a checkpoint of timm's for the adopted model
    randomize(theirs).eval()
    model.load_state_dict(checkpoints.from_timm(theirs.state_dict()))
    with torch.no_grad():
        expected, actual = theirs(x.double()), model(x.double())
    assert (actual - expected).abs().max() <= 1e-10 * expected.abs().max()


def test_transformers_bit():
    modeling = pytest.importorskip("transformers.models.bit.modeling_bit")
    for padding in (None, "SAME"):
        config = modeling.BitConfig(
            embedding_size=8,
            hidden_sizes=[32, 64],
            depths=[1, 1],
            num_groups=4,
            global_padding=padding,
        )
        model = adopted(modeling.BitModel(config), torch.randn(1, 3, 33, 33))
        ours = [m for m in model.modules() if isinstance(m, Standardized)]
        assert ours and {m.formula for m in ours} == {torch_ws.formulas["timm_bit"]}


@pytest.mark.parametrize("name", ["ConvWS2d", "ConvAWS2d"])
def test_mmcv_layers(name):
    conv_ws = pytest.importorskip("mmcv.cnn.bricks.conv_ws")
    layer = getattr(conv_ws, name)(4, 6, 3, stride=2, groups=2)
    state = layer.double().state_dict()
    layer = adopted(layer, torch.randn(2, 4, 9, 9))
    assert type(layer) is torch_ws.WSConv2d
    layer.load_state_dict(checkpoints.from_mmcv(state))


def test_mmcvs_checkpoint_of_a_plain_model_is_preserved():
    """ConvAWS2d loads a plain layer's weight as convert(preserve=True) takes it over."""
    conv_ws = pytest.importorskip("mmcv.cnn.bricks.conv_ws")
    plain = nn.Conv2d(3, 4, 3).double()
    theirs = conv_ws.ConvAWS2d(3, 4, 3).double()
    theirs.load_state_dict(plain.state_dict(), strict=False)
    torch_ws.convert(plain, "mmcv_aws", preserve=True)
    torch.testing.assert_close(plain.gain, theirs.weight_gamma.flatten())
    torch.testing.assert_close(plain.shift, theirs.weight_beta.flatten())


def test_composer():
    module = pytest.importorskip(
        "composer.algorithms.weight_standardization.weight_standardization"
    )
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 2, 1))
    module.apply_weight_standardization(model, n_last_layers_ignore=1)
    keys = list(checkpoints.from_composer(model.state_dict()))
    model = adopted(model, torch.randn(2, 3, 9, 9))
    assert [type(m) for m in model] == [torch_ws.WSConv2d] * 2 + [nn.Conv2d]
    assert sorted(keys) == sorted(model.state_dict())
