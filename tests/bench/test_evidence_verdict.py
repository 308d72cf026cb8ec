"""The experiments' arithmetic: Student's quantiles, intervals, and what follows from them."""

import math
import statistics

import pytest

from bench.evidence.measures import ACCURACY, BEST_ACCURACY, LOSS, SPREAD, STEPS, Measure
from bench.evidence.verdict import judge, quantile

RATIO = Measure("beta", lambda runs: None, is_ratio=True)


@pytest.mark.parametrize(
    ("freedom", "expected"),  # of printed tables, for odd and even degrees of freedom
    [(1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (9, 2.26216), (30, 2.04227)],
)
def test_quantiles_of_students_t(freedom, expected):
    assert quantile(freedom) == pytest.approx(expected, abs=6e-5)


def test_quantiles_approach_the_normal_distributions():
    assert quantile(100_000) == pytest.approx(statistics.NormalDist().inv_cdf(0.975), abs=1e-4)


def test_interval_of_differences():
    without, with_ = [1.0, 2.0, 3.0], [0.5, 1.1, 2.4]  # differences -0.5, -0.9, -0.6
    found = judge(without, with_, LOSS)
    half = 4.30265 * statistics.stdev([-0.5, -0.9, -0.6]) / math.sqrt(3)
    assert (found.without, found.with_) == pytest.approx((2, 4 / 3))
    assert (found.low, found.difference, found.high) == pytest.approx(
        (-2 / 3 - half, -2 / 3, -2 / 3 + half), abs=1e-5
    )


def test_interval_of_ratios_is_that_of_their_logarithms():
    without, with_ = [1.0, 4.0, 9.0], [0.5, 1.0, 6.0]
    found = judge(without, with_, RATIO)
    logs = judge(list(map(math.log, without)), list(map(math.log, with_)), LOSS)
    numbers = (logs.without, logs.with_, logs.difference, logs.low, logs.high)
    actual = (found.without, found.with_, found.difference, found.low, found.high)
    assert actual == pytest.approx([math.exp(value) for value in numbers])


# Changes whose interval is below, about, and above no effect
BELOW, ABOUT, ABOVE = (-1.0, -1.1, -0.9), (-1.0, 1.0, 0.1), (1.0, 1.1, 0.9)


@pytest.mark.parametrize(
    ("changes", "lower", "higher"),
    [
        (BELOW, "shows", "against"),
        (ABOUT, "does not show", "does not show"),
        (ABOVE, "against", "shows"),
        ((0.0, 0.0, 0.0), "does not show", "does not show"),  # no effect is no null to exclude
    ],
)
def test_verdicts(changes, lower, higher):
    zeros = [0.0] * len(changes)
    assert judge(zeros, list(changes), LOSS).verdict == lower
    assert judge(zeros, list(changes), ACCURACY).verdict == higher
    ratios = [math.exp(change) for change in changes]
    assert judge([1.0] * len(changes), ratios, RATIO).verdict == lower


def test_one_seed_has_no_interval_and_no_verdict():
    found = judge([1.0], [0.5], LOSS)
    assert (found.difference, found.low, found.high, found.verdict) == (
        -0.5,
        None,
        None,
        "one seed",
    )


@pytest.mark.parametrize(
    ("without", "measure"),
    [
        ([1.0, None], LOSS),  # what was measured in a run that diverged
        ([1.0, 0.0], RATIO),  # a ratio to nothing
    ],
)
def test_what_is_not_finite_is_said(without, measure):
    found = judge(without, [1.0, 1.0], measure)
    assert (found.without, found.difference, found.verdict) == (None, None, "not finite")


def test_measures_of_several_runs():
    runs = [{"loss": 0.9, "accuracy": 60.0}, {"loss": 0.4, "accuracy": 80.0}]
    assert SPREAD.of(runs) == 0.5
    assert BEST_ACCURACY.of(runs) == 80.0


@pytest.mark.parametrize(
    ("curve", "planned", "steps"),
    [
        ([1.0] * 100 + [0.0] * 100, 200, 126),  # 26 of the last 50 are 0: their mean is 0.48
        ([1.0] * 60, 60, 60),  # never
        ([0.1, 0.1], 2, 2),  # fewer than the window
        ([0.1] * 60, 100, 100),  # diverged
        ([], 100, 100),  # at once
    ],
)
def test_steps_until_the_running_mean_is_low(curve, planned, steps):
    run = {"curve": curve, "setting": {"steps": planned}, "diverged": len(curve) < planned}
    assert STEPS.of([run]) == steps
