"""The picture of ``python -m bench optimizer``: times as multiples of a copy of the same bytes."""

from __future__ import annotations

from ..common import plot as common
from .measure import Row
from .variants import COPY, TORCH

# Color-blind safe (Okabe and Ito), and the marker.
STYLES = {
    "fused": ("#D55E00", "o"),
    "fused_agc": ("#D55E00", "P"),
    TORCH: ("#0072B2", "s"),
    "torch_foreach": ("#56B4E9", ">"),
    "torch_default": ("#56B4E9", "<"),
    "torch_agc": ("#0072B2", "X"),
    "grouped": ("#E69F00", "D"),
    "norms": ("#009E73", "^"),
    "clip_grad_norm": ("#CC79A7", "v"),
}


def save(path: str, rows: list[Row], caption: str) -> None:
    """A line for each model, optimizer and dtype."""
    size = (8.5, 2.2 + 0.9 * len(rows))
    figure, axis = common.pyplot().subplots(figsize=size, layout="constrained")
    for place, (name, (color, marker)) in enumerate(STYLES.items()):
        lift = 0.7 * ((place + 0.5) / len(STYLES) - 0.5)  # intervals beside each other
        ratios = [(y + lift, row.ratio(name, COPY)) for y, row in enumerate(rows)]
        found = [(y, ratio) for y, ratio in ratios if ratio is not None]
        if not found:
            continue
        ys = [y for y, _ in found]
        axis.hlines(ys, [r.low for _, r in found], [r.high for _, r in found], color, linewidth=1.2)
        axis.plot([r.median for _, r in found], ys, marker, color=color, label=name, markersize=6)
    axis.axvline(1, color="black", linewidth=1, zorder=1)
    axis.set_xscale("log")
    axis.set_xticks([0.2, 0.5, 1, 2, 5, 10, 20], minor=False)
    axis.set_xticks([], minor=True)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    common.style(axis, [row.title for row in rows], grid="x")
    axis.set_ylim(len(rows) - 0.5, -0.5)  # the first on top
    title = "An update of a model's weights, over a copy of the bytes of fused"
    figure.suptitle(title, fontsize=11)
    common.save(figure, path, f"{caption}\nlines: 95 % intervals of the medians")
