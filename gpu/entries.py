"""Every entry of the launch tables, every layout and lists, once, on small weights.

compute-sanitizer watches it, too; for its slow tools there is one weight an entry (``--few``). Data
are made and judged on the CPU: no kernels but torch_ws's run on the GPU. The tests judge more
sharply; here it is enough to see that the launches did their work. Each wrong weight is named.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator

import torch
from torch_ws import formulas, reference, standardize, standardize_many
from torch_ws.core.update import raw_norms_many, raw_update_many

from .launch_table import PAIRS, ROWS, STEPS, entries

# In units of the result's epsilon. A wrong sum or a missed element is off by far more.
TOLERANCE = 64
NAMES = ("result", "weight's gradient", "gain's gradient", "shift's gradient")


def make(rows: int, cols: int, dtype: torch.dtype, offset: int = 0) -> torch.Tensor:
    """On the GPU, `offset` elements into its memory."""
    return torch.randn(offset + rows * cols).to(dtype).cuda()[offset:].view(rows, cols)


Errors = dict[str, float]  # in units of what is allowed, by NAMES


def errors_of(inputs: list, out: torch.Tensor, grad: torch.Tensor, grads, **options) -> Errors:
    """Of a weight's result and the gradients of its inputs, against the reference's."""
    doubles = [t.detach().cpu().double().requires_grad_() for t in inputs]
    judge = reference.standardize(*doubles, **options)
    expected = [judge.detach(), *torch.autograd.grad(judge, doubles, grad.cpu().double())]
    allowed = TOLERANCE * max(torch.finfo(t.dtype).eps for t in (*inputs, out))
    found = {}
    for name, actual, value in zip(NAMES, (out, *grads), expected, strict=False):
        error = (actual.detach().cpu().double() - value).abs().max()
        found[name] = (error / value.abs().max().clamp(min=1)).item() / allowed  # a NaN stays one
    return found


def one(weight: torch.Tensor, out_dtype: torch.dtype, offset: int = 0, **options) -> Errors:
    rows = weight.shape[options.get("channel_dim", 0)]
    affine = [torch.randn(rows).to(weight.dtype).cuda() for _ in range(2)]
    inputs = [t.requires_grad_() for t in (weight, *affine)]
    out = standardize(*inputs, dtype=out_dtype, **options)
    # with a part along the weight: the gain's gradient is otherwise the rest of sums that cancel
    values = (torch.randn(weight.shape) + weight.detach().cpu() + 0.5) / 4  # long sums fit float16
    values = values.to(out_dtype).flatten()
    grad = torch.cat([values[:offset], values]).cuda()[offset:].view(weight.shape)
    return errors_of(inputs, out, grad, torch.autograd.grad(out, inputs, grad), **options)


def close(actual: torch.Tensor, value: torch.Tensor) -> float:
    """The error, in units of what is allowed."""
    allowed = TOLERANCE * torch.finfo(actual.dtype).eps
    error = (actual.detach().cpu().double() - value).abs().max()
    return (error / value.abs().max().clamp(min=1)).item() / allowed


def one_step(weight: torch.Tensor, out_dtype: torch.dtype, offset: int = 0) -> Errors:
    """The norms of the gradient, and a step of SGD with momentum."""
    rows, cols = weight.shape
    grad, state = make(rows, cols, out_dtype, offset), make(rows, cols, weight.dtype, offset)
    w = weight.cpu().double().requires_grad_()
    (g,) = torch.autograd.grad(reference.standardize(w), w, grad.cpu().double())
    buffer = 0.9 * state.cpu().double() + g
    updated = w.detach() - 0.1 * buffer
    scalars = [float(number) for number in formulas["paper"].arguments(cols)]
    (norms,) = raw_norms_many([grad], [weight], [None], [0], scalars, False)
    out = torch.empty_like(weight, dtype=out_dtype)
    rule = [0.0, 0.1, 0.0, 0.9, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    vectors = [[None]] * 4
    raw_update_many([out], [weight], [state], [grad], *vectors, [0], scalars, rule, [0], [0.0], [])
    squares = g.square().sum(1)
    return {
        "squared norm": close(norms / squares.float().cuda(), torch.ones(rows).double()),
        "updated weight": close(weight, updated),
        "momentum": close(state, buffer),
        "next result": close(out, reference.standardize(updated)),
    }


def every_step(few: bool = False) -> Iterator[tuple[str, Errors]]:
    """Each entry of the update beside float32 weights."""
    seen = set()
    for out, rows, step in itertools.product(("float32", "bfloat16"), ROWS, STEPS):
        for entry in entries("update", "float32", out, rows, step):
            kind = (out, *(entry.plan[key] for key in ("name", "team", "vector")))
            if kind in seen:
                continue
            seen.add(kind)
            every = itertools.product((entry.longest, entry.shortest), (0, 1))
            for cols, offset in itertools.islice(every, 1 if few else None):
                weight = make(rows, cols, torch.float32, offset)
                found = one_step(weight, getattr(torch, out), offset)
                yield f"{rows}x{cols} at offset {offset}, a step to {out}", found


def every_entry(few: bool = False) -> Iterator[tuple[str, Errors]]:
    """Each entry with the fewest rows that choose it: the shortest and longest, aligned and not."""
    seen = set()
    for names in PAIRS:
        dtypes = [getattr(torch, name) for name in names]
        for direction, rows, step in itertools.product(("forward", "backward"), ROWS, STEPS):
            for entry in entries(direction, *names, rows, step):
                told_apart_by = ("name", "team", "elements", "vector", "threads")
                kind = (*names, direction, *(entry.plan[key] for key in told_apart_by))
                if kind in seen:
                    continue
                seen.add(kind)
                every = itertools.product((entry.longest, entry.shortest), (0, 1))
                for cols, offset in itertools.islice(every, 1 if few else None):
                    weight = make(rows, cols, dtypes[0], offset)
                    title = f"{rows}x{cols} at offset {offset}, {' to '.join(names)}"
                    found = one(weight, dtypes[1], offset)
                    yield f"{title}, entry {entry.plan['name']!r} of {direction}", found


def other_layouts() -> Iterator[tuple[str, Errors]]:
    weight = torch.randn(24, 16, 3, 3)
    last = weight.to(memory_format=torch.channels_last).cuda()
    yield "24x16x3x3, channels_last", one(last, torch.float32)
    yield "24x16x3x3, channel_dim=1", one(weight.cuda(), torch.float32, channel_dim=1)
    found = one(last.detach(), torch.bfloat16, channel_dim=1)
    yield "24x16x3x3, channels_last, channel_dim=1, to bfloat16", found
    yield "24x8x3x3 of 24x16x3x3", one(weight.cuda()[:, 2:10], torch.float32)
    for cols, gap in itertools.product((9, 147, 500, 2000, 5000, 9001, 20_000), (1, 8)):
        rows = make(5, cols + gap, torch.float32)[:, :cols]
        yield f"5x{cols} with gaps of {gap}", one(rows, torch.float32)


def many(out_dtype: torch.dtype | None, count: int) -> Iterator[tuple[str, Errors]]:
    """`count` weights of mixed lengths, and one without elements."""
    dtypes = (torch.float32,) if out_dtype else (torch.float32, torch.bfloat16, torch.float64)
    cols = (9, 147, 576, 2304, 20000)
    weights = [make(3, cols[i % 5], dtypes[i % len(dtypes)], i % 2) for i in range(count)]
    inputs = [w.requires_grad_() for w in (*weights, make(0, 9, torch.float32))]
    outs = standardize_many(inputs, dtype=out_dtype)
    grads = [make(*out.shape, out.dtype) for out in outs]
    found = torch.autograd.grad(outs, inputs, grads)
    for i, (w, out, grad, dw) in enumerate(zip(weights, outs, grads, found, strict=False)):
        title = f"3x{w.shape[1]} at offset {i % 2}, {w.dtype} to {out.dtype}, weight {i} of {count}"
        yield title, errors_of([w], out, grad, [dw])


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser("python3 -m gpu.entries", allow_abbrev=False)
    parser.add_argument("--few", action="store_true", help="of each entry one weight")
    few = parser.parse_args(argv).few
    torch.manual_seed(0)
    lists = [many(None, 40)] + ([] if few else [many(torch.bfloat16, 300)])
    count, wrong, every = 0, 0, []
    steps = every_step(few)
    for title, found in itertools.chain(every_entry(few), steps, other_layouts(), *lists):
        beyond = {name: error for name, error in found.items() if not error <= 1}  # a NaN, too
        for name, error in beyond.items():
            print(f"WRONG: {title}: {name} is off by {error:.2g} of what is allowed", flush=True)
        count, wrong = count + 1, wrong + bool(beyond)
        every += found.values()
    worst = torch.tensor(every).max().item()
    print(f"{count} weights, {wrong} wrong, the worst error {worst:.2g} of what is allowed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
