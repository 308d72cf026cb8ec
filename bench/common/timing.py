"""How a time is taken on the CPU.

A sample is a batch of calls in a row, long enough to stand well above the clock's resolution and
the cost of reading it; its value is the time per call. Every round takes one sample of each
provider, in an order shuffled anew: whatever else the machine does for a while (another process,
a lower clock) then falls on all providers alike and not on the one whose turn it was, and none of
them always finds the caches as the same neighbour left them. A call that is not timed begins every
sample: the caches are then as the provider's own calls leave them. Rounds repeat until the time is
used up, and at least MIN_ROUNDS times.

Medians and quartiles are reported: disturbances only ever add time, so a mean follows them, and a
minimum is the luckiest call and not the usual one. Weights that fit the caches are found there, as
they are when the optimizer has just written them; whole models do not fit.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

MIN_ROUNDS = 9
SAMPLE_SECONDS = 300e-6
MAX_BATCH = 1000

Sampler = Callable[[], float]  # one sample, in seconds per call


@dataclass(frozen=True)
class Call:
    run: Callable[[Any], Any]  # the timed part, on what `prepare` returned
    prepare: Callable[[], Any] = lambda: None
    enter: Callable[[], None] = lambda: None  # before each sample: process-wide settings


@dataclass(frozen=True)
class Timing:
    """Seconds per call."""

    median: float
    q1: float
    q3: float
    samples: int
    batch: int  # calls in a sample
    rounds: tuple[float, ...] = field(default=(), compare=False, repr=False)  # in their order

    @classmethod
    def of(cls, times: list[float], batch: int) -> Timing:
        q1, median, q3 = statistics.quantiles(times, n=4, method="inclusive")
        return cls(median, q1, q3, len(times), batch, tuple(times))

    def as_json(self, unit: str) -> dict[str, float]:
        """Median and quartiles in "us" or "ms"."""
        scale = {"us": 1e6, "ms": 1e3}[unit]
        return {f"{name}_{unit}": getattr(self, name) * scale for name in ("median", "q1", "q3")}


def interleave(samplers: dict[str, Sampler], seconds: float) -> dict[str, list[float]]:
    """Rounds of one sample each, in shuffled order, for about `seconds`."""
    order = random.Random(0)
    names = list(samplers)
    times = {name: [] for name in names}
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < MIN_ROUNDS or time.perf_counter() < end:
        order.shuffle(names)
        for name in names:
            times[name].append(samplers[name]())
        rounds += 1
    return times


def sample(call: Call, batch: int) -> float:
    call.enter()
    call.run(call.prepare())
    states = [call.prepare() for _ in range(batch)]
    start = time.perf_counter()
    for state in states:
        call.run(state)
    return (time.perf_counter() - start) / batch


def choose_batch(call: Call) -> int:
    """Warms the call up, then the number of calls that fills a sample."""
    sample(call, 1)
    fastest = min(sample(call, 1) for _ in range(3))
    return min(MAX_BATCH, max(1, math.ceil(SAMPLE_SECONDS / fastest)))


def measure(calls: dict[str, Call], seconds: float) -> dict[str, Timing]:
    batches = {name: choose_batch(call) for name, call in calls.items()}
    samplers = {
        name: lambda call=call, batch=batches[name]: sample(call, batch)
        for name, call in calls.items()
    }
    times = interleave(samplers, seconds)
    return {name: Timing.of(times[name], batches[name]) for name in calls}
