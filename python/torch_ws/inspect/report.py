"""What ``python -m torch_ws.inspect`` shows: a progress bar, tables, a summary; and its JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from rich import progress
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from ..formulas import formulas
from .compare import Similarity
from .layers import Layer, by_reason, extreme
from .stored import Checkpoint, printable
from .table import Column, table_lines, table_width

# What the first table says of a layer, column by column.
TEXTS = {
    "layer": lambda layer: layer.name,
    "dtype": lambda layer: layer.dtype,
    "shape": lambda layer: "×".join(map(str, layer.shape)) + " transposed" * layer.channel_dim,
}
NUMBERS = {
    "C": lambda layer: str(layer.channels),
    "N": lambda layer: str(layer.fan_in),
    "mean": lambda layer: number(layer.mean),
    "std": lambda layer: number(layer.std),
    "smallest\nchannel\nstd": lambda layer: number(extreme(min, layer.stds)),
    "largest\nchannel\nstd": lambda layer: number(extreme(max, layer.stds)),
    "condi-\ntion": lambda layer: number(layer.condition),
    "largest\n|mean|\n/ std": lambda layer: number(extreme(max, (layer.means / layer.stds).abs())),
    "dead": lambda layer: _share(layer.dead),
    "NaN,\nInf": lambda layer: str(layer.nan + layer.inf),
}
# left out of terminals that are too narrow, in this order; shape says as much as C and N
EXPENDABLE = ("dtype", "C", "N", "mean", "std")


class Comparison(NamedTuple):
    checkpoint: Checkpoint
    formula: str
    layers: list[Similarity]


@contextmanager
def make_progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar over bytes on stderr, if that is a terminal; gives the function that advances it."""
    console = Console(stderr=True)
    columns = (
        progress.TextColumn("reading"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
    )
    hidden = not console.is_terminal
    with progress.Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task("", total=total)
        yield lambda count: bar.advance(task, count)


def print_report(
    checkpoint: Checkpoint,
    layers: list[Layer],
    left_out: dict[str, str],
    names: list[str],
    comparison: Comparison | None,
) -> None:
    """As wide as the terminal; where there is none whole, as plain text."""
    console = Console(highlight=False)
    width = console.width if console.is_terminal else math.inf

    def show(line: Text) -> None:
        if console.is_terminal:
            console.print(line, soft_wrap=True)
        else:
            print(line.plain.rstrip())

    def show_markup(*lines: str) -> None:
        for line in lines:
            show(Text.from_markup(line, emoji=False))

    where = escape(printable(str(checkpoint.path)))
    show_markup(f"[bold]{where}[/] ({escape(printable(checkpoint.what))})", "", "[bold]channels[/]")
    for line in channel_table(layers, width):
        show(line)
    show_markup(
        "[bold]deviation from exact standardization[/], of the worst channel that is not dead"
    )
    for line in formula_table(layers, names, width):
        show(line)
    if comparison is not None:
        other = escape(printable(str(comparison.checkpoint.path)))
        show_markup(f"[bold]similarity of the weights to those of {other}[/], from the input on")
        for line in similarity_table(comparison, width):
            show(line)
    show_markup(*notes(layers, names), *summary(checkpoint, layers, left_out))


def channel_table(layers: list[Layer], width: float) -> Iterator[Text]:
    styles = ["red" if layer.broken.any() else "" for layer in layers]
    columns = {
        name: Column(name, [cell(layer) for layer in layers], name in NUMBERS)
        for name, cell in {**TEXTS, **NUMBERS}.items()
    }
    if not any(styles):
        del columns["NaN,\nInf"]
    for name in EXPENDABLE:
        if table_width(columns.values()) > width:
            del columns[name]
    return table_lines(list(columns.values()), styles, width)


def formula_table(layers: list[Layer], names: list[str], width: float) -> Iterator[Text]:
    """With an empty line before the largest deviation of each formula."""
    columns = [Column("layer", [layer.name for layer in layers] + ["", "the worst"])]
    for name in names:
        worst = [layer.worst_deviation(formulas[name]) for layer in layers]
        known = [value for value in worst if not math.isnan(value)]
        largest = max(known, default=math.nan)
        cells = [percent(value) for value in worst] + ["", percent(largest)]
        columns.append(Column(name, cells, True))
    return table_lines(columns, [""] * len(layers) + ["", "bold"], width)


def similarity_table(comparison: Comparison, width: float) -> Iterator[Text]:
    """With the other checkpoint's name beside a layer's where it is another."""
    _, formula, rows = comparison
    names = [row.name if row.name == row.other else f"{row.name} / {row.other}" for row in rows]
    stored = [number(row.stored) for row in rows]
    standardized = [number(row.standardized) for row in rows]
    columns = [
        Column("layer", names),
        Column("as\nstored", stored, True),
        Column(f"standardized\nby {formula}", standardized, True),
    ]
    return table_lines(columns, [""] * len(rows), width)


def notes(layers: list[Layer], names: list[str]) -> Iterator[str]:
    """What is wrong with single layers, a line for each."""
    for layer in layers:
        found = []
        broken, constant = int(layer.broken.sum()), int(layer.constant.sum())
        if broken:
            count = f"{broken} of {layer.channels} channels, which count nowhere else"
            found.append(f"{layer.nan} NaN and {layer.inf} Inf in {count}")
        if layer.fan_in == 1:
            found.append("one element a channel: standardized, the weight is 0")
        elif constant:
            found.append(f"{constant} of {layer.channels} channels are constant: standardized, 0")
        undefined = [name for name in names if formulas[name].correction >= layer.fan_in]
        if undefined:
            found.append(f"no {', '.join(undefined)}: the sample variance needs N > 1")
        if found:
            yield f"[yellow]{escape(layer.name)}[/]: {'; '.join(found)}"


def summary(checkpoint: Checkpoint, layers: list[Layer], left_out: dict[str, str]) -> Iterator[str]:
    elements = sum(layer.elements for layer in layers)
    everything = sum(math.prod(stored.shape) for stored in checkpoint.tensors.values())
    channels = sum(layer.channels for layer in layers)
    dead = sum(int(layer.dead.sum()) for layer in layers)
    broken = sum(int(layer.broken.sum()) for layer in layers)
    found = [f"{len(layers)} layers with {elements:,} of {everything:,} values"]
    found.append(f"{channels:,} channels, {dead:,} dead")
    if broken:
        found.append(f"[red]{broken:,} with NaN or Inf[/]")
    known = [layer for layer in layers if not math.isnan(layer.condition)]
    if known:
        worst = max(known, key=lambda layer: layer.condition)
        found.append(f"largest condition {number(worst.condition)} ({escape(worst.name)})")
    yield f"[bold]{'; '.join(found)}[/]"
    if left_out:
        yield f"left out: {escape(by_reason(left_out))}"


def write_json(
    path: str,
    checkpoint: Checkpoint,
    layers: list[Layer],
    left_out: dict[str, str],
    dead: float,
    comparison: Comparison | None,
) -> None:
    """All layers and formulas; null where there is no value."""
    found: dict = {
        "schema": 1,
        "checkpoint": str(checkpoint.path),
        "format": checkpoint.what,
        "dead_below": dead,
        "formulas": {name: asdict(formula) for name, formula in formulas.items()},
        "layers": [_layer_as_json(layer) for layer in layers],
        "left_out": left_out,
    }
    if comparison is not None:
        other, formula, rows = comparison
        found["comparison"] = {
            "checkpoint": str(other.path),
            "format": other.what,
            "formula": formula,
            "layers": [_similarity_as_json(row) for row in rows],
        }
    Path(path).write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")


def _layer_as_json(layer: Layer) -> dict:
    deviations = {name: layer.worst_deviation(formula) for name, formula in formulas.items()}
    return {
        "name": layer.name,
        "shape": layer.shape,
        "dtype": layer.dtype,
        "channel_dim": layer.channel_dim,
        "channels": layer.channels,
        "fan_in": layer.fan_in,
        "mean": _or_none(layer.mean),
        "std": _or_none(layer.std),
        "channel_std": _spread(layer.stds),
        "channel_mean_over_std": _spread(layer.means / layer.stds),
        "condition": _or_none(layer.condition),
        "dead_channels": _indices(layer.dead),
        "constant_channels": _indices(layer.constant),
        "nan": layer.nan,
        "inf": layer.inf,
        "nan_or_inf_channels": _indices(layer.broken),
        "deviation": {name: _or_none(value) for name, value in deviations.items()},
    }


def _similarity_as_json(row: Similarity) -> dict:
    values = {"stored": _or_none(row.stored), "standardized": _or_none(row.standardized)}
    return {"name": row.name, "other": row.other, **values}


def _spread(values: torch.Tensor) -> dict[str, float] | None:
    """Of the channels that are neither dead nor broken."""
    if not len(values):
        return None
    quartiles = values.quantile(torch.tensor([0, 0.25, 0.5, 0.75, 1], dtype=values.dtype)).tolist()
    return dict(zip(("min", "q1", "median", "q3", "max"), quartiles, strict=True))


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _indices(mask: torch.Tensor) -> list[int]:
    return mask.nonzero()[:, 0].tolist()


def number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3g}"


def percent(value: float) -> Text | str:
    """Two digits, yellow from 1 %, red from 10 %."""
    if math.isnan(value):
        return "-"
    text = "<0.001%" if value < 1e-5 else f"{100 * value:{'.2g' if value < 1 else '.0f'}}%"
    return text if value < 0.01 else Text(text, "red" if value >= 0.1 else "yellow")


def _share(mask: torch.Tensor) -> str:
    count = int(mask.sum())
    return f"{count} ({count / len(mask):.0%})" if count else "0"
