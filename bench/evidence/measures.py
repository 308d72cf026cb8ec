"""The numbers that the panels compare, read from the records of runs (run.py)."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from .landscape import FACTORS, SHARES

REACHED = 0.5  # a loss
WINDOW = 50  # steps over which the loss is averaged before it counts as reached

Of = Callable[[list[dict]], float | None]  # of one seed's records; None if it is not finite
AtPoint = Callable[[dict], float | None]  # of what landscape.Point.measured found


@dataclass(frozen=True)
class Measure:
    title: str
    of: Of
    claim: Literal["lower", "higher"] = "lower"  # what it is said to be with standardization
    is_ratio: bool = False  # sides are compared by their ratio, else by their difference
    unit: str = ""


def _steps_until(runs):
    """Until the loss's running mean is below REACHED; all of them if it never is, or diverges."""
    [run] = runs
    curve, steps = run["curve"], run["setting"]["steps"]
    window = min(WINDOW, steps)
    for end in range(window, steps + 1) if not run["diverged"] else ():
        if sum(curve[end - window : end]) / window < REACHED:
            return end
    return steps


def _spread(runs):
    losses = [run["loss"] for run in runs]
    return max(losses) - min(losses)


def _of_best(name):
    return lambda runs: min(runs, key=lambda run: run["loss"])[name]


LOSS = Measure("loss", lambda runs: runs[0]["loss"])
ACCURACY = Measure("accuracy", lambda runs: runs[0]["accuracy"], "higher", unit="%")
SPREAD = Measure("worst minus best loss", _spread)
BEST_LOSS = Measure("loss", _of_best("loss"))
BEST_ACCURACY = Measure("accuracy", _of_best("accuracy"), "higher", unit="%")
STEPS = Measure(f"steps until a loss of {REACHED}", _steps_until, is_ratio=True)


def _mean(values, geometric):
    """None where a value is missing, or has no logarithm."""
    if not values or None in values or (geometric and min(values) <= 0):
        return None
    return (statistics.geometric_mean if geometric else statistics.fmean)(values)


def mean_over_points(key: str, of: AtPoint, geometric: bool = False) -> Of:
    """Over the points of one run's trajectory."""
    return lambda runs: _mean([of(point) for point in runs[0][key]], geometric)


def _beta(kind, size):
    return lambda at: at[kind][f"{size:g}"]["beta"]


def _range(kind, sizes):
    def measure(at):
        losses = [at[kind][f"{size:g}"]["loss"] for size in sizes]
        return None if None in losses else max(losses) - min(losses)

    return measure


COSINE = "cosine of gradients, a step of 1 %"
# Title and what is measured at a point of a trajectory. Cosines are averaged, and are to be higher;
# all others are lengths, whose geometric means are compared, and are to be lower.
AT_POINT: dict[str, AtPoint] = {
    "norm of the gradient": lambda at: at["gradient"],
    **{f"beta, a step of {100 * share:g} %": _beta("shares", share) for share in SHARES},
    **{f"beta, a raw step of lr x {k:g}": _beta("raw", k) for k in (FACTORS[0], FACTORS[-1])},
    COSINE: lambda at: at["shares"][f"{SHARES[0]:g}"]["cosine"],
    "range of the loss, steps of 1 to 10 %": _range("shares", SHARES[:3]),
    "range of the loss, raw steps of lr x 0.5 to 4": _range("raw", FACTORS),
}


def at_points(title: str, key: str, side: str | None = None) -> Measure:
    """One of AT_POINT, averaged over a trajectory; `side`: of the two at the same point."""
    of, is_ratio = AT_POINT[title], title != COSINE

    def at(point):
        return of(point[side] if side else point)

    claim = "lower" if is_ratio else "higher"
    return Measure(title, mean_over_points(key, at, is_ratio), claim, is_ratio)


def removed(by: str) -> Measure:
    """The share of the squared gradient that the mean's or the std's backward takes off."""
    of = mean_over_points("same_point", lambda point: 100 * point[f"removed_by_{by}"])
    return Measure("share", of, "higher", unit="%")


def similarity(name: str) -> Measure:
    """The layers' geometric mean of one of the comparisons of similarity.py."""

    def of(runs):
        return _mean(runs[0]["similarity"][name], geometric=True)

    return Measure("similarity of the layers", of, "higher", is_ratio=True)
