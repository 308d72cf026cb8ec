"""What ``python -m torch_ws.inspect`` shows: a progress bar, tables, a summary; and its JSON."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from ._inspect_layers import Layer, by_reason, extreme
from ._inspect_read import Checkpoint
from .formulas import formulas

WHOLE = 10_000  # columns: where there is no terminal, nothing is folded or cut

TEXTS = {
    "layer": lambda layer: escape(layer.name),
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


@contextmanager
def make_progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar over bytes on stderr, if that is a terminal; gives the function that advances it."""
    console = Console(stderr=True)
    columns = (TextColumn("reading"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    hidden = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        task = progress.add_task("", total=total)
        yield lambda count: progress.advance(task, count)


def print_report(
    checkpoint: Checkpoint, layers: list[Layer], left_out: dict[str, str], names: list[str]
) -> None:
    """As wide as the terminal; where there is none whole, as plain text."""
    console = Console(highlight=False)
    text = None if console.is_terminal else io.StringIO()
    if text is not None:
        console = Console(highlight=False, file=text, width=WHOLE)
    console.print(f"[bold]{escape(str(checkpoint.path))}[/] ({escape(checkpoint.what)})\n")
    console.print("[bold]channels[/]", channel_table(layers, console))
    console.print(
        "[bold]deviation from exact standardization[/], of the worst channel that is not dead",
        formula_table(layers, names),
    )
    for line in (*notes(layers, names), *summary(checkpoint, layers, left_out)):
        console.print(line)
    if text is not None:
        print("\n".join(line.rstrip() for line in text.getvalue().splitlines()))


def channel_table(layers: list[Layer], console: Console) -> Table:
    whole = console.options.update(width=WHOLE)
    dropped = [] if any(layer.broken.any() for layer in layers) else ["NaN,\nInf"]
    for narrow in (None, *EXPENDABLE):
        dropped.append(narrow)
        texts = {name: cell for name, cell in TEXTS.items() if name not in dropped}
        numbers = {name: cell for name, cell in NUMBERS.items() if name not in dropped}
        table = _table(texts, numbers)
        for layer in layers:
            style = "red" if layer.broken.any() else None
            cells = (cell(layer) for cell in {**texts, **numbers}.values())
            table.add_row(*cells, style=style)
        if Measurement.get(console, whole, table).maximum <= console.width:
            break
    return table


def formula_table(layers: list[Layer], names: list[str]) -> Table:
    table = _table(["layer"], names)
    worst = {name: [layer.worst_deviation(formulas[name]) for layer in layers] for name in names}
    for i, layer in enumerate(layers):
        table.add_row(escape(layer.name), *(percent(worst[name][i]) for name in names))
    table.add_section()
    known = (torch.tensor(worst[name], dtype=torch.float64) for name in names)
    largest = (extreme(max, values[~values.isnan()]) for values in known)
    table.add_row("the worst", *map(percent, largest), style="bold")
    return table


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
        undefined = [name for name in names if layer.denominators(formulas[name]) is None]
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
    path: str, checkpoint: Checkpoint, layers: list[Layer], left_out: dict[str, str], dead: float
) -> None:
    """All layers and formulas; null where there is no value."""
    found = {
        "schema": 1,
        "checkpoint": str(checkpoint.path),
        "format": checkpoint.what,
        "dead_below": dead,
        "formulas": {name: asdict(formula) for name, formula in formulas.items()},
        "layers": [_layer_as_json(layer) for layer in layers],
        "left_out": left_out,
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


def _table(texts: Iterable[str], numbers: Iterable[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for header in texts:
        table.add_column(header, overflow="fold", vertical="bottom")
    for header in numbers:
        table.add_column(header, justify="right", no_wrap=True, vertical="bottom")
    return table


def number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3g}"


def percent(value: float) -> str:
    """Two digits, yellow from 1 %, red from 10 %."""
    if math.isnan(value):
        return "-"
    text = "<0.001%" if value < 1e-5 else f"{100 * value:{'.2g' if value < 1 else '.0f'}}%"
    return f"[red]{text}[/]" if value >= 0.1 else f"[yellow]{text}[/]" if value >= 0.01 else text


def _share(mask: torch.Tensor) -> str:
    count = int(mask.sum())
    return f"{count} ({count / len(mask):.0%})" if count else "0"
