"""The picture of a run: every provider's time as a multiple of a copy of the same bytes."""

from __future__ import annotations

import math

from ..common import plot as common
from ..common.report import number
from .providers import COPY, OURS
from .record import Row
from .report import TITLES

# Color-blind safe (Okabe and Ito). torch_ws is the large dot, drawn below the others' markers.
STYLES = {
    OURS: ("#D55E00", "o", 11),
    "compile": ("#0072B2", "s", 6),
    "layer_norm": ("#009E73", "D", 6),
    "batch_norm": ("#CC79A7", "^", 7),
    "formula": ("#666666", "X", 7),
}
OTHERS = (("#E69F00", "v", 7), ("#56B4E9", "<", 7), ("#000000", ">", 7))


def save(path: str, rows: list[Row], caption: str) -> None:
    """A column of panels for each direction, a row for each dtype, a line for each workload."""
    directions = list(dict.fromkeys(row.direction for row in rows))
    dtypes = list(dict.fromkeys(row.dtype for row in rows))
    lines = len({row.workload.name for row in rows})
    figure, axes = common.pyplot().subplots(
        len(dtypes),
        len(directions),
        figsize=(1.6 + 4.8 * len(directions), 1.3 + (0.6 + 0.36 * lines) * len(dtypes)),
        squeeze=False,
        sharex=True,
        sharey=True,  # the same workloads in every panel
        layout="constrained",
    )
    for y, dtype in enumerate(dtypes):
        for x, direction in enumerate(directions):
            panel = [r for r in rows if (r.dtype, r.direction) == (dtype, direction)]
            _draw(axes[y][x], panel)
            axes[y][x].set_title(f"{TITLES[direction]}, {dtype}", fontsize=11, loc="left")
    figure.suptitle(
        "Weight standardization: time as a multiple of copying the same bytes (left is faster)",
        fontsize=12,
    )
    common.save(figure, path, caption)


def _draw(axis, panel: list[Row]) -> None:
    """Medians, with lines from quartile to quartile, over the median of the copy."""
    from matplotlib.ticker import LogLocator, NullLocator

    names = dict.fromkeys(name for row in panel for name in row.times if name != COPY)
    others = iter(OTHERS * len(names))
    for name in names:
        color, marker, size = STYLES.get(name) or next(others)
        lines = [(y, row) for y, row in enumerate(panel) if name in row.times]
        ratios = [row.ratio(name, COPY) for _, row in lines]
        timings = [(row.times[name], row.times[COPY].median) for _, row in lines]
        below = [(timing.median - timing.q1) / copy for timing, copy in timings]
        above = [(timing.q3 - timing.median) / copy for timing, copy in timings]
        axis.errorbar(
            ratios,
            [y for y, _ in lines],
            xerr=(below, above),
            fmt=marker,
            markersize=size,
            color=color,
            markeredgewidth=0,
            elinewidth=1,
            label=name,
            zorder=2 if name == OURS else 3,
        )
    for y, row in enumerate(panel):
        ratio = row.ratio(OURS, COPY)
        if math.isnan(ratio):
            continue
        axis.annotate(
            number(ratio),
            (ratio, y),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=7.5,
            color=STYLES[OURS][0],
        )
    axis.axvline(1, color="black", linewidth=1, zorder=1)
    axis.set_xscale("log")
    slowest = max(row.ratio(name, COPY) for row in panel for name in row.times)
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if slowest < 100 else (1,)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    common.style(axis, [row.title for row in panel], grid="both")
    axis.set_ylim(len(panel) - 0.4, -0.7)  # the first workload on top
