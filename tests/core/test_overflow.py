"""Unscaled weights at a large fan-in in float16, the fan-in scale as the cure, eps in 16 bits."""

import math
from dataclasses import replace

import pytest
import torch
import torch_ws
from accuracy import assert_close
from formulas_page import table
from published import bit_pytorch, lucidrains
from torch_ws import Formula, formulas, standardize

FAN_IN = 4608  # 512 * 3 * 3, a ResNet's widest
RELU = math.sqrt(2 / (1 - 1 / math.pi))  # from E[max(x, 0)] = 1 / sqrt(2 pi), E[max(x, 0)^2] = 1/2
SCALED = replace(formulas["nfnet"], gamma=RELU)


@torch.no_grad()
def output_stds(formula, dtype, layers=4, normalized=False):
    """Standard deviations behind each convolution of a stack of convolutions and ReLUs."""
    torch.manual_seed(0)
    x, stds = torch.randn(1, 512, 8, 8, dtype=dtype), []
    for _ in range(layers):
        conv = torch_ws.WSConv2d(
            512,
            512,
            3,
            padding=1,
            padding_mode="circular",
            bias=False,
            formula=formula,
            dtype=dtype,
        )
        x = conv(x.relu() if stds else x)
        stds.append(x.float().std().item())
        if normalized:
            x = torch.nn.functional.group_norm(x, 32)
    return stds


def test_unscaled_weights_multiply_by_the_root_of_the_fan_in():
    # 32,768 outputs, 2.4 M weights: the sampling error of these is far below 5 %
    first, second = output_stds("paper", torch.bfloat16, layers=2)
    assert first == pytest.approx(FAN_IN**0.5, rel=0.05)
    assert second == pytest.approx(first * FAN_IN**0.5 / RELU, rel=0.05)


def test_float16_overflows_in_the_third_layer_and_not_with_the_fan_in_scale():
    stds = output_stds("paper", torch.float16, layers=3)
    assert [math.isfinite(std) for std in stds] == [True, True, False]
    scaled = output_stds(SCALED, torch.float16)
    assert scaled == pytest.approx([RELU] * 4, rel=0.05)


def test_a_normalization_between_the_layers_is_enough():
    stds = output_stds("paper", torch.float16, normalized=True)
    assert stds[0] == pytest.approx(FAN_IN**0.5, rel=0.05)
    assert stds[1:] == pytest.approx([FAN_IN**0.5 / RELU] * 3, rel=0.05)


def test_the_fan_in_scale_of_the_default_formula():
    weight = torch.randn(8, FAN_IN)
    scaled = standardize(weight, formula=Formula(scale="fan_in"))
    torch.testing.assert_close(scaled * FAN_IN**0.5, standardize(weight))


def test_the_table_of_the_page():
    """docs/formulas.md, within 3 %: sums in 16 bits differ between machines."""
    columns = {
        "paper, float16": output_stds("paper", torch.float16),
        "paper, bfloat16": output_stds("paper", torch.bfloat16),
        "nfnet with gamma, float16": output_stds(SCALED, torch.float16),
    }
    rows = table("behind layer")
    for heading, stds in columns.items():
        for row, std in zip(rows, stds, strict=True):
            if row[heading] == "overflow":
                assert not math.isfinite(std)
            else:
                assert float(row[heading].replace(",", "")) == pytest.approx(std, rel=0.03)


def test_float16_weights_keep_an_eps_that_float16_does_not_have():
    assert torch.tensor(1e-10, dtype=torch.float16) == 0
    weight = (torch.randn(4, 512, 3, 3) * 1e-4).half()
    assert not bit_pytorch(weight).isfinite().all()  # a variance of 1e-8 is 0 there too
    out = standardize(weight, formula="bit")
    assert_close(out, standardize(weight.double(), formula="bit"), peer_error=0)


def test_lucidrains_under_autocast_is_0_28_times_itself():
    weight = torch.nn.init.kaiming_uniform_(torch.empty(512, 512, 3, 3), a=5**0.5)
    ratio = lucidrains(weight, eps=1e-3).norm() / lucidrains(weight).norm()
    assert ratio == pytest.approx(0.28, abs=0.005)
