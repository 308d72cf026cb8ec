"""Peers' formulas, as their users run them: one weight to its standardized weight."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def chained_formula(weight: torch.Tensor) -> torch.Tensor:
    """The authors' repository as of 2019: three chained means, the sample std, plus eps."""
    mean = weight
    for dim in range(1, weight.dim()):
        mean = mean.mean(dim, keepdim=True)
    centred = weight - mean
    std = centred.flatten(1).std(dim=1) + 1e-5
    return centred / std.view(-1, *[1] * (weight.dim() - 1)).expand_as(centred)


def timm_batch_norm(weight: torch.Tensor) -> torch.Tensor:
    """As in timm's StdConv2d: the channels of one sample as a batch norm's."""
    rows = weight.reshape(1, weight.size(0), -1)
    return F.batch_norm(rows, None, None, training=True, momentum=0.0, eps=1e-6).reshape_as(weight)


def layer_norm(weight: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(weight, weight.shape[1:], eps=1e-5)
