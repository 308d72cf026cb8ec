"""Every entry of the launch tables, every layout and lists, once, on small weights.

compute-sanitizer watches it, too: data are made and judged on the CPU, so that no kernels but
torch_ws's run on the GPU. The tests judge more sharply; here it is enough to see that the launches
did their work.
"""

from __future__ import annotations

import itertools
import sys

import torch
from torch_ws import reference, standardize, standardize_many

from .launch_table import PAIRS, ROWS, STEPS, entries

# In units of the result's epsilon. A wrong sum or a missed element is off by far more.
TOLERANCE = 64


def make(rows: int, cols: int, dtype: torch.dtype, offset: int = 0) -> torch.Tensor:
    """On the GPU, `offset` elements into its memory."""
    return torch.randn(offset + rows * cols).to(dtype).cuda()[offset:].view(rows, cols)


def worst_error(inputs: list, out: torch.Tensor, grad: torch.Tensor, found, **options) -> float:
    """Of a weight's result and the gradients `found`, in units of what is allowed."""
    doubles = [t.detach().double().cpu().requires_grad_() for t in inputs]
    judge = reference.standardize(*doubles, **options)
    expected = [judge.detach(), *torch.autograd.grad(judge, doubles, grad.double().cpu())]
    allowed = TOLERANCE * max(torch.finfo(t.dtype).eps for t in (*inputs, out))
    errors = [
        (actual.detach().double().cpu() - value).abs().max() / value.abs().max().clamp(min=1)
        for actual, value in zip((out, *found), expected, strict=True)
    ]
    return torch.stack(errors).max().item() / allowed  # a NaN stays one


def one(weight: torch.Tensor, out_dtype: torch.dtype, offset: int = 0, **options) -> float:
    rows = weight.shape[options.get("channel_dim", 0)]
    affine = [torch.randn(rows).to(weight.dtype).cuda() for _ in range(2)]
    inputs = [t.requires_grad_() for t in (weight, *affine)]
    out = standardize(*inputs, dtype=out_dtype, **options)
    # with a part along the weight: the gain's gradient is otherwise the rest of sums that cancel
    values = (torch.randn(weight.shape) + weight.detach().cpu() + 0.5).to(out_dtype).flatten()
    grad = torch.cat([values[:offset], values]).cuda()[offset:].view(weight.shape)
    return worst_error(inputs, out, grad, torch.autograd.grad(out, inputs, grad), **options)


def every_entry() -> list[float]:
    """Each entry with the fewest rows that choose it, aligned and not."""
    errors, seen = [], set()
    for names in PAIRS:
        dtypes = [getattr(torch, name) for name in names]
        for direction, rows, step in itertools.product(("forward", "backward"), ROWS, STEPS):
            for entry in entries(direction, *names, rows, step):
                told_apart_by = ("name", "team", "elements", "vector", "threads")
                kind = (*names, direction, *(entry.plan[key] for key in told_apart_by))
                if kind in seen:
                    continue
                seen.add(kind)
                for cols, offset in itertools.product((entry.shortest, entry.longest), (0, 1)):
                    weight = make(rows, cols, dtypes[0], offset)
                    errors.append(one(weight, dtypes[1], offset))
    return errors


def other_layouts() -> list[float]:
    weight = torch.randn(24, 16, 3, 3)
    last = weight.to(memory_format=torch.channels_last).cuda()
    errors = [
        one(last, torch.float32),
        one(weight.cuda(), torch.float32, channel_dim=1),
        one(last.detach(), torch.bfloat16, channel_dim=1),
        one(weight.cuda()[:, 2:10], torch.float32),
    ]
    for cols, gap in itertools.product((9, 147, 500, 2000, 5000, 9001, 20_000), (1, 8)):
        errors.append(one(make(5, cols + gap, torch.float32)[:, :cols], torch.float32))
    return errors


def many(out_dtype: torch.dtype | None, count: int) -> list[float]:
    """`count` weights of mixed lengths, and one without elements."""
    dtypes = (torch.float32,) if out_dtype else (torch.float32, torch.bfloat16, torch.float64)
    cols = (9, 147, 576, 2304, 20000)
    weights = [make(3, cols[i % 5], dtypes[i % len(dtypes)], i % 2) for i in range(count)]
    inputs = [w.requires_grad_() for w in (*weights, make(0, 9, torch.float32))]
    outs = standardize_many(inputs, dtype=out_dtype)
    grads = [make(*out.shape, out.dtype) for out in outs]
    found = torch.autograd.grad(outs, inputs, grads)
    each = zip(inputs[:-1], outs, grads, found, strict=False)
    return [worst_error([w], out, grad, [dw]) for w, out, grad, dw in each]


def main() -> int:
    torch.manual_seed(0)
    errors = every_entry() + other_layouts() + many(None, 40) + many(torch.bfloat16, 300)
    worst = torch.tensor(errors).max().item()
    print(f"{len(errors)} weights, the worst error {worst:.2g} of what is allowed")
    return 0 if worst <= 1 else 1


if __name__ == "__main__":
    sys.exit(main())
