"""BatchChannelNorm1d, 2d and 3d against their mathematics, group by group in float64."""

import copy

import batch_channel_cases as judge
import pytest
import torch
from batch_channel_cases import varied
from torch import nn
from torch_ws import BatchChannelNorm1d, BatchChannelNorm2d, BatchChannelNorm3d

CHANNELS, GROUPS = 6, 3
# every class, with every number of dimensions that it takes
LAYERS = {
    "(N, C)": (BatchChannelNorm1d, (5, CHANNELS)),
    "(N, C, L)": (BatchChannelNorm1d, (2, CHANNELS, 7)),
    "(N, C, H, W)": (BatchChannelNorm2d, (2, CHANNELS, 3, 4)),
    "(N, C, D, H, W)": (BatchChannelNorm3d, (2, CHANNELS, 2, 3, 2)),
    "one image": (BatchChannelNorm2d, (1, CHANNELS, 3, 4)),
    "one value a channel": (BatchChannelNorm2d, (3, CHANNELS, 1, 1)),
}
OPTIONS = {
    "batch": {},
    "channel_affine": {"channel_affine": True},
    "no affine": {"affine": False},
    "cumulative": {"momentum": None},
    "no running stats": {"track_running_stats": False},
    "estimated": {"estimated": True, "momentum": 0.3},
    "estimated, channel_affine": {"estimated": True, "channel_affine": True, "eps": 0.1},
    "estimated, no affine": {"estimated": True, "affine": False},
}


def make(cls=BatchChannelNorm2d, dtype=torch.float64, groups=GROUPS, **options):
    return varied(cls(CHANNELS, groups, dtype=dtype, **options))


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", LAYERS)
def test_training_and_evaluation(name, options):
    cls, shape = LAYERS[name]
    options = OPTIONS[options]
    made = make(cls, **options)
    theirs = {key: value.detach().clone() for key, value in made.state_dict().items()}
    for key, _ in made.named_parameters():
        theirs[key].requires_grad_()
    mean = theirs.get("bn.running_mean", torch.zeros(CHANNELS, dtype=torch.float64))
    var = theirs.get("bn.running_var", torch.ones(CHANNELS, dtype=torch.float64))
    affine = (theirs.get("bn.weight"), theirs.get("bn.bias"))
    momentum, eps = options.get("momentum", 0.1), options.get("eps", 1e-5)
    for step in range(4):  # the last one in evaluation
        made.train(step < 3)
        ours = (2 * torch.randn(shape, dtype=torch.float64) + 1).requires_grad_()
        x = ours.detach().clone().requires_grad_()
        if not options.get("estimated"):
            rate = 1 / (step + 1) if momentum is None else momentum
            y, *moved = judge.batch(x, *affine, mean, var, momentum=rate, eps=eps)
            if not made.training and options.get("track_running_stats", True):
                y, *moved = judge.estimated(x, *affine, mean, var, rate=0, eps=eps)
        else:
            rate = momentum if made.training else 0
            y, *moved = judge.estimated(x, *affine, mean, var, rate=rate, eps=eps)
        mean, var = moved
        expected = judge.groups(y, GROUPS, theirs.get("weight"), theirs.get("bias"), eps)
        out = made(ours)
        grad = torch.randn_like(out)
        out.backward(grad)
        expected.backward(grad)
        torch.testing.assert_close(out, expected)
        torch.testing.assert_close(ours.grad, x.grad)
    if made.bn.running_mean is not None:
        torch.testing.assert_close(made.bn.running_mean, mean)
        torch.testing.assert_close(made.bn.running_var, var)
    for key, parameter in made.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[key].grad)


def test_equals_torch_nn_one_after_the_other():
    made = make(channel_affine=True)
    batch_norm = nn.BatchNorm2d(CHANNELS).double()
    group_norm = nn.GroupNorm(GROUPS, CHANNELS).double()
    batch_norm.load_state_dict(made.bn.state_dict())
    group_norm.load_state_dict({"weight": made.weight.detach(), "bias": made.bias.detach()})
    x = torch.randn(2, CHANNELS, 3, 3, dtype=torch.float64)
    assert torch.equal(made(x), group_norm(batch_norm(x)))


@pytest.mark.parametrize("estimated", [False, True])
def test_one_value_a_group(estimated):
    """Batches of one with a single value a group are their own mean: what is left is the bias."""
    made = make(groups=CHANNELS, estimated=estimated)
    x = torch.randn(1, CHANNELS, 1, 1, dtype=torch.float64)
    if not estimated:
        with pytest.raises(ValueError, match="more than 1 value per channel when training"):
            made(x)
        made.eval()
    torch.testing.assert_close(made(x).flatten(), made.bias.detach(), check_dtype=False)


@pytest.mark.parametrize("estimated", [False, True])
def test_an_empty_batch(estimated):
    made = make(estimated=estimated)
    mean = made.bn.running_mean.clone()
    x = torch.empty(0, CHANNELS, 3, 3, dtype=torch.float64, requires_grad=True)
    out = made(x)
    out.sum().backward()
    assert out.shape == x.grad.shape == x.shape
    assert torch.equal(made.bn.running_mean, mean)
    assert made.weight.grad.eq(0).all()


# training: of estimates at rate 0, which do not depend on the input
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", ["batch", "channel_affine", "estimated"])
def test_derivatives(options, training):
    made = make(**(OPTIONS[options] | {"momentum": 0.0})).train(training)
    x = torch.randn(2, CHANNELS, 2, 1, dtype=torch.float64, requires_grad=True)
    names, values = zip(*made.named_parameters(), strict=True)

    def call(x, *values):
        return torch.func.functional_call(made, dict(zip(names, values, strict=True)), (x,))

    torch.autograd.gradcheck(call, (x, *values))
    torch.autograd.gradgradcheck(call, (x, *values))


