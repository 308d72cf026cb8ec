"""What ``python -m bench evidence`` found, as data."""

from __future__ import annotations

import dataclasses

from .data import Data
from .panels import Comparison
from .run import rounded
from .settings import Setting
from .verdict import judge

METHOD = {
    "runs": "SGD with momentum 0.9 on batches of 32, lr falling to 0 along a cosine, no weight "
    "decay; a seed fixes initial weights, order and mirroring of the images for all settings",
    "loss": "mean training loss of the last quarter of the steps; of a run that diverged, chance's",
    "accuracy": "percent of 5,000 test images, of the long panel 10,000",
    "landscape": "with weights in shares of their layer's norm: bench/evidence/landscape.py",
    "similarity": "torch_ws.weight_similarity, geometric mean of the convolutions of a chain",
    "interval": "95 %, Student's t over seeds, of the paired difference; of the logarithm's for "
    "ratios; not corrected for the number of comparisons",
    "verdict": "shows: the interval lies on the claimed side of no effect; against: on the other; "
    "does not show: it holds no effect",
}
POINTS = 40  # of a stored curve: means of steps


def as_json(comparisons: list[Comparison], runs: dict[str, dict], seeds: int, data: Data) -> dict:
    """`runs` by Setting.key."""
    needed = dict.fromkeys(
        s.of_seed(i).key for c in comparisons for s in c.settings for i in range(seeds)
    )
    return {
        "method": METHOD,
        "data": {"name": data.name, "sha256": data.hashes, "warnings": data.warnings},
        "comparisons": [_comparison_json(c, runs, seeds) for c in comparisons],
        "runs": [{**runs[key], "curve": _shortened(runs[key]["curve"])} for key in needed],
    }


def _comparison_json(comparison, runs, seeds):
    measure = comparison.measure

    def values(settings: tuple[Setting, ...], of):
        of_seed = ([runs[s.of_seed(seed).key] for s in settings] for seed in range(seeds))
        return [of(records) for records in of_seed]

    without = values(comparison.without, comparison.measure_without.of)
    with_ = values(comparison.with_, measure.of)
    found = dataclasses.asdict(judge(without, with_, measure))
    return {
        "panel": comparison.panel,
        "what": comparison.what,
        "measure": measure.title,
        "unit": measure.unit,
        "claim": measure.claim,
        "is_ratio": measure.is_ratio,
        **rounded({name.rstrip("_"): value for name, value in found.items()}),
        "values_without": rounded(without),
        "values_with": rounded(with_),
    }


def _shortened(curve):
    size = max(1, -(-len(curve) // POINTS))
    parts = [curve[i : i + size] for i in range(0, len(curve), size)]
    return rounded([sum(part) / len(part) for part in parts])
