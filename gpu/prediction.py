"""What a launch of the kernels should take on a GPU: a PREDICTION from the launch table. Nothing in
here was measured with these kernels.

A launch works on one weight, or on all weights of a list that share a kernel: entries e. Of each:

    B   blocks; w = B / (S R) waves of them, where R blocks fit each of S multiprocessors
    b   bytes that a block reads and writes
    L   life of a block = launch + prologue + latency + sums + scalars + store, of its first tile
    l   the same of all its tiles, if it is a part of a row with many
    i   time that a multiprocessor needs to issue a block's instructions: of flat rows, which have
        so many of them for a byte

With n = sum of B / S blocks a multiprocessor, and u = ceil(n) / n for the one that has the most:

    T_memory = B b / bandwidth                what memory takes: bandwidth is a copy's
    T_waves  = w l (1 - 1 / sum of w) + l - L + T_memory / R
                                              blocks that wait for a place: R others have it, also
                                              while memory moves theirs. Up to one wave l - L
    T_link   = u B b / (S link)               what a multiprocessor moves at most
    T_issue  = u B i / S

    t = node + greatest L + sum over e of (T_memory^p + T_waves^p + T_link^p + T_issue^p)^(1/p)

Flat rows have sums and scalars once for every pass of a block's teams; a cluster shares sums again.
An update, of SGD with momentum, has the sums of backward and then those of forward, and between
them waits for its states, a few columns at a time: in the second-level cache, or in memory those of
flat and split rows. It moves the out, the gradient, and both weight and state twice; its split rows
take four launches, the last two forward's. The norms are backward's without a result.
A row that is split takes two launches, of which the second finds its inputs in the second-level
cache if they fit half of it. A copy takes node + launch + latency + store + bytes / bandwidth. In
flight a multiprocessor has min(R, n) times the inputs that a block holds at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from torch_ws import _C

ESTIMATE = "estimate"
DATASHEET = "datasheet"
SEEN = "read off a card"
COUNTED = "counted in machine code for 9.0"


def constant(value: float, unit: str, source: str):
    return field(default=value, metadata={"unit": unit, "source": source})


@dataclass(frozen=True)
class Constants:
    node: float = constant(1.0, "us", ESTIMATE)  # between two nodes of a CUDA graph
    launch: float = constant(0.2, "us", ESTIMATE)  # of a block
    prologue: float = constant(0.35, "us", ESTIMATE)  # parameters, the entry, addresses
    latency: float = constant(0.65, "us", ESTIMATE)  # of memory that is not busy
    sums_forward: float = constant(0.5, "us", ESTIMATE)  # of a block; within a warp half of it
    sums_backward: float = constant(0.9, "us", ESTIMATE)
    scalars: float = constant(0.2, "us", ESTIMATE)  # of a row: a root and a division
    store: float = constant(0.1, "us", ESTIMATE)
    cluster: float = constant(0.4, "us", ESTIMATE)  # two barriers, and each other's sums
    combine: float = constant(1.0, "us", ESTIMATE)  # the moments of a split row
    cached: float = constant(1.5, "x bandwidth", ESTIMATE)  # of the second-level cache
    link: float = constant(100, "bytes/ns", ESTIMATE)  # 64 bytes a clock, less what nobody reaches
    clock: float = constant(1.75, "GHz", DATASHEET)
    schedulers: float = constant(4, "a multiprocessor", DATASHEET)
    issuing: float = constant(0.65, "of the clocks", ESTIMATE)
    # Of a pass over flat rows, for teams of 1, 8 and 32 threads with 8 to 28 elements each. Columns
    # that a row does not have are predicated off, and take their instructions all the same.
    pass_base: float = constant(250, "instructions", COUNTED)
    pass_element: float = constant(10.5, "instructions an element", COUNTED)
    pass_halving: float = constant(5, "instructions a halving of the team", COUNTED)
    pass_backward: float = constant(1.8, "x forward", COUNTED)
    near: float = constant(0.25, "us", ESTIMATE)  # latency of the second-level cache
    at_once: float = constant(32, "bytes of a state", COUNTED)  # csrc/cuda/update_rows.cuh
    at_once_of_wide: float = constant(
        16, "bytes of a state", COUNTED
    )  # where w and g have over 128
    p: float = constant(6, "", ESTIMATE)

    @property
    def copy(self) -> float:
        """What a copy takes beyond its bytes, us."""
        return self.node + self.launch + self.latency + self.store


@dataclass(frozen=True)
class Chip:
    name: str
    multiprocessors: int
    bandwidth: float  # of a copy, bytes read and bytes written, TB/s
    source: str  # of bandwidth
    cache: float  # second level, MB
    cluster: int  # blocks of one, at most


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("A100", 108, 0.9 * 2.04, f"{DATASHEET}, of 80 GB, x 0.9", 40, 1),
        Chip("H100", 132, 3.0, SEEN, 50, 16),
        Chip("H200", 132, 4.3, SEEN, 60, 16),
        Chip("B200", 148, 0.9 * 8.0, f"{DATASHEET} x 0.9", 126, 16),
    )
}

WARP = 32
BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


class Call(NamedTuple):
    """What is predicted: a weight, or all weights of a model at once."""

    title: str
    weights: tuple[tuple[int, int], ...]  # [rows, cols]
    direction: str
    dtype: str  # of the weights, or weights:outputs

    @classmethod
    def of(cls, workload, dtype: str, direction: str) -> Call:
        """Of the benchmark's workload."""
        weights = tuple((shape[0], math.prod(shape[1:])) for shape in workload.shapes)
        return cls(workload.title, weights, direction, dtype)

    def __str__(self) -> str:
        return f"{self.title}, {self.dtype}, {self.direction}"

    @property
    def names(self) -> tuple[str, str]:
        """The dtypes of the weights and of the outputs."""
        weight, _, out = self.dtype.partition(":")
        return weight, out or weight

    @property
    def read(self) -> int:
        """Bytes for each element."""
        weight, out = (BYTES[name] for name in self.names)
        read = {"forward": weight, "update": 2 * weight + out}
        return read.get(self.direction, weight + out)

    @property
    def written(self) -> int:
        weight, out = (BYTES[name] for name in self.names)
        written = {"backward": weight, "norms": 0, "update": 2 * weight + out}
        return written.get(self.direction, out)

    @property
    def held(self) -> int:
        """Bytes of an element in flight at once: all that is read, but an update's states."""
        return self.read - (BYTES[self.names[0]] if self.direction == "update" else 0)

    @property
    def moved(self) -> int:
        return (self.read + self.written) * sum(rows * cols for rows, cols in self.weights)


