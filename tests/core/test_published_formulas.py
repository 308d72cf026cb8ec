"""Every name in torch_ws.formulas against what its sources compute (published.py), in float64.

The weights are chosen so that the names differ: their channels' standard deviations run from 1e-5
to 0.3, across the range in which every published eps is of the variance's size.
"""

import math
from dataclasses import replace
from itertools import combinations

import pytest
import torch
import torch_ws
from accuracy import relative_error
from published import PUBLISHED, huang_pytorch, lucidrains
from torch_ws import Formula, formulas, standardize

# (shape, channel_dim) of a weight; N: the elements of a channel, over which things are summed
WEIGHTS = {
    "conv1d": ((16, 5, 3), 0),
    "conv2d": ((16, 4, 3, 3), 0),
    "conv2d grouped": ((16, 2, 3, 3), 0),
    "conv2d depthwise": ((16, 1, 3, 3), 0),
    "conv2d 1x1": ((16, 24, 1, 1), 0),
    "conv3d": ((16, 2, 2, 3, 3), 0),
    "conv_transpose2d": ((5, 16, 3, 3), 1),
    "linear": ((16, 40), 0),
}

# (class, arguments, options) of layers with 16 output channels
LAYERS = {
    "WSConv1d": (torch_ws.WSConv1d, (5, 16, 3), {}),
    "WSConv2d": (torch_ws.WSConv2d, (4, 16, 3), {}),
    "WSConv2d grouped": (torch_ws.WSConv2d, (4, 16, 3), {"groups": 2}),
    "WSConv2d depthwise": (torch_ws.WSConv2d, (16, 16, 3), {"groups": 16}),
    "WSConv3d": (torch_ws.WSConv3d, (2, 16, (2, 3, 3)), {}),
    "WSConvTranspose1d": (torch_ws.WSConvTranspose1d, (5, 16, 3), {}),
    "WSConvTranspose2d": (torch_ws.WSConvTranspose2d, (5, 16, 3), {}),
    "WSConvTranspose2d grouped": (torch_ws.WSConvTranspose2d, (6, 16, 3), {"groups": 2}),
    "WSConvTranspose3d": (torch_ws.WSConvTranspose3d, (2, 16, (2, 3, 3)), {}),
    "WSLinear": (torch_ws.WSLinear, (40, 16), {}),
}

# The same by definition: mmcv's ConvAWS2d is the authors' BCN formula with a gain and a shift.
SAME = {frozenset(("qiao_bcn", "mmcv_aws"))}

WITH_GAMMA = ("timm_scaled", "timm_nfnet", "keras_nfnet")

# A shape's path does not depend on the formula: every source takes one shape, and every shape these
# two, one with a gain and a shift, and one whose scale and eps depend on N.
FOR_EVERY_SHAPE = ("mmcv_aws-mmcv_conv_aws", "nfnet-deepmind")


def on_shapes(names, first):
    """Parametrizes a test: every source on the first shape, the others as above."""
    cases = [(source, first) for source in PUBLISHED]
    cases += [(s, n) for s in PUBLISHED if str(s) in FOR_EVERY_SHAPE for n in names if n != first]
    return pytest.mark.parametrize("source, name", cases, ids=str)


STDS = torch.logspace(-5, -0.5, 16, dtype=torch.float64)


def make_weight(shape, channel_dim=0):
    """Channels of the standard deviations above (about), with means of a third of them."""
    weight = torch.randn(shape, dtype=torch.float64) + 0.3
    stds = STDS[torch.randperm(16)]
    return weight * stds.view([-1 if d == channel_dim else 1 for d in range(len(shape))])


def make_vectors(takes):
    vectors = {"gain": torch.rand(16).double() + 0.5, "shift": torch.randn(16).double()}
    return {name: vectors[name].requires_grad_() for name in takes}


def tolerance(cols):
    """What two computations in float64 may differ by, relative to a channel's largest value.

    A sum of N terms is off by at most N * 2^-53 times the sum of their magnitudes. A result rests
    on three sums (the mean, the variance and, in backward, the products with the gradient), in each
    of two computations: six of these. The rest of the 16 is for subtractions, which leave less than
    they take: w - mean, and the gradient less its own mean and its part along w.
    """
    return 16 * cols * 2.0**-53


def difference(actual, expected, channel_dim=0):
    """The largest over the channels, each relative to its own largest value."""
    actual, expected = (t.detach().movedim(channel_dim, 0).flatten(1) for t in (actual, expected))
    return ((actual - expected).abs().amax(1) / expected.abs().amax(1)).max().item()


def check(actual, expected, cols, channel_dim=0):
    assert actual.dtype == torch.float64 and actual.shape == expected.shape
    assert difference(actual, expected, channel_dim) <= tolerance(cols)


def test_every_name_has_a_source():
    assert {source.formula for source in PUBLISHED} == set(formulas)


