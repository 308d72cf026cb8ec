"""What may not be in a kernel's machine code.

Four things are looked at in every kernel of every architecture:

    local memory   a stack frame or a spilled register: the kernel is to live in registers alone
    registers      as many blocks as the launch table says have to fit a multiprocessor
    accesses       where a tensor allows it, a thread moves 16 bytes at a time, or, of the narrower
                   tensor of a kernel that converts, as many elements as those 16 bytes hold
    waits          all loads of a thread's rows are issued before the first is used
"""

from __future__ import annotations

import functools
import itertools
import re
from collections import Counter
from typing import NamedTuple

from machine_code import KERNEL, NAMES, SEVERAL, TYPES, Kernel

MOMENTS, UPDATE, APPLY = range(3)  # ws::Stage


def local_memory(kernel: Kernel) -> str | None:
    spills = [name for name in kernel.memory if name.split(".")[0] in ("LDL", "STL")]
    if kernel.stack or kernel.local or spills:
        found = ", ".join(f"{kernel.memory[name]} {name}" for name in spills) or "unused"
        return (
            f"{kernel.architecture} {kernel.name}: a stack frame of {kernel.stack} bytes, "
            f"{kernel.local} bytes of local memory ({found})"
        )
    return None


# Ways to a row's columns that a kernel has code for: dense rows, and those made of runs.
PATHS = 2
# The first of the scalar tiers in csrc/cuda/launch/tiers.h: rows are split there without vectors.
SCALAR_TIERS = 18
# Accesses of 16 bytes that a thread has of a tensor's 8 KB of flat rows.
FLAT_ACCESSES = 4
# The first architecture with clusters.
CLUSTERS = 90


class Entry(NamedTuple):
    """Of the launch table."""

    access: str
    form: str
    threads: int
    resident: int  # blocks of a multiprocessor
    rows: int  # that a thread has a part of
    groups: int  # of columns, 16 bytes of each, that it reads of them at a time


def numbers_of(match: re.Match) -> list[int]:
    """The numbers among a kernel's arguments."""
    return [int(n) for n in re.findall(r"L(?:[ib]|NS_5StageE)(\d+)E", match["arguments"])]


def entries_of(kernel: Kernel, access: str = "vector") -> list[Entry]:
    """The entries with that access whose code the kernel has."""
    direction, weight, out = kernel.signature
    match = KERNEL.search(kernel.name)
    form = {"batch": "rows"}.get(match["form"], match["form"])
    numbers = numbers_of(match)
    of_pass = "update" if direction == "next" else direction
    table = [
        entry
        for entry in launch_table(of_pass, NAMES[weight], NAMES.get(out, NAMES[weight]))
        if entry.form == form and entry.access == access
    ]
    if form == "rows":  # <Pass, kThreads, kBytes>: all tiers whose blocks have so many threads
        return [entry for entry in table if entry.threads == numbers[0]]
    if form == "cluster":  # <Pass, kTier>: empty for the others
        return table if int(kernel.architecture[3:].rstrip("af")) >= CLUSTERS else []
    return table if numbers[0] < SCALAR_TIERS else []  # <Pass, kTier, kStage>


@functools.cache
def launch_table(direction: str, weight: str, out: str) -> list[Entry]:
    from gpu.launch_table import ROWS, entries  # needs the CUDA library

    found = {}
    for rows, step, cluster in itertools.product(ROWS, (8, 1), (1, 16)):
        for entry in entries(direction, weight, out, rows, step, cluster):
            plan = entry.plan
            groups = plan["elements"] // plan["vector"] * plan["team_rows"]
            facts = (plan["threads"], plan["resident"], plan["team_rows"], groups)
            key = (plan["access"], plan["form"], plan["team"], plan["elements"])
            found[key] = Entry(plan["access"], plan["form"], *facts)
    return list(found.values())


