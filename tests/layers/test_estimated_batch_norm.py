"""EstimatedBatchNorm against the authors' mathematics, value by value in float64."""

import copy
import math

import batch_channel_cases as judge
import pytest
import torch
from batch_channel_cases import varied
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_ws import EstimatedBatchNorm

# (N, C, ...): every number of dimensions; a batch of one; one value a channel
SHAPES = [(5, 3), (2, 3, 7), (2, 3, 4, 5), (1, 3, 4, 5), (1, 3, 1, 1), (2, 3, 2, 3, 2)]
RATES = (0.1, 0.7, 0.0, 1.0)  # a step each: slow, fast, not at all, and nothing but the batch


def layer(channels=3, dtype=torch.float64, **options):
    return varied(EstimatedBatchNorm(channels, dtype=dtype, **options))


def state(made):
    """(weight, bias, running_mean, running_var) in float64, for the judge."""
    names = ("weight", "bias", "running_mean", "running_var")
    tensors = [getattr(made, name) for name in names]
    return [
        t if t is None else t.detach().double().requires_grad_(i < 2) for i, t in enumerate(tensors)
    ]


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_training_and_evaluation(shape, affine):
    made = layer(affine=affine)
    weight, bias, mean, var = state(made)
    for step, rate in enumerate((*RATES, "eval")):
        made.train(rate != "eval")
        if made.training:
            made.rate.fill_(rate)
        ours = (3 * torch.randn(shape, dtype=torch.float64) + 1).requires_grad_()
        theirs = ours.detach().clone().requires_grad_()
        rate = rate if made.training else 0
        expected, mean, var = judge.estimated(theirs, weight, bias, mean, var, rate=rate)
        out = made(ours)
        grad = torch.randn_like(out)
        out.backward(grad)
        expected.backward(grad)
        torch.testing.assert_close(out, expected)
        torch.testing.assert_close(made.running_mean, mean)
        torch.testing.assert_close(made.running_var, var)
        torch.testing.assert_close(ours.grad, theirs.grad)
        assert made.num_batches_tracked == min(step + 1, len(RATES))
    if affine:
        torch.testing.assert_close(made.weight.grad, weight.grad)
        torch.testing.assert_close(made.bias.grad, bias.grad)


def test_by_hand():
    """Squares about the old mean, the update before the normalization, constants to autograd."""
    made = EstimatedBatchNorm(1, eps=0.5, rate=0.5)
    x = torch.tensor([[2.0], [4.0]], requires_grad=True)
    out = made(x)
    # mean 0 -> 1.5; variance 1 -> (1 + (4 + 16) / 2) / 2 = 5.5
    torch.testing.assert_close(made.running_mean, torch.tensor([1.5]))
    torch.testing.assert_close(made.running_var, torch.tensor([5.5]))
    torch.testing.assert_close(out, torch.tensor([[0.5], [2.5]]) / math.sqrt(6))
    out.sum().backward()  # by the batch's own statistics, these gradients would be 0
    torch.testing.assert_close(x.grad, torch.full((2, 1), 1 / math.sqrt(6)))


def test_several_passes_before_backward():
    """Each pass's gradients are those of the estimates that it used."""
    made, inputs = layer(), torch.randn(3, 2, 3, 4, dtype=torch.float64)
    weight, bias, mean, var = state(made)
    total = expected = 0
    for x in inputs:
        out, mean, var = judge.estimated(x, weight, bias, mean, var, rate=0.1)
        expected = expected + out.square().sum()
        total = total + made(x).square().sum()
    total.backward()
    expected.backward()
    torch.testing.assert_close(made.weight.grad, weight.grad)
    torch.testing.assert_close(made.bias.grad, bias.grad)


def test_a_network_calls_it_twice():
    """The input's gradient, too, through a layer whose estimates have moved in between."""
    made, x = layer(), torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    weight, bias, mean, var = state(made)
    twin = x.detach().clone().requires_grad_()
    once, mean, var = judge.estimated(twin, weight, bias, mean, var, rate=0.1)
    judge.estimated(once, weight, bias, mean, var, rate=0.1)[0].pow(3).sum().backward()
    made(made(x)).pow(3).sum().backward()
    torch.testing.assert_close(x.grad, twin.grad)


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 4), min_size=2, max_size=5),
    order=st.randoms(use_true_random=False),
    step=st.integers(1, 2),
    rate=st.floats(0, 1),
    seed=st.integers(0, 999),
)
def test_any_strides(sizes, order, step, rate, seed):
    """Of every layout: dimensions in any order in memory, and with gaps."""
    torch.manual_seed(seed)
    axes = list(range(len(sizes)))
    order.shuffle(axes)
    stored = torch.randn([sizes[a] * step for a in axes], dtype=torch.float64)
    x = stored.permute([axes.index(i) for i in range(len(sizes))])
    x = x[tuple(slice(None, None, step) for _ in sizes)]
    made = layer(sizes[1], rate=rate)
    expected, mean, var = judge.estimated(x, *state(made), rate=rate)
    torch.testing.assert_close(made(x), expected)
    torch.testing.assert_close(made.running_mean, mean)
    torch.testing.assert_close(made.running_var, var)


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs_have_float32_statistics(dtype, autocast):
    """To float32's precision, far from 0, where a half mean would have 3 digits."""
    made = layer(dtype=torch.float32)
    x = (50 + torch.randn(4, 3, 16, 16)).to(dtype)
    expected, mean, var = judge.estimated(x.double(), *state(made), rate=0.1)
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        out = made(x)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, rtol=1e-2, atol=1e-2)
    for found, wanted in ((made.running_mean, mean), (made.running_var, var)):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=1e-6)


