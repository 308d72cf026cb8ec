"""Rows on their own: extreme and broken ones, and any number of threads."""

import pytest
import torch
from accuracy import relative_error
from optimizer_steps import (
    composed,
    fused,
    kernel_gradient,
    optimizer_for,
    parameters_of,
    standardized,
    states_of,
)
from torch_ws import Formula

NO_EPS = Formula(eps=0.0, eps_mode="var")


def written(optimizer, outs):
    return [t.detach() for t in (*parameters_of(optimizer), *states_of(optimizer), *outs)]


@pytest.mark.parametrize("rule", ["momentum", "amsgrad"])
@pytest.mark.parametrize("clip", [0.0, 0.1])  # its norms are of the row too
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["weight", "grad"])
def test_a_broken_row_stays_its_own(isa, where, broken, clip, rule):
    weight, grad = torch.randn(7, 147), torch.randn(7, 147)
    healthy = optimizer_for(rule, [weight.clone()])
    expected = written(healthy, fused(healthy, [grad], clip=clip))
    (weight if where == "weight" else grad)[3, 100] = broken
    optimizer = optimizer_for(rule, [weight])
    actual = written(optimizer, fused(optimizer, [grad], clip=clip))
    others = [0, 1, 2, 4, 5, 6]
    for a, e in zip(actual, expected, strict=True):
        assert torch.equal(a[others], e[others])
        assert not a[3].isfinite().any()


# Powers of ten of the weight's values and of the gradient's: their squares and products leave
# float32's range, and their quotients fit it but for one.
EXTREMES = [
    (-30, 0),
    (-22, -20),
    (-18, 0),
    (-2, -38),
    (-2, 30),
    (17, 0),
    (20, 0),
    (30, 37),
    (35, 0),
]


@pytest.mark.parametrize("formula", ["paper", NO_EPS, Formula(eps=1e-4, center=False)])
def test_rows_of_every_magnitude(isa, formula):
    powers = torch.tensor(EXTREMES, dtype=torch.float64)
    weight = (torch.randn(len(powers), 147) * 10 ** powers[:, :1]).float()
    grad = (torch.randn(len(powers), 147) * 10 ** powers[:, 1:]).float()
    optimizer, judge = (optimizer_for("momentum", [w.clone()]) for w in (weight, weight.double()))
    (out,) = fused(optimizer, [grad], formula)
    composed(judge, [grad], formula)
    (p,), (momentum,) = parameters_of(optimizer), states_of(optimizer)
    assert torch.equal(momentum, kernel_gradient(grad, weight, formula=formula))
    assert torch.equal(out, standardized(p, formula=formula))
    fits = states_of(judge)[0].abs().amax(1) < torch.finfo(torch.float32).max
    assert fits.sum() >= 6
    for ours, theirs in zip(p.detach()[fits], parameters_of(judge)[0].detach()[fits], strict=True):
        assert relative_error(ours, theirs) <= 1e-6


def test_constant_rows_and_gradients(isa):
    # no gradient at all, so that decay alone moves them, and they stay constant
    weight = torch.tensor([0.0, 0.1, 3e4])[:, None].repeat(1, 65)
    for grad in (torch.randn(3, 65), torch.full((3, 65), 0.3)):
        optimizer = optimizer_for("dampening", [weight.clone()])
        (out,) = fused(optimizer, [grad], NO_EPS)
        (p,) = parameters_of(optimizer)
        assert not out.any()
        assert relative_error(p.detach(), weight.double() * (1 - 0.05 * 0.02)) <= 1e-7


@pytest.mark.parametrize("channel_dim", [0, 1])  # 1: gathered
@pytest.mark.parametrize("threads", [2, 3, 7])
def test_bitwise_the_same_for_any_number_of_threads(isa, threads, channel_dim):
    # rows that no number of threads divides, and weights too small for a thread of their own
    shapes, before = [(97, 1000), (8, 8), (331, 40)], torch.get_num_threads()

    def two_steps(threads):
        torch.manual_seed(2)
        torch.set_num_threads(threads)
        optimizer = optimizer_for("adamw, all", [torch.randn(shape) for shape in shapes])
        for _ in range(2):
            grads = [torch.randn(shape) for shape in shapes]
            outs = fused(optimizer, grads, clip=0.1, channel_dim=channel_dim)
        return written(optimizer, outs)

    try:
        alone, again = two_steps(1), two_steps(threads)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(again, alone, strict=True))


@pytest.mark.parametrize("clip", [0.0, 0.1])
def test_one_broken_gradient_of_the_weight_itself(isa, clip):
    # without clipping it stays one element's; clipped, timm's norm is NaN, and so is the row
    weight, grad = torch.randn(7, 147), torch.randn(7, 147)
    grad[3, 100] = float("nan")
    optimizer = optimizer_for("momentum", [weight])
    (out,) = fused(optimizer, [grad], is_true=True, clip=clip)
    for t in written(optimizer, []):
        assert t.isnan().sum(1).tolist() == [0, 0, 0, 147 if clip else 1, 0, 0, 0]
    assert out.isnan().sum(1).tolist() == [0, 0, 0, 147, 0, 0, 0]
