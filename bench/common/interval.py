"""Two competitors' times compared within rounds, and what a run resolves of that.

Whatever slows the machine down for longer than a round slows both alike and cancels.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from .timing import Timing


@dataclass(frozen=True)
class Interval:
    """The rounds' median, its 95 % confidence interval, and their quartiles.

    The interval says what the run resolves, the quartiles how noisy the rounds were.
    """

    median: float
    low: float
    high: float
    q1: float
    q3: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Interval:
        values = sorted(values)
        q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
        skipped = _outside_interval(len(values))
        return cls(median, values[skipped], values[-1 - skipped], q1, q3)


def overhead(timing: Timing, plain: Timing) -> Interval:
    """In percent of plain's."""
    pairs = zip(timing.rounds, plain.rounds, strict=True)
    return Interval.of(100 * (a - b) / b for a, b in pairs)


def ratio(timing: Timing, other: Timing) -> Interval:
    """How many times as long it takes as the other."""
    return Interval.of(a / b for a, b in zip(timing.rounds, other.rounds, strict=True))


def _outside_interval(count: int) -> int:
    """How many of the sorted values lie below the interval that holds the median, 95 % of the time.

    As many heads come up in `count` throws of a coin, or fewer, with a probability of 2.5 %.
    """
    below, probability = 0, 0.5**count
    while probability <= 0.025:
        below += 1
        probability += math.comb(count, below) * 0.5**count
    return max(0, below - 1)
