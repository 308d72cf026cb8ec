"""Training by SGD with momentum: the batches, the loss of each step, the accuracy.

A seed fixes the initial weights, the order of the images and which are flipped, the same for all
settings: runs of a seed are pairs. On one thread a run gives the same numbers again.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
import torch_ws
from torch import nn

from .data import Data
from .settings import Setting

BATCH = 32  # images a step
MOMENTUM = 0.9

Labelled = tuple[torch.Tensor, torch.Tensor]  # images (B, 1, H, W), float32; labels (B,), int64


def batches(data: Data, setting: Setting) -> Iterator[Labelled]:
    """Shuffled anew for every pass over the images; half of them mirrored, if that is harmless."""
    generator = torch.Generator().manual_seed(setting.seed)
    split = data.train
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(setting.steps):
        while len(order) < BATCH:
            new = torch.randperm(len(split.images), generator=generator)
            order = torch.cat([order, new])
        chosen, order = order[:BATCH], order[BATCH:]
        x = data.normalized(split.images[chosen])
        mirrored = (torch.rand(BATCH, generator=generator) < 0.5) & data.mirrored
        yield torch.where(mirrored[:, None, None, None], x.flip(-1), x), split.labels[chosen]


def train(
    model: nn.Module,
    setting: Setting,
    batches: Iterator[Labelled],
    observe: Callable[[int, nn.Module], None] | None = None,
) -> list[float]:
    """The loss of every step; fewer than there are steps if one was not finite.

    The learning rate falls from lr to 0 along a cosine. `observe` gets each step before it is made.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=setting.lr, momentum=MOMENTUM)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, setting.steps)
    # MicroBatchNorm2d and GroupNorm need no loop over micro-batches, estimates do
    loops = setting.norm == "bcn_estimated"
    size = setting.micro_batch if loops else BATCH
    curve = []
    model.train()
    for step, (x, y) in enumerate(batches):
        if observe:
            observe(step, model)
        loss = 0.0
        with torch_ws.hold(model) if loops else contextlib.nullcontext():
            for micro_x, micro_y in zip(x.split(size), y.split(size), strict=True):
                part = F.cross_entropy(model(micro_x), micro_y) * (len(micro_x) / len(x))
                part.backward()
                loss += part.item()
        if not math.isfinite(loss):
            break
        curve.append(loss)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return curve


@torch.no_grad()
def accuracy(model: nn.Module, data: Data, count: int) -> float:
    """Of the first `count` test images, in [0, 1]."""
    model.eval()
    right = 0
    images, labels = data.test.images[:count], data.test.labels[:count]
    for x, y in zip(images.split(500), labels.split(500), strict=True):
        right += (model(data.normalized(x)).argmax(1) == y).sum().item()
    return right / len(labels)
