"""Fashion-MNIST's four files with images of random pixels, for what reads and trains on them."""

import gzip
import struct

import torch

from bench.evidence.data import FILES, SIDE


def idx(values):
    """The bytes of an idx file of a uint8 tensor."""
    head = struct.pack(f">I{values.dim()}I", 0x0800 + values.dim(), *values.shape)
    return head + values.numpy().tobytes()


def random_parts(count=64, side=SIDE):
    """By the parts' names. Each class has a picture of its own, so there is something to learn."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.randint(0, 256, (10, side, side), generator=generator)
    parts = {}
    for which in ("train", "test"):
        labels = torch.randint(0, 10, (count,), generator=generator)
        noise = torch.randint(-20, 20, (count, side, side), generator=generator)
        parts[f"{which} images"] = (classes[labels] + noise).clamp(0, 255).to(torch.uint8)
        parts[f"{which} labels"] = labels.to(torch.uint8)
    return parts


def write_parts(folder, parts, compressed=True):
    folder.mkdir(parents=True, exist_ok=True)
    for part, values in parts.items():
        name, content = FILES[part][0], idx(values)
        if compressed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content, 1))
        else:
            (folder / name).write_bytes(content)
    return folder
