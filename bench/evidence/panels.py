"""The experiments: the comparisons of a panel, and so the runs that it needs.

A comparison has a side without standardization and one with it, and its measure says which of them
the sources claim to be lower or higher. The verdict follows from the interval (verdict.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from . import measures
from .measures import ACCURACY, BEST_ACCURACY, BEST_LOSS, LOSS, SPREAD, STEPS, Measure
from .settings import Setting

Settings = tuple[Setting, ...]

GN = Setting(measures="landscape")
BN = Setting(norm="bn")
WS = replace(GN, formula="paper")
RATES = (0.01, 0.03, 0.3, 1.0)  # learning rates, besides GN's
WIDE = RATES[1:]  # over which the spread is taken
PLAIN_RATE = 0.03  # without normalization
LONGER = 6  # times as many steps
LONG = "long"


@dataclass(frozen=True)
class Comparison:
    panel: str
    what: str  # in words
    without: Settings  # of seed 0
    with_: Settings
    measure_without: Measure
    measure: Measure

    @property
    def settings(self) -> Settings:
        return self.without + self.with_


def compare(
    panel: str, what: str, without: Setting | Settings, with_: Setting | Settings, *found: Measure
) -> Iterator[Comparison]:
    """A comparison for each measure."""
    sides = [(side,) if isinstance(side, Setting) else side for side in (without, with_)]
    for measure in found:
        yield Comparison(panel, what, *sides, measure, measure)


def unobserved(setting: Setting, **changes) -> Setting:
    return replace(setting, measures="", **changes)


def convergence() -> Iterator[Comparison]:
    yield from compare("convergence", "GN", GN, WS, LOSS, ACCURACY)


def landscape() -> Iterator[Comparison]:
    """Both questions of landscape.py, by the same measures."""
    panel, what = "landscape", "same weights, folded against standardized"
    for title in measures.AT_POINT:
        sides = (measures.at_points(title, "same_point", s) for s in ("folded", "standardized"))
        yield Comparison(panel, what, (WS,), (WS,), *sides)
    what = "the gradient's part that the std takes off against the mean's"
    yield Comparison(panel, what, (WS,), (WS,), measures.removed("std"), measures.removed("mean"))
    own = (measures.at_points(title, "own") for title in measures.AT_POINT)
    yield from compare(panel, "GN, each on its own trajectory", GN, WS, *own)


def learning_rate() -> Iterator[Comparison]:
    panel = "learning-rate"
    for lr in RATES:
        sides = (unobserved(side, lr=lr) for side in (GN, WS))
        yield from compare(panel, f"GN, lr {lr:g}", *sides, LOSS)
    for name, base in (("GN", GN), ("BN against GN+WS", BN)):
        wide, all_rates = (
            [(side, *(unobserved(side, lr=lr) for lr in rates)) for side in (base, WS)]
            for rates in (WIDE, RATES)
        )
        yield from compare(panel, f"{name}, lr {WIDE[0]:g} to {WIDE[-1]:g}", *wide, SPREAD)
        what = f"{name}, each at its best lr"
        yield from compare(panel, what, *all_rates, BEST_LOSS, BEST_ACCURACY)


def micro_batch() -> Iterator[Comparison]:
    of_2, of_1 = (unobserved(BN, micro_batch=size) for size in (2, 1))
    bcn = unobserved(WS, norm="bcn")
    estimated = replace(bcn, norm="bcn_estimated", micro_batch=2)
    for what, without, with_ in (
        ("BN of 32 against GN+WS", BN, WS),
        ("BN of 2 against GN+WS", of_2, WS),
        ("BN of 1 against GN+WS", of_1, WS),
        ("BN of 2 against GN without WS", of_2, GN),
        ("BN of 32 against estimated BCN+WS of 2", BN, estimated),
        ("GN+WS against BCN+WS of 32", WS, bcn),
    ):
        yield from compare("micro-batch", what, without, with_, ACCURACY)


def initialization() -> Iterator[Comparison]:
    panel = "initialization"
    for initial in ("mean 1 std", "std x 0.1", "std x 10"):
        sides = (unobserved(side, initial=initial) for side in (GN, WS))
        yield from compare(panel, f"GN, {initial}", *sides, LOSS, ACCURACY)
    plain = Setting(norm="none", lr=PLAIN_RATE)
    for initial in ("std x 0.3", "std x 1", "std x 3"):
        sides = (replace(plain, formula=f, initial=initial) for f in (None, "nfnet"))
        yield from compare(panel, f"no normalization, {initial}", *sides, ACCURACY)


def similarity() -> Iterator[Comparison]:
    chains = (Setting(formula="paper", measures="similarity"),)
    same = measures.similarity("same_task")
    for name, text in (("untrained", "untrained"), ("other_task", "another task")):
        what = f"{text} against the same task"
        yield Comparison("similarity", what, chains, chains, measures.similarity(name), same)


def long() -> Iterator[Comparison]:
    gn, bn, ws = (unobserved(side, steps=LONGER * side.steps) for side in (GN, BN, WS))
    yield from compare(LONG, "GN", gn, ws, LOSS, ACCURACY, STEPS)
    yield from compare(LONG, "BN of 32 against GN+WS", bn, ws, ACCURACY)


# In the order of the report; the last is left out unless it is asked for.
PANELS: dict[str, Callable[[], Iterator[Comparison]]] = {
    "convergence": convergence,
    "landscape": landscape,
    "learning-rate": learning_rate,
    "micro-batch": micro_batch,
    "initialization": initialization,
    "similarity": similarity,
    LONG: long,
}


def comparisons(panels: Iterable[str], steps: int) -> list[Comparison]:
    """Of these panels, with `steps` in the place of the default number."""

    def scaled(settings: Settings) -> Settings:
        return tuple(replace(s, steps=s.steps * steps // Setting.steps) for s in settings)

    return [
        replace(c, without=scaled(c.without), with_=scaled(c.with_))
        for panel in panels
        for c in PANELS[panel]()
    ]


def settings(found: Iterable[Comparison], seeds: int) -> list[Setting]:
    """The runs that comparisons need, each once, those that take longest first."""
    needed = dict.fromkeys(setting for c in found for setting in c.settings)
    runs = [setting.of_seed(seed) for setting in needed for seed in range(seeds)]
    return sorted(runs, key=lambda setting: -setting.effort)
