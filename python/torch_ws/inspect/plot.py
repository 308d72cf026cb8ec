"""The picture of ``python -m torch_ws.inspect``: channels before and after standardization."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from ..formulas import Formula, formulas
from .layers import Layer

# Color-blind safe (Okabe and Ito).
BEFORE, AFTER = "#0072B2", "#D55E00"
MARKERS = ("o", "s", "D", "^", "v", "X", "P", "<", ">", "*")
COLORS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")

SMALLEST = 1e-5  # deviations below are drawn there
LINES = 130  # layers that can have a name each


class Range(NamedTuple):
    """The smallest, median and largest of a layer's living channels; NaN if there are none."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: torch.Tensor | None) -> Range:
        if values is None or not len(values):
            return cls(math.nan, math.nan, math.nan)
        return cls(values.min().item(), values.quantile(0.5).item(), values.max().item())


def std_ranges(layer: Layer, formula: Formula) -> tuple[Range, Range]:
    """Of the channels' std, before and after."""
    d = layer.denominators(formula)
    scale = formula.arguments(layer.fan_in)[-1]
    return Range.of(layer.stds), Range.of(None if d is None else scale * layer.stds / d)


def mean_ranges(layer: Layer, formula: Formula) -> tuple[Range, Range]:
    """Of the channels' mean / std, before and after."""
    before = layer.means / layer.stds
    if layer.denominators(formula) is None:
        return Range.of(before), Range.of(None)
    return Range.of(before), Range.of(torch.zeros_like(before) if formula.center else before)


def label(layer: Layer) -> str:
    """The layer's name, cut on the left, and what is wrong with it."""
    name = layer.name.removesuffix(".weight")
    name = name if len(name) <= 44 else "…" + name[-43:]
    dead, broken = int(layer.dead.sum()), int(layer.broken.sum())
    return name + f", {dead} dead" * bool(dead) + f", {broken} NaN or Inf" * bool(broken)


def save(path: str, title: str, layers: list[Layer], names: list[str]) -> None:
    """A line for each layer, on three panels; the first formula's result on the first two."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter

    formula = formulas[names[0]]
    height = 1.9 + 0.17 * min(max(len(layers), 6), LINES)
    figure, axes = plt.subplots(1, 3, figsize=(12, height), sharey=True, layout="constrained")
    stds, means, deviations = axes
    _draw_ranges(stds, [std_ranges(layer, formula) for layer in layers], names[0])
    stds.set_xscale("log")
    low, high = stds.get_xlim()
    stds.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
    stds.xaxis.set_major_formatter("{x:g}")
    stds.xaxis.set_minor_formatter(NullFormatter())
    stds.set_title("std of the channels", fontsize=10, loc="left")
    _draw_ranges(means, [mean_ranges(layer, formula) for layer in layers], names[0])
    means.set_title("mean / std of the channels", fontsize=10, loc="left")
    _draw_deviations(deviations, layers, names)
    step = math.ceil(len(layers) / LINES)
    names_shown = [label(layer) for layer in layers[::step]]
    stds.set_yticks(range(0, len(layers), step), names_shown, fontsize=6.5, parse_math=False)
    stds.set_ylim(len(layers) - 0.3, -0.7)  # the first layer on top
    for axis in axes:
        axis.grid(color="#DDDDDD", linewidth=0.5)
        axis.set_axisbelow(True)
        axis.tick_params(length=0, axis="y")
        axis.tick_params(labelsize=8, axis="x")
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.legend(
            loc="upper center",
            bbox_to_anchor=(0.5, -0.4 / height),
            ncols=3,
            fontsize=8,
            frameon=False,
        )
    title = f"Channels of {title}, before and after standardization"
    figure.suptitle(title, fontsize=11, parse_math=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_ranges(axis, ranges: list[tuple[Range, Range]], name: str) -> None:
    """From the smallest to the largest channel, with a dot at the median."""
    for which, (text, color) in enumerate((("before", BEFORE), (f"after, {name}", AFTER))):
        found = [pair[which] for pair in ranges]
        lines = [y + (-0.15, 0.15)[which] for y in range(len(found))]
        low, median, high = zip(*found, strict=True)
        axis.hlines(lines, low, high, color=color, linewidth=1.5, alpha=0.6)
        axis.plot(median, lines, "o", color=color, markersize=3.5, markeredgewidth=0, label=text)


def _draw_deviations(axis, layers: list[Layer], names: list[str]) -> None:
    """Of each layer's worst channel, for all formulas."""
    for i, name in enumerate(names):
        worst = [layer.worst_deviation(formulas[name]) for layer in layers]
        axis.plot(
            [max(value, SMALLEST) if not math.isnan(value) else value for value in worst],
            range(len(layers)),
            MARKERS[i % len(MARKERS)],
            color=COLORS[i % len(COLORS)],
            markersize=4,
            markeredgewidth=0,
            alpha=0.85,
            label=name,
        )
    axis.set_xscale("log")
    axis.set_xlim(SMALLEST / 2, 3)
    axis.xaxis.set_major_formatter(_percent)
    axis.set_title("deviation from exact, worst channel", fontsize=10, loc="left")


def _percent(value, position):
    text = f"{100 * value:.3f}".rstrip("0").rstrip(".") + "%"
    return f"≤{text}" if math.isclose(value, SMALLEST) else text
