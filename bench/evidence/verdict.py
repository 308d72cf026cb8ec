"""What a comparison shows: paired differences over seeds, their 95 % interval, and a verdict.

For each of n seeds d = with - without, or log(with / without) where ratios are compared. The
interval is Student's: mean(d) -+ t s / sqrt(n), s the sample standard deviation of d and t the
97.5 % quantile for n - 1 degrees of freedom; of ratios, the exponentials of its ends.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from .measures import Measure

SHOWS, SHOWS_NOT, AGAINST = "shows", "does not show", "against"
ONE_SEED, NO_VALUE = "one seed", "not finite"


@dataclass(frozen=True)
class Found:
    """The sides' means, the paired difference (or ratio) with its interval, and the verdict.

    None for what has no value: of one seed there is no interval.
    """

    without: float | None
    with_: float | None
    difference: float | None
    low: float | None
    high: float | None
    verdict: str


def judge(without: list[float | None], with_: list[float | None], measure: Measure) -> Found:
    """Of the values of each seed, in one order."""
    pairs = list(zip(without, with_, strict=True))
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    if len(known) < len(pairs) or (measure.is_ratio and min(map(min, known)) <= 0):
        return Found(None, None, None, None, None, NO_VALUE)
    if measure.is_ratio:
        known = [(math.log(a), math.log(b)) for a, b in known]
    changes = [b - a for a, b in known]
    mean = statistics.fmean(changes)
    half = half_width(changes)
    sides = [statistics.fmean(side) for side in zip(*known, strict=True)]
    numbers = [*sides, mean, *((mean - half, mean + half) if half is not None else ())]
    verdict = ONE_SEED
    if half is not None:
        shown = mean + half < 0 if measure.claim == "lower" else mean - half > 0
        refuted = mean - half > 0 if measure.claim == "lower" else mean + half < 0
        verdict = SHOWS if shown else AGAINST if refuted else SHOWS_NOT
    if measure.is_ratio:
        numbers = [math.exp(value) for value in numbers]
    return Found(*numbers, *[None] * (5 - len(numbers)), verdict)


def half_width(values: list[float]) -> float | None:
    if len(values) < 2:
        return None
    scale = statistics.stdev(values) / math.sqrt(len(values))
    return quantile(len(values) - 1) * scale


def quantile(freedom: int) -> float:
    """Student's t, 97.5 %: where `within` is 0.95."""
    low, high = 0.0, 13.0  # of one degree of freedom it is 12.7
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle, freedom) < 0.95 else (low, middle)
    return low


def within(t: float, freedom: int) -> float:
    """P(-t < T < t) by the finite series for whole degrees of freedom (Abramowitz & Stegun 26.7.3).

    With a = atan(t / sqrt(freedom)): terms of cos(a)^k, each (k - 1) / k of the one before.
    """
    a = math.atan(t / math.sqrt(freedom))
    cos, odd = math.cos(a), freedom % 2
    term, total = (cos if odd else 1.0), 0.0
    for k in range(2 + odd, freedom + 1, 2):
        total += term
        term *= cos * cos * (k - 1) / k
    return 2 / math.pi * (a + math.sin(a) * total) if odd else math.sin(a) * total
