"""How smooth the loss is around a network's weights, after Santurkar et al. 2018, arXiv:1805.11604.

With w_l the weight of convolution l, g_l the loss's gradient there and L the convolutions, weights
are measured in shares of their layer's norm, since the scale of a weight that is normalized, by
standardization or behind its convolution, is arbitrary:

    gradient  G = (|w_l| g_l) over all l, of norm |G|
    a step    w_l - r |w_l| g_l / |g_l|                     r: SHARES; its length is r sqrt(L)
    cosine    of G before and after it                      the gradient's predictiveness
    beta      |G_after - G| / (r sqrt(L))                   the effective smoothness constant

and raw steps w - k lr g, k: FACTORS, as in the paper, with |g_after - g| / |k lr g| as their beta.

Two questions are asked. `Probes.own` follows each network along its own trajectory. The other is
`Probes.same_point`: the network with standardized weights against itself, folded. fold(copy) has
plain convolutions with the weights w_hat; a copy of the network gets these w_hat as its weights,
which standardization leaves as they are. Both are the same function at the same weights; what
differs is the gradient, of which standardization takes off the part along 1 (by the mean) and the
part along w_hat (by the std).
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
import torch_ws
from torch import nn

from .data import Data
from .networks import convolutions
from .settings import Setting

SHARES = (0.01, 0.03, 0.1, 0.3)
FACTORS = (0.5, 1.0, 2.0, 4.0)
IMAGES = 128  # the loss is that of the first training images, as they are
OWN, SAME = 8, 5  # points of a trajectory

Tensors = list[torch.Tensor]


class Probes:
    """Called before each step of a training; collects in `found`."""

    def __init__(self, data: Data, setting: Setting):
        split, steps = data.train, setting.steps
        self.batch = data.normalized(split.images[:IMAGES]), split.labels[:IMAGES]
        self.lr = setting.lr
        self.own_steps = {i * steps // OWN for i in range(OWN)}
        self.same_steps = {(2 * i + 1) * steps // (2 * SAME) for i in range(SAME)}
        self.standardizes = setting.formula is not None
        self.found: dict[str, list] = {"own": [], "same_point": []}

    def __call__(self, step: int, model: nn.Module) -> None:
        if step in self.own_steps:
            self.found["own"].append({"step": step, **self.own(model)})
        if self.standardizes and step in self.same_steps:
            self.found["same_point"].append({"step": step, **self.same_point(model)})

    def own(self, model: nn.Module) -> dict:
        return Point(copy.deepcopy(model), self.batch).measured(self.lr)

    def same_point(self, model: nn.Module) -> dict:
        standardizing = copy.deepcopy(model)
        with torch.no_grad():
            for module in convolutions(standardizing):
                module.weight.copy_(module.standardized_weight())
        plain = Point(torch_ws.fold(copy.deepcopy(model)), self.batch)
        by_mean, by_std = removed(plain)
        return {
            "folded": plain.measured(self.lr),
            "standardized": Point(standardizing, self.batch).measured(self.lr),
            "removed_by_mean": by_mean,
            "removed_by_std": by_std,
        }


class Point:
    """A network's loss and its gradient at its weights; it moves them, and back again."""

    def __init__(self, model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]):
        self.model, self.batch = model, batch
        self.weights = [module.weight for module in convolutions(model)]
        self.start = [w.detach().clone() for w in self.weights]
        self.loss, self.gradient = self._loss_and_gradient()

    def measured(self, lr: float) -> dict:
        norms = [w.norm() for w in self.start]
        shares = {}
        for share in SHARES:
            lengths = [share * w / g.norm() for w, g in zip(norms, self.gradient, strict=True)]
            shares[f"{share:g}"] = self._step(lengths, norms)
        raw = {}
        for factor in FACTORS:
            ones = [torch.ones(())] * len(norms)
            raw[f"{factor:g}"] = self._step([lr * factor] * len(norms), ones)
        gradient = scaled(self.gradient, norms)
        return {
            "loss": self.loss,
            "gradient": norm(gradient).item(),
            "shares": shares,
            "raw": raw,
        }

    def _step(self, lengths: list, units: Tensors) -> dict:
        """After w_l - lengths_l g_l: loss, cosine, beta; weight l is measured in units_l."""
        step = [length * g for length, g in zip(lengths, self.gradient, strict=True)]
        with torch.no_grad():
            for w, start, d in zip(self.weights, self.start, step, strict=True):
                w.copy_(start - d)
        loss, after = self._loss_and_gradient()
        with torch.no_grad():
            for w, start in zip(self.weights, self.start, strict=True):
                w.copy_(start)
        before, after = scaled(self.gradient, units), scaled(after, units)
        change = [b - a for a, b in zip(before, after, strict=True)]
        length = norm([d / unit for d, unit in zip(step, units, strict=True)])
        cosine = sum((a * b).sum() for a, b in zip(before, after, strict=True))
        cosine = cosine / (norm(before) * norm(after))
        return {"loss": loss, "cosine": cosine.item(), "beta": (norm(change) / length).item()}

    def _loss_and_gradient(self) -> tuple[float, Tensors]:
        x, y = self.batch
        loss = F.cross_entropy(self.model(x), y)
        return loss.item(), list(torch.autograd.grad(loss, self.weights))


def removed(plain: Point) -> tuple[float, float]:
    """The parts of |G|^2 along 1 and along w_hat: what standardization's backward takes off."""
    whole = by_mean = by_std = 0.0
    for w, g in zip(plain.start, plain.gradient, strict=True):
        rows, weight = g.flatten(1).double(), w.flatten(1).double()
        square = weight.square().sum()
        whole += square * rows.square().sum()
        by_mean += square * (rows.sum(1).square() / rows.shape[1]).sum()
        along = (rows * weight).sum(1).square() / weight.square().sum(1).clamp(min=1e-30)
        by_std += square * along.sum()
    return (by_mean / whole).item(), (by_std / whole).item()


def scaled(tensors: Tensors, scales: Tensors) -> Tensors:
    return [scale * t for t, scale in zip(tensors, scales, strict=True)]


def norm(tensors: Tensors) -> torch.Tensor:
    """Of all together."""
    return torch.stack([t.norm() for t in tensors]).norm()
