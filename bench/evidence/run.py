"""One run of the experiments: a setting becomes numbers."""

from __future__ import annotations

import math
import time

from .data import Data
from .landscape import Probes
from .networks import make
from .settings import Setting
from .similarity import compare
from .training import accuracy, train
from .training import batches as make_batches

TESTED, LONG_TESTED = 5_000, 10_000  # images, of runs with LONG steps or more the latter
LONG = 1_000
DIGITS = 5  # of what is stored


def run(setting: Setting, data: Data) -> dict:
    """Every number of it that the report, the plot and the reader need.

    A run whose loss is not finite ends there; its loss counts as that of chance.
    """
    start = time.perf_counter()
    found = _similarity(setting, data) if setting.measures == "similarity" else _run(setting, data)
    return {**rounded(found), "seconds": round(time.perf_counter() - start, 2)}


def _similarity(setting, data):
    similarity, curve = compare(setting, data)
    return {"similarity": similarity, "curve": curve}


def _run(setting, data):
    model = make(setting, data.side, data.classes)
    probes = Probes(data, setting) if setting.measures == "landscape" else None
    curve = train(model, setting, make_batches(data, setting), probes)
    diverged = len(curve) < setting.steps
    last = curve[-max(1, setting.steps // 4) :]
    tested = LONG_TESTED if setting.steps >= LONG else TESTED
    found = {
        "loss": math.log(data.classes) if diverged else sum(last) / len(last),
        "accuracy": 100 * accuracy(model, data, tested),
        "diverged": diverged,
        "curve": curve,
    }
    return {**found, **(probes.found if probes else {})}


def rounded(found):
    """To the digits that are stored; None for a number that is not finite."""
    if isinstance(found, dict):
        return {name: rounded(value) for name, value in found.items()}
    if isinstance(found, list):
        return [rounded(value) for value in found]
    if isinstance(found, float):
        return float(f"{found:.{DIGITS}g}") if math.isfinite(found) else None
    return found
