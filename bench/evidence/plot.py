"""The picture of ``python -m bench evidence``: a drawing for each panel, from what is recorded."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable

from ..common import plot as common
from . import panels
from .settings import Setting

# Color-blind safe (Okabe and Ito)
COLORS = {"BN": "#E69F00", "GN": "#666666", "GN+WS": "#0072B2"}
WITHOUT, WITH = COLORS["GN"], COLORS["GN+WS"]
NAMED = {"BN": panels.BN, "GN": panels.GN, "GN+WS": panels.WS}


def save(path: str | os.PathLike, found: dict, caption: str) -> None:
    """Only of the panels that were run."""
    drawn = [name for name in DRAWINGS if any(c["panel"] == name for c in found["comparisons"])]
    columns = min(3, len(drawn))
    rows = -(-len(drawn) // columns)
    size = (4.4 * columns + 0.6, 3.5 * rows + 0.7)
    figure, axes = common.pyplot().subplots(
        rows, columns, figsize=size, layout="constrained", squeeze=False
    )
    for axis, name in zip(axes.flat, drawn, strict=False):
        title, draw = DRAWINGS[name]
        draw(axis, found)
        axis.set_title(title, fontsize=10)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes.flat[len(drawn) :]:
        axis.set_visible(False)
    common.save(figure, path, f"{found['data']['name']}, {_seeds(found)}; {caption}")


def _seeds(found):
    count = found["settings"]["seeds"]
    return f"{count} seeds" if count > 1 else "1 seed"


class Runs:
    """The recorded runs of a setting, but chains; whatever the seed and whether it was observed."""

    def __init__(self, found: dict):
        self.by_setting: dict[str, list[dict]] = {}
        for run in found["runs"]:
            if "similarity" not in run:
                self.by_setting.setdefault(_key(run["setting"]), []).append(run)
        self.scale = found["settings"]["steps"] / Setting.steps

    def of(self, setting: Setting) -> list[dict]:
        steps = int(setting.steps * self.scale)
        return self.by_setting.get(_key({**setting.as_json(), "steps": steps}), [])


def _key(setting):
    return json.dumps({**setting, "seed": 0, "measures": ""}, sort_keys=True)


def _curves(steps: int) -> Callable:
    def draw(axis, found):
        """The seeds' mean and their range."""
        runs = Runs(found)
        for name, setting in NAMED.items():
            of = runs.of(panels.unobserved(setting, steps=steps))
            curves = [run["curve"] for run in of if not run["diverged"]]
            if curves:
                length = of[0]["setting"]["steps"]
                count = len(curves[0])
                at = [length * (i + 0.5) / count for i in range(count)]
                by_step = list(zip(*curves, strict=True))
                low, high = list(map(min, by_step)), list(map(max, by_step))
                axis.fill_between(at, low, high, color=COLORS[name], alpha=0.2, linewidth=0)
                axis.plot(at, list(map(statistics.fmean, by_step)), COLORS[name], label=name)
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.yaxis.set_minor_formatter(lambda value, _: f"{value:g}")
        axis.tick_params(which="both", labelsize=8)
        axis.set_xlabel("step", fontsize=8)
        axis.set_ylabel("training loss", fontsize=8)

    return draw


def _landscape(axis, found):
    """Ratios, 1 where standardization changes nothing: at the same point, and trajectories'."""
    rows = [c for c in found["comparisons"] if c["panel"] == "landscape" and c["is_ratio"]]
    titles = list(dict.fromkeys(row["measure"] for row in rows))
    for what, marker, color, lift in (
        ("same weights", "o", WITH, -0.15),
        ("GN", "s", COLORS["BN"], 0.15),
    ):
        chosen = [r for r in rows if r["what"].startswith(what) and r["difference"] is not None]
        ys = [titles.index(row["measure"]) + lift for row in chosen]
        label = "WS against folded, same weights" if marker == "o" else "GN+WS against GN"
        axis.plot([r["difference"] for r in chosen], ys, marker, color=color, label=label, ms=4)
        for row, y in zip(chosen, ys, strict=True):
            if row["low"] is not None:
                axis.plot([row["low"], row["high"]], [y, y], color=color, linewidth=1.2)
    axis.axvline(1, color="black", linewidth=1, zorder=0)
    axis.set_xscale("log")
    low, high = axis.get_xlim()
    _plain_ticks(axis.xaxis, [t for t in (0.01, 0.1, 0.2, 0.5, 1, 2, 10) if low <= t <= high])
    axis.set_yticks(range(len(titles)), titles, fontsize=7)
    axis.set_ylim(len(titles) - 0.5, -0.5)
    axis.set_xlabel("with WS, times without", fontsize=8)