@pytest.mark.parametrize("options", ["batch", "channel_affine", "estimated", "no affine"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [True, False])
def test_half_inputs(autocast, dtype, options):
    """Of a float32 layer: as in float32, up to the rounding of the steps' results."""
    made = make(dtype=torch.float32, **OPTIONS[options])
    precise = copy.deepcopy(made).double()
    x = torch.randn(2, CHANNELS, 8, 8, dtype=dtype)
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        out = made(x)
    expected = precise(x.double())
    assert out.dtype == dtype
    error = (out.double() - expected).abs().max() / expected.abs().max()
    assert error < 4 * torch.finfo(dtype).eps
    assert made.bn.running_var.dtype == torch.float32
    torch.testing.assert_close(
        made.bn.running_var.double(), precise.bn.running_var, rtol=1e-5, atol=0
    )


def test_parameters_in_the_dtype_of_other_devices_kernels():
    """Which want one dtype; autocast brings its own."""
    made = make(dtype=torch.float32)
    half = torch.empty(2, CHANNELS, 1, 1, dtype=torch.float16, device="meta")
    assert {v.dtype for v in made._affine_for(half)} == {torch.float16}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert {v.dtype for v in made._affine_for(half)} == {torch.float32}
    assert {v.dtype for v in made._affine_for(half.new_empty(2, device="cpu"))} == {torch.float32}


@pytest.mark.parametrize("estimated", [False, True])
def test_meta_device(estimated):
    made = make(dtype=torch.float32, estimated=estimated).to("meta")
    for dtype in (torch.float32, torch.float16):
        x = torch.empty(2, CHANNELS, 3, 4, dtype=dtype, device="meta")
        out = made(x)
        assert out.is_meta and out.shape == x.shape and out.dtype == dtype


@pytest.mark.parametrize("lost", [False, True])  # True: as CUDA's group normalization returns them
@pytest.mark.parametrize(
    ("name", "last"),
    [("(N, C, H, W)", torch.channels_last), ("(N, C, D, H, W)", torch.channels_last_3d)],
)
def test_memory_format_stays(monkeypatch, name, last, lost):
    cls, shape = LAYERS[name]
    made, x = make(cls, estimated=True, momentum=0.0), torch.randn(shape, dtype=torch.float64)
    expected = made(x)
    if lost:
        group_norm = torch.group_norm
        monkeypatch.setattr(torch, "group_norm", lambda x, *a: group_norm(x.contiguous(), *a))
    for memory_format in (torch.contiguous_format, last):
        y = x.clone(memory_format=memory_format).requires_grad_()
        out = made(y)
        assert out.stride() == y.stride()
        torch.testing.assert_close(out, expected)
        out.sum().backward()
        assert y.grad.stride() == y.stride()


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"num_groups": 4}, ValueError, r"num_groups must divide num_channels \(6\), got 4"),
        ({"num_groups": 0}, ValueError, "num_groups must be positive, got 0"),
        ({"num_groups": True}, TypeError, "num_groups must be an int, got bool"),
        ({"num_channels": "6"}, TypeError, "num_channels must be an int, got str"),
        # flags that are none: 0.5 would be taken for True
        ({"affine": 0.5}, TypeError, "affine must be a bool, got float"),
        ({"track_running_stats": 1}, TypeError, "track_running_stats must be a bool, got int"),
        ({"channel_affine": "no"}, TypeError, "channel_affine must be a bool, got str"),
        ({"estimated": None}, TypeError, "estimated must be a bool, got NoneType"),
        ({"momentum": True}, TypeError, "momentum must be a float, got bool"),
        ({"momentum": "0.1", "estimated": True}, TypeError, "momentum must be a float, got str"),
        ({"eps": float("nan")}, ValueError, "eps must be finite and not negative, got nan"),
        (
            {"estimated": True, "momentum": None},
            ValueError,
            r"momentum must be in \[0, 1\] with .*None",
        ),
        ({"estimated": True, "momentum": 2.0}, ValueError, r"momentum must be in \[0, 1\] .*2.0"),
        (
            {"estimated": True, "track_running_stats": False},
            ValueError,
            "track_running_stats must be True with estimated=True, got False",
        ),
    ],
)
def test_wrong_arguments(arguments, kind, message):
    with pytest.raises(kind, match=message):
        BatchChannelNorm2d(**{"num_channels": CHANNELS, "num_groups": GROUPS, **arguments})


@pytest.mark.parametrize(
    ("cls", "shape", "message"),
    [
        (BatchChannelNorm1d, (1, 6, 1, 1), r"\(N, C\) or \(N, C, L\), got \(1, 6, 1, 1\)"),
        (BatchChannelNorm2d, (6, 3, 3), r"\(N, C, H, W\), got \(6, 3, 3\)"),
        (BatchChannelNorm3d, (2, 6, 3, 3), r"\(N, C, D, H, W\), got \(2, 6, 3, 3\)"),
        (BatchChannelNorm2d, (2, 5, 3, 3), r"\(N, C, H, W\) with C = 6, got \(2, 5, 3, 3\)"),
    ],
)
def test_wrong_inputs_change_nothing(cls, shape, message):
    made = make(cls)
    before = copy.deepcopy(made.state_dict())
    with pytest.raises(ValueError, match=f"input must have shape {message}"):
        made(torch.randn(shape, dtype=torch.float64))
    torch.testing.assert_close(made.state_dict(), before, rtol=0, atol=0)