class Part(NamedTuple):
    """What a launch has of one weight."""

    launch: tuple  # parts with the same share one
    blocks: int  # B
    resident: int  # R
    held: float  # bytes of inputs that a block has in flight
    moved: float  # B b
    cached: float  # bytes of them that the second-level cache has
    first: float  # L, us
    life: float  # l, us
    issue: float  # i, us


@dataclass(frozen=True)
class Prediction:
    plans: list[dict]  # of _C.launch_plan, of each weight
    launches: int
    blocks: int
    waves: float
    in_flight: float  # KB a multiprocessor
    us: float
    copy_us: float

    @property
    def of_copy(self) -> float:
        """The fraction of a copy's speed."""
        return self.copy_us / self.us


def predict(
    call: Call, chip: Chip, c: Constants | None = None, plans: list[dict] | None = None
) -> Prediction:
    """RuntimeError where no CUDA library is built, since that has the launch table."""
    c = c or Constants()
    if plans is None:
        weight, out = call.names
        options = {"direction": call.direction, "weight": weight, "out": out}
        plans = [_C.launch_plan(*w, **options, cluster=chip.cluster) for w in call.weights]
    launches: dict[tuple, list[Part]] = {}
    for i, (rows, cols) in enumerate(call.weights):
        for part in parts_of(plans[i], i, rows, cols, call, chip, c):
            launches.setdefault(part.launch, []).append(part)
    # a split row's later launches have the blocks of its first
    later = ("update", "moments of the new", "apply")
    parts = [part for each in launches.values() for part in each if part.launch[0] not in later]
    return Prediction(
        plans,
        len(launches),
        sum(part.blocks for part in parts),
        waves_of(parts, chip),
        in_flight(parts, chip),
        sum(launch_us(each, chip, c) for each in launches.values()),
        c.copy + call.moved / (chip.bandwidth * 1e6),
    )


