"""The images that ``python -m bench evidence`` trains on: found on this machine, never downloaded.

Fashion-MNIST (Xiao et al. 2017, arXiv:1708.07747; MIT) in its own format, idx: a magic number, the
sizes and the bytes, plain or in gzip. It is told by the hashes of the unpacked bytes, for Debian
compresses the files anew. Digits (scikit-learn's; 1,797 of 8x8) are for systems without it.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import struct
import zlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

PACKAGE = Path("/usr/share/datasets/fashion-mnist")  # Debian's and Ubuntu's
KERAS = Path.home() / ".keras/datasets/fashion-mnist"
TORCHVISION = Path("FashionMNIST/raw")  # below the root that its users choose
VARIABLE = "FASHION_MNIST"
DIGITS = "digits"

# By part: the file's name, dimensions, and the first 16 digits of the unpacked bytes' sha256
FILES = {
    "train images": ("train-images-idx3-ubyte", 3, "c59f468a2f672dc8"),
    "train labels": ("train-labels-idx1-ubyte", 1, "bad3541b69d91243"),
    "test images": ("t10k-images-idx3-ubyte", 3, "5b4141f0afbad91e"),
    "test labels": ("t10k-labels-idx1-ubyte", 1, "0402a96d92fd2663"),
}
SIDE, CLASSES = 28, 10
MAGIC = 0x0800  # of unsigned bytes; the last digit counts the dimensions
HOW = (
    "On Debian and Ubuntu: apt-get install dataset-fashion-mnist (31 MB, MIT). Elsewhere put the "
    "four files of github.com/zalandoresearch/fashion-mnist into a folder and pass --data FOLDER; "
    "or --data digits (pip install scikit-learn)."
)


class NotFound(Exception):
    """No data, or not those, in one line for people."""


@dataclass(frozen=True)
class Split:
    images: torch.Tensor  # (N, H, W), uint8
    labels: torch.Tensor  # (N,), int64


@dataclass(frozen=True)
class Data:
    name: str
    train: Split
    test: Split
    hashes: dict[str, str]  # sha256 of each part's bytes
    warnings: list[str] = field(default_factory=list)
    mirrored: bool = True  # whether mirror images are of the same class
    classes: int = CLASSES

    @property
    def side(self) -> int:
        return self.train.images.shape[1]

    @cached_property
    def shift_and_scale(self) -> tuple[float, float]:
        """Mean and reciprocal standard deviation of the first training images' pixels."""
        pixels = self.train.images[:10_000].double()
        return pixels.mean().item(), 1 / max(pixels.std().item(), 1.0)

    def normalized(self, images: torch.Tensor) -> torch.Tensor:
        """(B, H, W) of bytes to (B, 1, H, W) of mean 0 and variance 1, float32."""
        shift, scale = self.shift_and_scale
        return (images[:, None] - shift) * scale


def get(given: str | None) -> Data:
    """What --data names: a folder, "digits", or None for the usual places."""
    return load_digits() if given == DIGITS else load(find(given))


def find(given: str | Path | None = None) -> Path:
    """The folder of the four files: the given one, or torchvision's below it, or a usual place."""
    roots = [Path(given)] if given else [PACKAGE, Path("data"), KERAS]
    if not given and os.environ.get(VARIABLE):
        roots.insert(0, Path(os.environ[VARIABLE]))
    places = [place for root in roots for place in (root, root / TORCHVISION)]
    for place in places:
        if all(_file(place, name) for name, _, _ in FILES.values()):
            return place
    for place in places:  # some of them: which are missing says more than where nothing is
        missing = [name for name, _, _ in FILES.values() if not _file(place, name)]
        if len(missing) < len(FILES):
            raise NotFound(f"{place} has no {', '.join(missing)} (or .gz). {HOW}")
    searched = ", ".join(map(str, roots))
    raise NotFound(f"Fashion-MNIST not found in {searched}. {HOW}")


def load(folder: Path) -> Data:
    """Raises NotFound where a file is not what its name says."""
    parts, hashes, warnings = {}, {}, []
    for part, (name, dimensions, sha256) in FILES.items():
        path = _file(folder, name)
        content = _unpacked(path)
        parts[part] = _parse(path, content, dimensions)
        hashes[part] = hashlib.sha256(content).hexdigest()
        if not hashes[part].startswith(sha256):
            warnings.append(f"{path}: not Fashion-MNIST as published: sha256 {hashes[part][:16]}")
    splits = {}
    for which in ("train", "test"):
        images, labels = parts[f"{which} images"], parts[f"{which} labels"].long()
        _check(folder, which, images, labels)
        splits[which] = Split(images, labels)
    return Data("Fashion-MNIST", splits["train"], splits["test"], hashes, warnings)


def load_digits() -> Data:
    """Shuffled once, for its writers come one after the other; the last 297 are the test."""
    try:
        from sklearn.datasets import load_digits as load_sklearn
    except ImportError:
        raise NotFound("--data digits needs scikit-learn: pip install scikit-learn") from None
    found = load_sklearn()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    images = (torch.from_numpy(found.images)[order] * (255 / 16)).to(torch.uint8)
    labels = torch.from_numpy(found.target)[order].long()
    hashes = {"images": hashlib.sha256(images.numpy().tobytes()).hexdigest()}
    train, test = Split(images[:1500], labels[:1500]), Split(images[1500:], labels[1500:])
    return Data("scikit-learn's digits", train, test, hashes, mirrored=False)


def _file(folder: Path, name: str) -> Path | None:
    return next((p for p in (folder / f"{name}.gz", folder / name) if p.is_file()), None)


def _unpacked(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise NotFound(f"{path}: is damaged or incomplete: {error}") from None
    except OSError as error:
        raise NotFound(f"{path}: cannot be read: {error.strerror}") from None


def _parse(path: Path, content: bytes, dimensions: int) -> torch.Tensor:
    head = 4 * (1 + dimensions)
    if len(content) < head or struct.unpack_from(">I", content)[0] != MAGIC + dimensions:
        raise NotFound(f"{path}: is not an idx file of {dimensions}-dimensional bytes")
    sizes = struct.unpack_from(f">{dimensions}I", content, 4)
    if len(content) != head + math.prod(sizes):
        has = f"{len(content) - head} bytes where its head says {'x'.join(map(str, sizes))}"
        raise NotFound(f"{path}: has {has}")
    if not math.prod(sizes):
        raise NotFound(f"{path}: is empty")
    return torch.frombuffer(bytearray(content[head:]), dtype=torch.uint8).view(sizes)


def _check(folder: Path, which: str, images: torch.Tensor, labels: torch.Tensor) -> None:
    if tuple(images.shape[1:]) != (SIDE, SIDE):
        got = "x".join(map(str, images.shape[1:]))
        raise NotFound(f"{folder}: {which} images must be {SIDE}x{SIDE}, got {got}")
    if len(images) != len(labels):
        raise NotFound(f"{folder}: has {len(images)} {which} images, but {len(labels)} labels")
    if labels.max() >= CLASSES:
        raise NotFound(f"{folder}: {which} labels must be below {CLASSES}, got {labels.max()}")