def _plain_ticks(axis, values):
    """Of a logarithmic axis: these and no others."""
    axis.set_ticks(values, [f"{value:g}" for value in values])
    axis.set_ticks([], minor=True)


def _learning_rate(axis, found):
    runs = Runs(found)
    rates = sorted([Setting.lr, *panels.RATES])
    for name, setting in NAMED.items():
        sides = {
            lr: [run["loss"] for run in runs.of(panels.unobserved(setting, lr=lr))] for lr in rates
        }
        sides = {lr: losses for lr, losses in sides.items() if losses}
        low, high = ([pick(losses) for losses in sides.values()] for pick in (min, max))
        axis.fill_between(list(sides), low, high, color=COLORS[name], alpha=0.2, linewidth=0)
        means = [statistics.fmean(losses) for losses in sides.values()]
        axis.plot(list(sides), means, "o-", color=COLORS[name], label=name, ms=3)
    axis.set_xscale("log")
    _plain_ticks(axis.xaxis, rates)
    axis.set_xlabel("learning rate", fontsize=8)
    axis.set_ylabel("training loss", fontsize=8)


def _micro_batch(axis, found):
    """A dot a seed."""
    runs = Runs(found)
    comparisons = list(panels.micro_batch())
    sides = [side for c in comparisons for side in (c.without[0], c.with_[0])]
    titles = {s.title: s for s in sides}
    order = sorted(titles, key=lambda t: (bool(titles[t].formula), -titles[t].micro_batch, t))
    for x, title in enumerate(order):
        values = [run["accuracy"] for run in runs.of(titles[title])]
        color = WITH if titles[title].formula else COLORS.get(title[:2], WITHOUT)
        axis.plot([x] * len(values), values, "o", color=color, ms=4, alpha=0.6)
        axis.plot([x - 0.3, x + 0.3], [statistics.fmean(values)] * 2, color=color)
    labels = [title.replace("estimated", "est.").replace("+WS", "\n+WS") for title in order]
    axis.set_xticks(range(len(order)), labels, fontsize=7)
    axis.set_ylabel("accuracy, %", fontsize=8)


def _initialization(axis, found):
    """Pairs of a seed, joined."""
    chosen = [
        c for c in found["comparisons"] if c["panel"] == "initialization" and c["unit"] == "%"
    ]
    for y, row in enumerate(chosen):
        pairs = list(zip(row["values_without"], row["values_with"], strict=True))
        for i, pair in enumerate(pairs):
            lift = 0.5 * ((i + 0.5) / len(pairs) - 0.5)
            axis.plot(pair, [y + lift] * 2, color="#BBBBBB", linewidth=1, zorder=1)
            axis.plot(pair[0], y + lift, "o", color=WITHOUT, ms=4)
            axis.plot(pair[1], y + lift, "o", color=WITH, ms=4)
    axis.set_yticks(range(len(chosen)), [c["what"].replace(", ", "\n") for c in chosen], fontsize=7)
    axis.set_ylim(len(chosen) - 0.5, -0.5)
    axis.set_xlabel("accuracy, %: gray without, blue with WS", fontsize=8)


def _similarity(axis, found):
    """A line a layer, of the seeds' mean."""
    compared = [run["similarity"] for run in found["runs"] if "similarity" in run]
    names = {"same_task": WITH, "other_task": COLORS["BN"], "untrained": WITHOUT}
    for name, color in names.items():
        means = [
            statistics.fmean(layer) for layer in zip(*(c[name] for c in compared), strict=True)
        ]
        label = f"with {name.replace('_', ' ')}"
        axis.plot(range(1, len(means) + 1), means, "o-", color=color, label=label, ms=3)
    axis.set_xticks(range(1, len(means) + 1))
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_xlabel("convolution of the chain", fontsize=8)
    axis.set_ylabel("weight similarity", fontsize=8)


DRAWINGS: dict[str, tuple[str, Callable]] = {
    "convergence": ("Convergence", _curves(Setting.steps)),
    "landscape": ("Landscape", _landscape),
    "learning-rate": ("Learning rate", _learning_rate),
    "micro-batch": ("Micro-batches", _micro_batch),
    "initialization": ("Initialization", _initialization),
    "similarity": ("Weight similarity to another network", _similarity),
    panels.LONG: ("Six times as many steps", _curves(panels.LONGER * Setting.steps)),
}
