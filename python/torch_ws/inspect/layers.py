"""The layers of a checkpoint and the statistics of their channels, in float64."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import NamedTuple

import torch

from .._check import check_weight
from ..formulas import Formula
from ..reference import denominator
from .stored import Checkpoint, Stored, Unreadable

Tensor = torch.Tensor

CHUNK = 2 * 2**20  # elements read at a time, 16 MiB in float64; but never less than a channel

# What is a weight by its name: also an RNN's weight_hh_l0 and attention's in_proj_weight; and under
# pruning, spectral_norm, weight_norm and parametrize, where its magnitude has another name.
WEIGHT = re.compile(r"weight(_[ih]h_l\d+(_reverse)?|_hr_l\d+(_reverse)?|_orig|_v|\.original1?)?$")


class ChannelStatistics(NamedTuple):
    """One value a channel: two in float64, two counts in int64."""

    mean: Tensor
    std: Tensor
    nan: Tensor
    inf: Tensor


def channel_statistics(weight: Tensor, *, channel_dim: int = 0) -> ChannelStatistics:
    """Mean and population standard deviation of every channel of a weight, in float64.

    Equivalent to, for a convolution's weight:

        std, mean = torch.std_mean(weight.double(), dim=(1, 2, 3), correction=0)
        nan, inf = weight.isnan().sum((1, 2, 3)), weight.isinf().sum((1, 2, 3))

    but some channels at a time: beside the weight it takes some 64 MiB at most (where that is more,
    three channels in float64). The std of a constant channel is exactly 0.

    Args:
        weight: (C, ...), at least 2 dimensions; float32, float64, float16 or bfloat16.
        channel_dim: the dimension of the output channels; 1 for a transposed convolution.

    Returns:
        `mean`, `std` and how many values are `nan` and `inf`: (C,) each, on the weight's device.
        The std of a channel with NaN or Inf is NaN.

    Raises:
        TypeError, ValueError, NotImplementedError: a weight or channel_dim that
            [`torch_ws.standardize`][] refuses, or an empty weight.
    """
    check_weight(weight, channel_dim)
    if weight.numel() == 0:
        raise ValueError(f"weight must not be empty, got shape {tuple(weight.shape)}")
    channel_dim %= weight.dim()
    scratch = make_scratch([weight.numel() // weight.shape[channel_dim]], weight.device)
    return _statistics(Stored.of_tensor(weight), channel_dim, scratch)


def make_scratch(fan_ins: Iterable[int], device: torch.device | str = "cpu") -> Tensor:
    """Where blocks are computed on: one memory for all, as the allocator's would be in pieces."""
    return torch.empty(max(CHUNK, *fan_ins), dtype=torch.float64, device=device)


@torch.no_grad()
def _statistics(stored, channel_dim, scratch, advance=lambda count: None):
    channels = stored.shape[channel_dim]
    step = scratch.numel() // (math.prod(stored.shape) // channels)
    found = []
    for start in range(0, channels, step):
        block = stored.block(channel_dim, start, min(start + step, channels))
        found.append(_block_statistics(block.movedim(channel_dim, 0), scratch))
        advance(block.nbytes)
    return ChannelStatistics(*map(torch.cat, zip(*found, strict=True)))


def _block_statistics(block, scratch):
    rows = scratch[: block.numel()].view(block.shape).copy_(block).flatten(1)
    pivot = rows[:, :1].clone()  # keeps a constant channel exactly constant
    rows -= pivot
    mean = rows.mean(1, keepdim=True)
    rows -= mean
    std = rows.square_().mean(1).sqrt_()
    nan, inf = torch.zeros_like(std, dtype=torch.int64), torch.zeros_like(std, dtype=torch.int64)
    broken = (~std.isfinite()).nonzero()[:, 0]
    values = block[broken].flatten(1)
    nan[broken], inf[broken] = values.isnan().sum(1), values.isinf().sum(1)
    return (pivot + mean)[:, 0], std, nan, inf


