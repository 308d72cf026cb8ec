"""torch_ws.inspect: statistics against float64, deviations against the ops, and what is read."""

import math
import subprocess
import sys
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch_ws
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch_ws import formulas
from torch_ws.inspect import channel_statistics
from torch_ws.inspect import layers as inspect_layers
from torch_ws.inspect import plot as inspect_plot
from torch_ws.inspect.read import Stored

safetensors = pytest.importorskip("safetensors.torch")

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def rows_of(weight, channel_dim=0):
    """In float64, as NumPy's."""
    return weight.detach().double().movedim(channel_dim, 0).flatten(1).numpy()


def layer_of(weight, channel_dim=0, dead=1e-4):
    statistics = channel_statistics(weight, channel_dim=channel_dim)
    return inspect_layers.Layer("w", Stored.of_tensor(weight), channel_dim, statistics, dead)


# --- statistics


@settings(max_examples=80, deadline=None)
@given(
    shape=st.lists(st.integers(1, 7), min_size=2, max_size=4),
    dim=st.integers(-4, 3),
    dtype=st.sampled_from(DTYPES),
    # a channel at a time, blocks that end within the weight, and the weight at once
    chunk=st.integers(1, 40) | st.just(10_000),
    # nearly constant channels, where a one-pass variance has no digit left
    offset=st.sampled_from([0.0, 1.0, 1e4]),
    transpose=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_statistics_are_numpys(shape, dim, dtype, chunk, offset, transpose, seed):
    dim = dim % len(shape)
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + offset
    weight = values.to(dtype)
    if transpose:  # strides that are not those of the shape
        weight = weight.transpose(0, -1)
    with patch.object(inspect_layers, "CHUNK", chunk):
        found = channel_statistics(weight, channel_dim=dim)
    rows = rows_of(weight, dim)
    tolerance = {"rtol": 1e-12, "atol": 1e-14 * max(1.0, offset)}
    np.testing.assert_allclose(found.mean.numpy(), rows.mean(1), **tolerance)
    np.testing.assert_allclose(found.std.numpy(), rows.std(1), **tolerance)
    assert found.nan.tolist() == found.inf.tolist() == [0] * len(rows)


def test_statistics_where_the_mean_is_large():
    """std 1 on 1e9: E[x^2] - E[x]^2 would be wrong in every digit, in float64 too."""
    weight = torch.tensor([[1e9 - 1, 1e9 + 1] * 50], dtype=torch.float64)
    found = channel_statistics(weight)
    assert (found.mean.item(), found.std.item()) == (1e9, 1.0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_constant_channels_have_no_deviation_at_all(dtype):
    weight = torch.full((3, 7), 0.1).to(dtype)  # 0.1 * 7 / 7 is rounded on the way
    assert channel_statistics(weight).std.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("chunk", [1, 10_000])
def test_nan_and_inf_stay_in_their_channels(chunk):
    weight = torch.randn(5, 4, 3)
    clean = channel_statistics(weight)
    weight[1, 0, 0], weight[1, 2, 1], weight[3, 1, 2] = math.nan, math.inf, -math.inf
    with patch.object(inspect_layers, "CHUNK", chunk):
        found = channel_statistics(weight)
    assert found.nan.tolist() == [0, 1, 0, 0, 0]
    assert found.inf.tolist() == [0, 1, 0, 1, 0]
    assert found.std.isnan().tolist() == [False, True, False, True, False]
    assert torch.equal(found.std[[0, 2, 4]], clean.std[[0, 2, 4]])


def test_the_weight_is_not_changed():
    weight = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)  # no conversion, no copy
    before = weight.detach().clone()
    assert not channel_statistics(weight).std.requires_grad
    assert torch.equal(weight, before)


@pytest.mark.parametrize(
    ("weight", "error", "message"),
    [
        ([1.0], TypeError, "must be a torch.Tensor, got list"),
        (torch.zeros(3), ValueError, "at least 2 dimensions"),
        (torch.zeros(3, 3, dtype=torch.int8), ValueError, "must have dtype float32"),
        (torch.zeros(3, 3).to_sparse(), NotImplementedError, "must be a dense"),
        (torch.zeros(3, 0), ValueError, "weight must not be empty, got shape (3, 0)"),
    ],
)
def test_refused_weights(weight, error, message):
    with pytest.raises(error) as raised:
        channel_statistics(weight)
    assert message in str(raised.value)


def test_channel_dim_out_of_range():
    with pytest.raises(ValueError, match="channel_dim must be in"):
        channel_statistics(torch.zeros(3, 3), channel_dim=2)


# --- memory


class LargestAllocation(TorchDispatchMode):
    """The bytes of the largest memory that an operation made, the weight's own apart."""

    def __init__(self, weight):
        super().__init__()
        self.own, self.bytes = weight.untyped_storage().data_ptr(), 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        out = op(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.untyped_storage().data_ptr() != self.own:
            self.bytes = max(self.bytes, out.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("channel_dim", [0, 1])
@pytest.mark.parametrize("value", [1.0, math.nan])  # what is not finite is looked at once more
def test_no_copy_is_larger_than_a_chunk(channel_dim, value):
    weight = torch.full((100, 100, 9), value, dtype=torch.float64)
    with patch.object(inspect_layers, "CHUNK", 5000), LargestAllocation(weight) as largest:
        channel_statistics(weight, channel_dim=channel_dim)
    assert 0 < largest.bytes <= 5000 * 8 < weight.nbytes / 10


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_checkpoint_is_never_in_memory_as_a_whole(tmp_path):
    """In a process of its own: what others freed would hide what is taken here."""
    weights = {"a.weight": torch.randn(1024, 1024, 4, 4)}  # 64 MiB, 128 in float64
    safetensors.save_file(weights, tmp_path / "w.safetensors")
    torch.save(weights, tmp_path / "w.pt")
    script = """
import re, sys
from contextlib import ExitStack
from pathlib import Path
from torch_ws.inspect import layers as inspect_layers
from torch_ws.inspect.read import open_checkpoint

def anonymous():  # of which the mapped file is no part
    return int(re.search(r"RssAnon:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

for path in sys.argv[1:]:
    most = before = anonymous()
    def advance(count):
        global most
        most = max(most, anonymous())
    with ExitStack() as files:
        tensors = open_checkpoint(Path(path), None, files).tensors
        inspect_layers.read_layers(tensors, set(), 0.0, advance)
    print(most - before)
"""
    command = [sys.executable, "-c", script, tmp_path / "w.safetensors", tmp_path / "w.pt"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for grown in map(float, done.stdout.split()):
        assert 15 < grown < 40  # MiB: the scratch memory of 16 and little more


# --- layers and deviations


@pytest.mark.parametrize("name", formulas)
@pytest.mark.parametrize("offset", [0.0, 0.3])  # about the mean, and off it for weight_norm
def test_deviation_is_that_of_the_standardized_weight(name, offset):
    weight = (torch.randn(8, 6, 3) * torch.logspace(-4, 0, 8)[:, None, None]).double()
    weight += offset * weight.std((1, 2), keepdim=True)
    formula = formulas[name]
    scale = formula.arguments(18)[-1]
    std, mean = torch.std_mean(weight, (1, 2), correction=0, keepdim=True)
    exact = (weight - mean) / std
    w_hat = torch_ws.standardize(weight, formula=formula) / scale
    expected = (w_hat - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)
    found = layer_of(weight, dead=0.0).deviations(formula)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-13)


def test_deviations_of_the_documented_shapes():
    """The sizes that a survey of implementations found, on torch.nn's default weights."""
    wide, depthwise = nn.Conv2d(512, 512, 3).weight, nn.Conv2d(64, 64, 3, groups=64).weight
    found = {name: layer_of(wide).worst_deviation(formulas[name]) for name in formulas}
    assert found["nnabla"] == pytest.approx(6.4e-2, rel=0.1)
    assert found["timm"] == pytest.approx(7e-3, rel=0.1)
    assert found["qiao"] == pytest.approx(1.3e-3, rel=0.1)
    assert found["bit"] < 1e-6
    assert layer_of(depthwise).worst_deviation(formulas["qiao"]) == pytest.approx(5.7e-2, rel=0.1)


def test_undefined_deviation():
    layer = layer_of(torch.randn(4, 1, 1))
    assert layer.denominators(formulas["qiao"]) is None  # a sample variance of one value
    assert math.isnan(layer.worst_deviation(formulas["qiao"]))
    assert math.isnan(layer.worst_deviation(formulas["paper"]))  # no channel is alive


def test_a_layers_numbers():
    weight = torch.randn(6, 5, 2) + 0.5
    weight[1] = 3.0  # constant
    weight[2] *= 1e-6  # dead
    weight[4, 0, 0] = math.nan
    layer = layer_of(weight)
    assert layer.constant.nonzero().flatten().tolist() == [1]
    assert layer.dead.nonzero().flatten().tolist() == [1, 2]
    assert layer.broken.nonzero().flatten().tolist() == [4]
    assert (layer.channels, layer.fan_in, layer.elements, layer.nan, layer.inf) == (6, 10, 60, 1, 0)
    rows = rows_of(weight)
    finite, living = rows[[0, 1, 2, 3, 5]], rows[[0, 3, 5]]
    assert layer.mean == pytest.approx(finite.mean(), rel=1e-12)
    assert layer.std == pytest.approx(finite.std(), rel=1e-12)
    assert layer.condition == pytest.approx(living.std(1).max() / living.std(1).min(), rel=1e-12)
    np.testing.assert_allclose(layer.means.numpy(), living.mean(1), rtol=1e-12)
    np.testing.assert_allclose(layer.stds.numpy(), living.std(1), rtol=1e-12)


def test_dead_is_relative_to_the_largest_channel():
    weight = torch.randn(4, 100)
    weight /= weight.std(1, correction=0, keepdim=True)
    weight *= torch.tensor([1e-20, 1e-18, 0.99e-22, 1e-19])[:, None]  # tiny, yet one scale
    assert layer_of(weight, dead=1e-4).dead.tolist() == [False, False, True, False]
    assert not layer_of(weight, dead=0.0).dead.any()


def test_nothing_finite():
    layer = layer_of(torch.full((3, 4), math.nan))
    assert layer.broken.all() and not layer.dead.any()
    assert math.isnan(layer.mean) and math.isnan(layer.std) and math.isnan(layer.condition)


# --- the picture's data


@pytest.mark.parametrize("name", ["paper", "nfnet", "weight_norm"])  # unit, fan-in, not centered
def test_ranges_are_those_of_the_standardized_weight(name):
    weight = torch.randn(9, 4, 5, dtype=torch.float64) * torch.rand(9, 1, 1) + 0.1
    layer = layer_of(weight)
    before, after = rows_of(weight), rows_of(torch_ws.standardize(weight, formula=name))
    stds = inspect_plot.std_ranges(layer, formulas[name])
    for rows, found in zip((before, after), stds, strict=True):
        std = rows.std(1)
        np.testing.assert_allclose(found, (std.min(), np.median(std), std.max()), rtol=1e-12)
    means = inspect_plot.mean_ranges(layer, formulas[name])
    for rows, found in zip((before, after), means, strict=True):
        ratio = rows.mean(1) / rows.std(1)
        expected = (ratio.min(), np.median(ratio), ratio.max())
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_labels():
    layer = layer_of(torch.cat([torch.randn(3, 5), torch.zeros(2, 5)]))
    layer.name = "blocks.0.conv.weight"
    assert inspect_plot.label(layer) == "blocks.0.conv, 2 dead"
    layer.name = "x" * 50 + ".conv.weight"
    assert inspect_plot.label(layer) == "…" + "x" * 38 + ".conv, 2 dead"
