"""What the pictures have in common."""

from __future__ import annotations


def pyplot():
    """matplotlib's, for files alone."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


def style(axis, titles: list[str], grid: str) -> None:
    """A line for each title, and a grid."""
    axis.set_yticks(range(len(titles)), titles, fontsize=9)
    axis.grid(axis=grid, color="#DDDDDD", linewidth=0.6)
    axis.tick_params(length=0)
    axis.spines[["top", "right", "left"]].set_visible(False)


def save(figure, path: str, caption: str) -> None:
    """With one legend for all of the figure's axes."""
    handles = {}
    for axis in figure.axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(
        handles.values(),
        handles.keys(),
        title=caption,
        title_fontsize=8,
        loc="outside lower center",
        ncols=min(len(handles), 5),
        frameon=False,
    )
    figure.savefig(path, dpi=150)
    pyplot().close(figure)
