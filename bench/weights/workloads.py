"""What is standardized: single weights by their shape, and every weight of published models.

The models' shapes are data, models.json, in the order of each model's definition. `source` names
the paper and the file the shapes are from, `note` which convolutions are standardized there.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch

Shape = tuple[int, ...]

# The single weights of a run without --shapes, and why each is there.
SHAPES = {
    "64x3x7x7": "ResNet's stem: rows of 147 elements, which no vector length divides",
    "512x1x3x3": "depthwise: rows of 9 elements",
    "256x64x1x1": "ResNet's shortest rows, and a weight that fits the second-level cache",
    "512x128x3x3": "a middling layer: 2.4 MB in float32",
    "2048x1024x1x1": "many rows of a 1x1 convolution, 8.4 MB",
    "512x512x3x3": "ResNet's largest layer, 9.4 MB",
    "256x256x3x3x3": "a 3-D convolution: rows of 6912 elements",
    "4096x4096": "a linear layer of 67 MB: larger than most last-level caches",
}
OVERHEAD_SHAPE = "8x8"  # so little work that a call costs what calling costs
DEFAULT_MODELS = ("resnet50", "unet3d")  # all six take minutes, most of them torch.compile's

MODELS: dict[str, dict] = json.loads(
    Path(__file__).with_name("models.json").read_text(encoding="utf-8")
)


@dataclass(frozen=True)
class Workload:
    """The weights that one timed call standardizes."""

    name: str
    title: str
    kind: str  # "weight", "model" or "overhead"
    shapes: tuple[Shape, ...]

    @property
    def elements(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes)

    @property
    def rows(self) -> int:
        return sum(shape[0] for shape in self.shapes)


@dataclass(frozen=True)
class Tensors:
    weights: list[torch.Tensor]
    grads: list[torch.Tensor]  # of the standardized weights, in their dtype

    def clone(self) -> Tensors:
        weights = [weight.detach().clone().requires_grad_() for weight in self.weights]
        return Tensors(weights, [grad.clone() for grad in self.grads])


def parse_shape(text: str) -> Shape:
    """``"512x128x3x3"`` as a tuple; ValueError where that is no weight to standardize."""
    parts = text.split("x")
    if len(parts) < 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"a shape is written like 512x128x3x3, not {text!r}")
    shape = tuple(int(part) for part in parts)
    if math.prod(shape[1:]) < 2:
        raise ValueError(f"{text}: one element a channel has no standard deviation")
    return shape


def model_shapes(name: str) -> list[Shape]:
    """The shapes of a model's standardized weights, in the model's order."""
    shapes = []
    for block in MODELS[name]["blocks"]:
        if "model" in block:
            shapes += model_shapes(block["model"])
        else:
            shapes += [parse_shape(text) for text in block["weights"]] * block.get("times", 1)
    return shapes


def weight_workload(text: str, kind: str = "weight") -> Workload:
    return Workload(text, text, kind, (parse_shape(text),))


def model_workload(name: str) -> Workload:
    return Workload(name, MODELS[name]["title"], "model", tuple(model_shapes(name)))


def make_tensors(
    workload: Workload, dtype: torch.dtype, out_dtype: torch.dtype, device: str
) -> Tensors:
    """The same random data at every call: He's initialization, with a mean worth subtracting."""
    generator = torch.Generator().manual_seed(0)
    weights, grads = [], []
    for shape in workload.shapes:
        std = math.sqrt(2 / math.prod(shape[1:]))
        weight = (torch.randn(shape, generator=generator) + 0.1) * std
        weights.append(weight.to(device, dtype).requires_grad_())
        grads.append(torch.randn(shape, generator=generator).to(device, out_dtype))
    return Tensors(weights, grads)


def moved_bytes(direction: str, elements: int, dtype: torch.dtype, out_dtype: torch.dtype) -> int:
    """The memory traffic that the mathematics needs, with every row kept in registers or cache.

    forward: read w, write y. backward: read w, read g (of y's dtype), write dw. What a provider
    moves beyond that shows as fewer GB/s.
    """
    forward = elements * (dtype.itemsize + out_dtype.itemsize)
    backward = elements * (dtype.itemsize + out_dtype.itemsize + dtype.itemsize)
    return {
        "no_grad": forward,
        "forward": forward,
        "backward": backward,
        "both": forward + backward,
    }[direction]
