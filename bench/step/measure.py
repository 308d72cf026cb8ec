"""One network at one micro-batch size: check every variant, count its memory, then time it.

A round takes one sample of every variant in shuffled order, as in common/timing.py; the overhead of
a variant is taken within each round, against `plain` in the same round (common/interval.py).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from ..common.errors import WRONG, WrongResult, reason_of
from ..common.interval import Interval, overhead
from ..common.run import Started
from ..common.timing import MIN_ROUNDS, Timing, interleave
from .checks import Check, Judge
from .memory import allocated_bytes
from .networks import NETWORKS, Network
from .variants import PLAIN, MicroBatch, Settings, Trainer, Variant, make_data, takes_part

SAMPLE_SECONDS = 0.25  # at most: short runs take shorter samples


@dataclass(frozen=True)
class Cell:
    """What a step trains on."""

    network: str
    batch: int  # images in a micro-batch
    accumulate: int  # micro-batches in a step
    size: int  # pixels of a side

    @property
    def title(self) -> str:
        title = f"{NETWORKS[self.network].title}, batch {self.batch}"
        return title if self.accumulate == 1 else f"{title} × {self.accumulate}"

    @property
    def images(self) -> int:
        return self.batch * self.accumulate


@dataclass
class Row:
    """All variants of a cell, by name."""

    cell: Cell
    times: dict[str, Timing] = field(default_factory=dict)
    overheads: dict[str, Interval] = field(default_factory=dict)  # all but plain's
    checks: dict[str, Check] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)  # bytes
    skipped: dict[str, str] = field(default_factory=dict)  # why a variant was not timed

    @property
    def title(self) -> str:
        return self.cell.title

    def images_per_second(self, name: str) -> float:
        return self.cell.images / self.times[name].median


def measure(
    cell: Cell,
    variants: list[Variant],
    settings: Settings,
    seconds: float,
    started: Started,
) -> Row:
    network = NETWORKS[cell.network]
    micro_batches = make_data(network, cell.batch, cell.size, cell.accumulate, settings)
    row = Row(cell)
    judge = Judge(network, micro_batches, settings)
    trainers = {}
    for variant in variants:
        if not takes_part(variant, cell.accumulate):
            continue
        started(f"{cell.title}: checking {variant.name}")
        try:
            check = judge.check(variant)
            if not check.passed:
                if variant.name == PLAIN:
                    raise WrongResult(f"{PLAIN} is wrong on {cell.title}: {check.verdict}")
                row.skipped[variant.name] = f"{WRONG}, {check.verdict}"
                continue
            trainer, row.peaks[variant.name] = prepare(variant, network, settings, micro_batches)
        except Exception as error:  # whatever torch.compile, or a peer, raises
            if variant.name == PLAIN or variant.is_ours:
                raise
            row.skipped[variant.name] = reason_of(error)
            continue
        row.checks[variant.name] = check
        trainers[variant.name] = trainer
    started(f"{cell.title}: timing")
    _time(row, trainers, micro_batches, seconds)
    return row


def prepare(
    variant: Variant, network: Network, settings: Settings, micro_batches: list[MicroBatch]
) -> tuple[Trainer, int]:
    """The trainer after a step, and the most bytes that it has allocated at once in the next."""
    made: list[Trainer] = []

    def begin():
        made.append(Trainer(variant, network, settings))
        made[0].step(micro_batches)  # the first makes what the others then have

    _, kept = allocated_bytes(begin, settings.device)
    peak, _ = allocated_bytes(lambda: made[0].step(micro_batches), settings.device)
    return made[0], kept + peak


def _time(
    row: Row, trainers: dict[str, Trainer], micro_batches: list[MicroBatch], seconds: float
) -> None:
    sample_seconds = min(SAMPLE_SECONDS, seconds / (MIN_ROUNDS * len(trainers)))
    steps = _choose_steps(trainers[PLAIN], micro_batches, sample_seconds)
    times = interleave(
        {
            name: lambda trainer=trainer: _sample(trainer, micro_batches, steps)
            for name, trainer in trainers.items()
        },
        seconds,
    )
    row.times = {name: Timing.of(times[name], steps) for name in times}
    row.overheads = {
        name: overhead(timing, row.times[PLAIN])
        for name, timing in row.times.items()
        if name != PLAIN
    }


def _sample(trainer: Trainer, micro_batches: Sequence[MicroBatch], steps: int) -> float:
    """Seconds a step, after one on a single micro-batch that is not timed: the caches are its own.

    The data are the same in every step: loading them is not what is compared.
    """
    trainer.step(micro_batches[:1])
    _synchronize(trainer)
    start = time.perf_counter()
    for _ in range(steps):
        trainer.step(micro_batches)
    _synchronize(trainer)
    return (time.perf_counter() - start) / steps


def _choose_steps(
    trainer: Trainer, micro_batches: Sequence[MicroBatch], sample_seconds: float
) -> int:
    fastest = min(_sample(trainer, micro_batches, 1) for _ in range(2))
    return max(1, math.ceil(sample_seconds / fastest))


def _synchronize(trainer: Trainer) -> None:
    if trainer.settings.device == "cuda":
        torch.cuda.synchronize()