def test_a_layer_of_bfloat16():
    """Its state is bfloat16: computed in float32 and rounded once."""
    made = layer(dtype=torch.bfloat16)
    x = torch.randn(4, 3, 5).bfloat16()
    weight, bias, mean, var = state(made)
    _, mean, var = judge.estimated(x.double(), weight, bias, mean, var, rate=made.rate.double())
    out = made(x)
    assert torch.equal(made.running_mean, mean.bfloat16())
    assert torch.equal(made.running_var, var.bfloat16())
    assert torch.equal(out, made.eval()(x))  # what normalizes is what is kept


def test_an_empty_batch_changes_nothing():
    made = layer()
    before = copy.deepcopy(made.state_dict())
    x = torch.empty(0, 3, 4, dtype=torch.float64, requires_grad=True)
    out = made(x)
    out.sum().backward()
    assert out.shape == x.grad.shape == (0, 3, 4)
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())
    assert made.weight.grad.eq(0).all()


# evaluation; and training, whose estimates at rate 0 do not depend on the input
@pytest.mark.parametrize("training", [False, True])
def test_derivatives(training):
    made = layer(rate=0.0).train(training)
    x = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)

    def call(x, weight, bias):
        return torch.func.functional_call(made, {"weight": weight, "bias": bias}, (x,))

    inputs = (x, made.weight, made.bias)
    torch.autograd.gradcheck(call, inputs)
    torch.autograd.gradgradcheck(call, inputs)


def test_strides_of_channels_last_stay():
    made = layer(4)
    for shape, last in (
        ((2, 4, 3, 3), torch.channels_last),
        ((2, 4, 3, 3, 3), torch.channels_last_3d),
    ):
        x = torch.randn(shape, dtype=torch.float64).to(memory_format=last).requires_grad_()
        out = made(x)
        out.sum().backward()
        assert out.stride() == x.grad.stride() == x.stride()


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"num_channels": 3.0}, TypeError, "num_channels must be an int, got float"),
        ({"num_channels": 0}, ValueError, "num_channels must be positive, got 0"),
        ({"eps": "1"}, TypeError, "eps must be a float, got str"),
        ({"eps": True}, TypeError, "eps must be a float, got bool"),  # an int to Python
        ({"eps": -1.0}, ValueError, "eps must be finite and not negative, got -1.0"),
        ({"rate": None}, TypeError, "rate must be a float, got NoneType"),
        ({"rate": True}, TypeError, "rate must be a float, got bool"),
        ({"affine": 0.5}, TypeError, "affine must be a bool, got float"),
        ({"affine": "no"}, TypeError, "affine must be a bool, got str"),
        ({"rate": 1.5}, ValueError, r"rate must be in \[0, 1\], got 1.5"),
        ({"rate": math.nan}, ValueError, r"rate must be in \[0, 1\], got nan"),
    ],
)
def test_wrong_arguments(arguments, kind, message):
    with pytest.raises(kind, match=message):
        EstimatedBatchNorm(**{"num_channels": 3, **arguments})


@pytest.mark.parametrize(
    ("x", "kind", "message"),
    [
        ([1.0], TypeError, "input must be a torch.Tensor, got list"),
        (torch.ones(3), ValueError, r"input must have shape \(N, C, ...\), got \(3,\)"),
        (torch.ones(2, 4), ValueError, r"\(N, C, ...\) with C = 3, got \(2, 4\)"),
        (torch.ones(2, 3).double(), ValueError, "dtype torch.float32, .*; got torch.float64"),
        (torch.ones(2, 3).long(), ValueError, "got torch.int64"),
        # not refused by the layer but by PyTorch, before the estimates have moved
        (torch.ones(2, 3, device="meta"), RuntimeError, "meta"),
    ],
)
def test_wrong_inputs_change_nothing(x, kind, message):
    made = EstimatedBatchNorm(3)
    before = copy.deepcopy(made.state_dict())
    with pytest.raises(kind, match=message):
        made(x)
    torch.testing.assert_close(made.state_dict(), before, rtol=0, atol=0)
