"""The picture of ``python -m bench step``: every variant's overhead over the plain step."""

from __future__ import annotations

from ..common import plot as common
from .measure import Row
from .variants import PLAIN

# Color-blind safe (Okabe and Ito), and the marker.
STYLES = {
    "control": ("#000000", "x"),
    "plain_default": ("#56B4E9", "<"),
    "plain_foreach": ("#56B4E9", ">"),
    "formula": ("#666666", "X"),
    "batch_norm": ("#CC79A7", "^"),
    "layer": ("#E69F00", "s"),
    "grouped": ("#D55E00", "o"),
    "held": ("#0072B2", "D"),
    "fused": ("#009E73", "*"),
}
LINEAR = 1.0  # percent, up to which the axis is linear: control is about 0


def save(path: str, rows: list[Row], how: str, caption: str) -> None:
    """A line for each network, batch and number of micro-batches."""
    size = (8.5, 1.9 + 0.5 * len(rows))
    figure, axis = common.pyplot().subplots(figsize=size, layout="constrained")
    _draw(axis, rows)
    axis.set_title(f"Weight standardization: overhead over the plain step\n{how}", fontsize=11)
    intervals = "lines: 95 % intervals of the medians; bands: quartiles of the rounds"
    common.save(figure, path, f"{caption}\n{intervals}")


def _draw(axis, rows: list[Row]) -> None:
    names = [name for name in STYLES if any(name in row.overheads for row in rows)]
    for place, name in enumerate(names):
        color, marker = STYLES[name]
        lift = 0.6 * ((place + 0.5) / len(names) - 0.5)  # whiskers beside each other
        found = [(y + lift, row.overheads[name]) for y, row in enumerate(rows) if name in row.times]
        ys = [y for y, _ in found]
        quartiles = [o.q1 for _, o in found], [o.q3 for _, o in found]
        interval = [o.low for _, o in found], [o.high for _, o in found]
        axis.hlines(ys, *quartiles, color, linewidth=6, alpha=0.3)
        axis.hlines(ys, *interval, color, linewidth=1.2)
        axis.plot([o.median for _, o in found], ys, marker, color=color, label=name, markersize=6)
    axis.axvline(0, color="black", linewidth=1, zorder=1, label=PLAIN)
    highest = max(o.q3 for row in rows for o in row.overheads.values())
    axis.set_xscale("symlog", linthresh=LINEAR, linscale=0.6)
    ticks = [-10, -3, -1, 0, 1, 3, 10, 30, 100, 300, 1000]
    axis.set_xticks([t for t in ticks if t <= 2 * highest or t <= 1], minor=False)
    axis.set_xticks([], minor=True)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    common.style(axis, [row.title for row in rows], grid="x")
    axis.set_ylim(len(rows) - 0.5, -0.5)  # the first on top
