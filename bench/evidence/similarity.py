"""Whether networks that learned the same are told from others by their weights alone.

torch_ws.weight_similarity compares chains of standardized convolutions layer by layer. A network
trained on the classes is compared with three of another initialization: one that was trained on
the same task with the images in another order, one trained on another task (by how many quarter
turns an image was rotated), and one that was not trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
import torch_ws
from torch import nn

from .data import Data
from .networks import convolutions, make, make_chain
from .settings import Setting
from .training import Labelled, batches, train

OTHER = 1000  # added to a seed
TURNS = 4


def compare(setting: Setting, data: Data) -> tuple[dict, list[float]]:
    """The similarities of each layer, and the curve of the first network."""
    other = replace(setting, seed=setting.seed + OTHER)
    network, curve = _trained(setting, data, data.classes, batches(data, setting))
    same_task, _ = _trained(other, data, data.classes, batches(data, other))
    other_task, _ = _trained(other, data, TURNS, _turned(batches(data, other), other))
    untrained = make(other, data.side, data.classes, make_chain)
    layers = [name for name, m in network.named_modules() if m in convolutions(network)]
    compared = {"same_task": same_task, "other_task": other_task, "untrained": untrained}
    similarity = {
        name: torch_ws.weight_similarity(network, model, layers) for name, model in compared.items()
    }
    return similarity, curve


def _trained(
    setting: Setting, data: Data, classes: int, batches: Iterator[Labelled]
) -> tuple[nn.Sequential, list[float]]:
    model = make(setting, data.side, classes, make_chain)
    return model, train(model, setting, batches)


def _turned(batches: Iterator[Labelled], setting: Setting) -> Iterator[Labelled]:
    """Images turned by 0 to 3 quarters, and these as labels."""
    generator = torch.Generator().manual_seed(setting.seed)
    for x, _ in batches:
        turns = torch.randint(TURNS, (len(x),), generator=generator)
        turned = [image.rot90(int(turn), (1, 2)) for image, turn in zip(x, turns, strict=True)]
        yield torch.stack(turned), turns