@on_shapes(WEIGHTS, "conv2d")
def test_function(source, name):
    shape, channel_dim = WEIGHTS[name]
    weight = make_weight(shape, channel_dim).requires_grad_()
    vectors, grad = make_vectors(source.takes), torch.randn(shape, dtype=torch.float64)
    inputs, cols = [weight, *vectors.values()], weight.numel() // 16

    expected = source.compute(weight.movedim(channel_dim, 0), **vectors).movedim(0, channel_dim)
    expected_grads = torch.autograd.grad(expected, inputs, grad)
    actual = standardize(weight, **vectors, formula=source.formula, channel_dim=channel_dim)
    actual_grads = torch.autograd.grad(actual, inputs, grad)

    check(actual, expected, cols, channel_dim)
    check(actual_grads[0], expected_grads[0], cols, channel_dim)
    for a, e in zip(actual_grads[1:], expected_grads[1:], strict=True):
        # one number a channel, a sum of N products that may cancel: judged as a vector
        assert relative_error(a, e) <= tolerance(cols)


def output_channels(weight, layer):
    """The weight as (C, ...): output channel after output channel, whatever the layer."""
    if "Transpose" not in type(layer).__name__:
        return weight
    inputs = layer.in_channels // layer.groups
    return torch.stack(
        [
            weight[group * inputs : (group + 1) * inputs, o]
            for group in range(layer.groups)
            for o in range(weight.shape[1])
        ]
    )


@on_shapes(LAYERS, "WSConv2d")
def test_layer(source, name):
    cls, arguments, options = LAYERS[name]
    asked = {vector: True for vector in source.takes}
    layer = cls(*arguments, **options, formula=source.formula, **asked, dtype=torch.float64)
    vectors = make_vectors(source.takes)
    rows = layer._to_rows(layer.weight)
    weight = layer._from_rows(make_weight(rows.shape, layer.channel_dim))
    layer.load_state_dict({"weight": weight, **vectors}, strict=False)

    plain = layer.weight.detach().clone().requires_grad_()
    rows = output_channels(plain, layer)
    expected = source.compute(rows, **vectors)
    actual = layer.standardized_weight()
    grad = torch.randn_like(actual)
    actual.backward(grad)
    expected.backward(output_channels(grad, layer))

    cols = plain.numel() // 16
    check(output_channels(actual, layer), expected, cols)
    check(output_channels(layer.weight.grad, layer), output_channels(plain.grad, layer), cols)
    for vector, value in vectors.items():
        assert relative_error(getattr(layer, vector).grad, value.grad) <= tolerance(cols)


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_weights_tell_the_names_apart(name):
    """Otherwise the tests above would prove one name by another's arithmetic."""
    shape, channel_dim = WEIGHTS[name]
    weight = make_weight(shape, channel_dim)
    for a, b in combinations(formulas, 2):
        one, other = (standardize(weight, formula=f, channel_dim=channel_dim) for f in (a, b))
        if {a, b} in SAME:
            assert torch.equal(one, other)
        else:
            assert difference(one, other, channel_dim) > 1e-3, (a, b)


@pytest.mark.parametrize(
    "source", [s for s in PUBLISHED if s.formula.startswith(("timm_s", "timm_n", "keras"))], ids=str
)
def test_gamma(source):
    """timm and keras_cv_attention_models take the gain of the activation that follows."""
    gamma = 1.7881293296813965  # SiLU's
    weight, vectors = make_weight((16, 4, 3, 3)), make_vectors(source.takes)
    formula = replace(formulas[source.formula], gamma=gamma)
    expected = source.compute(weight, **vectors, gamma=gamma)
    check(standardize(weight, **vectors, formula=formula), expected, 36)


def test_formulas_without_a_name():
    """docs/formulas.md gives them as expressions."""
    weight = make_weight((16, 4, 3, 3))
    in_float16 = Formula(eps=1e-3, eps_mode="var")
    check(standardize(weight, formula=in_float16), lucidrains(weight, eps=1e-3), 36)
    norm_and_eps = Formula(eps=1e-5 / math.sqrt(36), scale="fan_in", gamma=1.414)
    check(standardize(weight, formula=norm_and_eps), huang_pytorch(weight), 36)


# Initialized as torch.nn does it. In float32 the source's arithmetic has errors of its own.
FLOAT32 = {
    "stem": (64, 3, 7, 7),
    "conv2d": (64, 64, 3, 3),
    "depthwise": (64, 1, 3, 3),
    "linear": (64, 512),
}


def rms_error(actual, expected):
    """Relative, of all elements together: the largest of a few hundred is a matter of luck."""
    return ((actual.double() - expected).norm() / expected.norm()).item()


@on_shapes(FLOAT32, "conv2d")
def test_float32(source, name):
    """At most twice as far from the source in float64 as the source in float32, plus a rounding."""
    weight = torch.nn.init.kaiming_uniform_(torch.empty(FLOAT32[name]), a=5**0.5)
    inputs = {"weight": weight, **{vector: torch.rand(64) + 0.5 for vector in source.takes}}
    grad = torch.randn(weight.shape)

    def run(compute, dtype, **options):
        tensors = {k: tensor.to(dtype).requires_grad_() for k, tensor in inputs.items()}
        out = compute(**tensors, **options)
        return [out, *torch.autograd.grad(out, list(tensors.values()), grad.to(dtype))]

    actual = run(standardize, torch.float32, formula=source.formula)
    own, expected = run(source.compute, torch.float32), run(source.compute, torch.float64)
    for a, o, e in zip(actual, own, expected, strict=True):
        assert a.dtype == torch.float32
        assert rms_error(a, e) <= 2 * rms_error(o, e) + torch.finfo(a.dtype).eps