def parts_of(
    plan: dict, index: int, rows: int, cols: int, call: Call, chip: Chip, c: Constants
) -> list[Part]:
    """Of weight number `index`: one part, or of split rows one for each of the launches."""
    forward, update = call.direction == "forward", call.direction == "update"
    team = plan["team"]
    rows_of_block = min(rows, plan["rows"])
    of_block = rows_of_block * cols / plan["chunks"]
    start = c.launch + c.prologue
    again = (c.sums_forward if update else 0) / (2 if team <= WARP else 1)
    sums = (c.sums_forward if forward else c.sums_backward) / (2 if team <= WARP else 1)
    width = BYTES[call.names[0]]
    at_once = c.at_once if plan["elements"] * width <= 128 else c.at_once_of_wide
    of_thread = math.ceil(rows_of_block * cols / plan["chunks"] / plan["threads"])
    step = math.ceil(of_thread * width / at_once) * c.near if update else 0
    held, passes, issue = of_block, 1, 0.0
    if plan["access"] == "flat":
        passes = math.ceil(rows_of_block / (plan["threads"] // team))
        instructions = c.pass_base + c.pass_element * plan["elements"]
        instructions += c.pass_halving * math.log2(team)
        instructions *= passes * plan["threads"] / WARP
        instructions *= (1 if forward else c.pass_backward) + (1 if update else 0)
        step = math.ceil(of_thread * width / 16) * c.latency if update else 0
        issue = instructions / (c.schedulers * c.clock * 1e3 * c.issuing)
    else:
        # of a split row this tile and the next
        tiles_at_once = 2 if plan["form"] == "split" else plan["team_rows"]
        held = min(of_block, plan["threads"] * plan["elements"] * tiles_at_once)
    blocks, resident = plan["blocks"], plan["resident"]
    common = {"blocks": blocks, "resident": resident, "held": held * call.held, "issue": issue}
    read, written = rows * cols * call.read, rows * cols * call.written
    if plan["form"] == "split":  # of each weight, launches of its own
        cached = read if read <= chip.cache * 1e6 / 2 else 0
        more = math.ceil(of_block / (team * plan["elements"])) - 1  # tiles after the first
        moments = start + c.latency + sums
        common["life"] = moments + more * max(c.latency, sums)
        inputs = rows * cols * call.held
        parts = [Part(("moments", index), moved=inputs, cached=0, first=moments, **common)]
        if update:
            tile = c.latency + c.scalars + step / c.near * c.latency / (more + 1)
            first = start + max(c.latency, c.combine) + tile
            common["life"] = first + more * tile
            moved = {"moved": read + 2 * rows * cols * width, "cached": cached}
            parts.append(Part(("update", index), first=first, **moved, **common))
            read, written = rows * cols * width, rows * cols * BYTES[call.names[1]]
            cached = min(cached, read)
            moments = start + c.latency + c.sums_forward
            common["life"] = moments + more * max(c.latency, c.sums_forward)
            new = {"moved": read, "cached": cached}
            parts.append(Part(("moments of the new", index), first=moments, **new, **common))
        apply = start + max(c.latency, c.combine) + c.scalars + c.store
        common["life"] = apply + more * c.latency
        moved = {"moved": read + written, "cached": cached}
        return [*parts, Part(("apply", index), first=apply, **moved, **common)]
    life = start + c.latency + passes * (sums + again + c.scalars) + step + c.store
    launch = ("rows", plan["threads"])
    if plan["form"] == "cluster":
        launch, life = ("cluster", index), life + c.cluster
    return [Part(launch, moved=read + written, cached=0, first=life, life=life, **common)]


def launch_us(parts: list[Part], chip: Chip, c: Constants) -> float:
    """t of one launch."""
    each = sum(part.blocks for part in parts) / chip.multiprocessors
    uneven = math.ceil(each) / each
    waiting = max(0, 1 - 1 / waves_of(parts, chip))
    us = c.node + max(part.first for part in parts)
    for part in parts:
        memory = (part.moved - part.cached * (1 - 1 / c.cached)) / (chip.bandwidth * 1e6)
        waves = waves_of([part], chip) * part.life * waiting + part.life - part.first
        terms = (
            memory,
            waves + (memory / part.resident if waiting else 0),
            uneven * part.moved / chip.multiprocessors / (c.link * 1e3),
            uneven * part.blocks / chip.multiprocessors * part.issue,
        )
        us += sum(term**c.p for term in terms) ** (1 / c.p)
    return us


def waves_of(parts: list[Part], chip: Chip) -> float:
    return sum(part.blocks / part.resident for part in parts) / chip.multiprocessors


def in_flight(parts: list[Part], chip: Chip) -> float:
    """KB of inputs a multiprocessor; of a list, in the mean of its blocks."""
    blocks = sum(part.blocks for part in parts)
    held = (min(p.resident, blocks / chip.multiprocessors) * p.held * p.blocks for p in parts)
    return sum(held) / blocks / 1e3