class Layer:
    """A weight's statistics: of all finite channels, and channel by channel of the living ones."""

    def __init__(self, name, stored, channel_dim, statistics, dead):
        self.name, self.shape, self.dtype = name, stored.shape, stored.dtype
        self.channel_dim, self.channels = channel_dim, stored.shape[channel_dim]
        self.elements = math.prod(stored.shape)
        self.fan_in = self.elements // self.channels
        mean, std, nan, inf = statistics
        self.nan, self.inf = int(nan.sum()), int(inf.sum())
        self.broken = ~std.isfinite()
        self.constant = std == 0
        self.dead = std <= dead * max(std[~self.broken].tolist(), default=0.0)
        living = ~(self.broken | self.dead)
        self.means, self.stds = mean[living], std[living]
        mean, std = mean[~self.broken], std[~self.broken]
        self.mean = mean.mean().item()
        between = (mean - mean.mean()).square().mean()
        self.std = (std.square().mean() + between).sqrt().item()  # NaN where no channel is finite
        self.condition = (self.stds.max() / self.stds.min()).item() if len(self.stds) else math.nan

    def denominators(self, formula: Formula) -> Tensor | None:
        """The formula's d, for every living channel: w_hat = scale * (w - mean) / d.

        None where the formula is undefined, having a correction >= fan_in.
        """
        eps, eps_mode, correction, center, _ = formula.arguments(self.fan_in)
        if correction >= self.fan_in:
            return None
        square = self.stds**2 if center else self.stds**2 + self.means**2
        var = square * (self.fan_in / (self.fan_in - correction))
        return denominator(var, eps, eps_mode)

    def deviations(self, formula: Formula) -> Tensor | None:
        """norm(w_hat - exact) / norm(exact) of them, with exact = scale * (w - mean) / std."""
        d = self.denominators(formula)
        if d is None:
            return None
        off_center = torch.zeros_like(d) if formula.center else self.means / d
        return (self.stds / d - 1).hypot(off_center)

    def worst_deviation(self, formula: Formula) -> float:
        """The largest of them; NaN where the formula is undefined, or no channel is left."""
        found = self.deviations(formula)
        return math.nan if found is None else extreme(max, found)


def read_layers(
    chosen: dict[str, Stored], transposed: set[str], dead: float, advance: Callable[[int], None]
) -> list[Layer]:
    """Reads all channels; `advance` is told how many bytes were read."""
    dims = {name: int(name in transposed) for name in chosen}
    sizes = (math.prod(chosen[name].shape) // chosen[name].shape[dim] for name, dim in dims.items())
    scratch = make_scratch(sizes)
    found, layers = {}, []
    for name, dim in dims.items():
        stored = chosen[name]
        if (stored.place, dim) not in found:  # of a tensor with several names, once
            found[stored.place, dim] = _statistics(stored, dim, scratch, advance)
        layers.append(Layer(name, stored, dim, found[stored.place, dim], dead))
    return layers


def extreme(choose: Callable, values: Tensor) -> float:
    """The smallest (choose=min) or the largest value; NaN of none."""
    return choose(values.tolist(), default=math.nan)


def choose(
    checkpoint: Checkpoint, include: list[str], exclude: list[str], linear: bool
) -> tuple[dict[str, Stored], dict[str, str]]:
    """The tensors to standardize, and why others that look like weights are left out."""
    included = matching("--include", include, checkpoint)
    excluded = matching("--exclude", exclude, checkpoint)
    chosen, left_out = {}, {}
    for name, stored in checkpoint.tensors.items():
        named = name in included if include else WEIGHT.search(name)
        if not named or name in excluded or len(stored.shape) < 2:
            continue
        if stored.problem:
            left_out[name] = stored.problem
        elif 0 in stored.shape:
            left_out[name] = "empty"
        elif len(stored.shape) == 2 and not linear and not include:
            left_out[name] = "2-d (--linear adds them)"
        else:
            chosen[name] = stored
    if not chosen:
        raise Unreadable(
            f"{checkpoint.path}: no layers found; {_what_is_there(checkpoint, left_out)}"
        )
    return chosen, left_out


def matching(option: str, patterns: list[str], checkpoint: Checkpoint) -> set[str]:
    found = set()
    for pattern in patterns:
        names = [name for name in checkpoint.tensors if fnmatchcase(name, pattern)]
        if not names:
            raise Unreadable(f"{checkpoint.path}: {option} {pattern!r} matches no tensor")
        found.update(names)
    return found


def by_reason(left_out: dict[str, str]) -> str:
    """Such as "2 empty: a.weight, b.weight; 9 float8_e4m3fn: c.weight, ..."."""
    names = defaultdict(list)
    for name, reason in left_out.items():
        names[reason].append(name)
    return "; ".join(f"{len(n)} {reason}: {_few(n)}" for reason, n in names.items())


def _what_is_there(checkpoint, left_out):
    others = [name for name in checkpoint.tensors if name not in left_out]
    there = by_reason(left_out)
    if others:
        there += f"{'; ' * bool(there)}other tensors ({len(others)}): {_few(others)}"
    return there or "it has no tensors"


def _few(names):
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