def too_many_registers(kernel: Kernel) -> str | None:
    """Of 65,536, given out to a warp by the 256; None if as many blocks fit as the table says."""
    for entry in entries_of(kernel):
        of_block = -(-kernel.registers // 8) * 8 * entry.threads
        if 65536 // of_block < entry.resident:
            return (
                f"{kernel.architecture} {kernel.name}: {kernel.registers} registers, with which "
                f"{entry.resident} blocks of {entry.threads} threads do not fit a multiprocessor"
            )
    return None


def stage_of(kernel: Kernel) -> int:
    """Of a split row's launches; others do all of a pass."""
    match = KERNEL.search(kernel.name)
    return numbers_of(match)[1] if match["form"] == "split" else APPLY


def takes_step(kernel: Kernel) -> bool:
    return kernel.signature[0] == "update" and stage_of(kernel) != MOMENTS


def too_many_waits(kernel: Kernel) -> str | None:
    """One for each tensor's row, dense or made of runs: what lies between those is another way.

    Of several rows all dense ways are one, and gradients of 4 and of 2 bytes are two tensors. Split
    rows have the same again for the next tile, but where a step is taken. All flat rows of a kernel
    have one stretch of each input. A step waits for its states, and for the largest of them.
    """
    direction, _, out = kernel.signature
    inputs = 1 if direction in ("forward", "next") else 3 if out == SEVERAL else 2
    vector, step = entries_of(kernel), 2 * takes_step(kernel)
    ways = [inputs * PATHS if e.rows == 1 else 1 + inputs * e.rows for e in vector]
    ahead = [2 if e.form == "split" and stage_of(kernel) != UPDATE else 1 for e in vector]
    allowed = sum(n * times + step for n, times in zip(ways, ahead, strict=True))
    if entries_of(kernel, "flat"):
        allowed += (1 if out != SEVERAL else inputs) + FLAT_ACCESSES * 3 * takes_step(kernel)
    if vector and kernel.waits > allowed:
        return (
            f"{kernel.architecture} {kernel.name}: {kernel.waits} times loads are waited for, "
            f"expected {allowed}: some are used before the others of the rows are issued"
        )
    return None


def expected_accesses(kernel: Kernel) -> Counter:
    """How many accesses of at least which width the kernel needs: (opcode, bytes) -> number."""
    direction, weight, out = kernel.signature
    entries = entries_of(kernel)
    reads = PATHS * sum(entry.groups for entry in entries)
    elements = 16 // max(TYPES[weight], TYPES.get(out, 0))  # an access moves as many of all tensors
    of_weight, narrow = elements * TYPES[weight], kernel.narrowest
    of_grad = [of_weight, narrow] if out == SEVERAL else [elements * TYPES.get(out, 0)]
    of_out = [*of_grad, narrow] if out == SEVERAL else of_grad
    if direction == "norms" and stage_of(kernel) == APPLY and "split" in kernel.name:
        return Counter()  # of the moments alone
    needed = Counter({("LDG", of_weight): reads})
    if direction in ("backward", "norms", "update"):
        for width in of_grad:
            needed["LDG", width] += reads
    written = {"backward": [of_weight], "norms": []}.get(direction, of_out)
    for width in written if stage_of(kernel) == APPLY else []:
        needed["STG", width] += reads
    if takes_step(kernel):  # of each tier a group of three states and of the weight, at least
        needed["LDG", of_weight] += 3 * len(entries)
        needed["STG", of_weight] += 4 * len(entries)
    return needed


def narrow_accesses(kernel: Kernel) -> list[str]:
    expected, problems = expected_accesses(kernel), []
    for opcode, width in expected:
        # whoever needs a wider access needs one of this width too
        number = sum(n for (op, w), n in expected.items() if op == opcode and w >= width)
        if kernel.count(opcode, width) < number:
            problems.append(
                f"{kernel.architecture} {kernel.name}: {kernel.count(opcode, width)} {opcode} of "
                f"{width} bytes, expected {number} or more; it has {dict(kernel.memory)}"
            )
    return problems
