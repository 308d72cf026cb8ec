"""Opens a checkpoint so that its tensors can be read some channels at a time.

What a file is, its first bytes say, not its name. Both formats are mapped into memory, so a tensor
costs nothing until it is read, and nothing is unpickled that torch.load(weights_only=True) refuses,
NumPy's values apart, of which nothing is kept.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

import torch

from .stored import (
    Checkpoint,
    Stored,
    Unreadable,
    first_line,
    opening,
    printable,
    within_file,
)

# Where training scripts put the state dict; the first of these is read, averaged weights last.
KEYS = ["state_dict", "model_state_dict", "model", "module", "params", "net", "network"]
KEYS += ["state_dict_ema", "model_ema", "params_ema", "ema"]

# What is looked for in a folder, in this order
INDEX, SAFETENSORS, TORCH = ".index.json", ".safetensors", (".pt", ".pth", ".bin", ".ckpt")

FOREIGN = {
    b"GGUF": "a GGUF file, whose weights are quantized; inspect the checkpoint it was made from",
    b"\x89HDF": "an HDF5 file (Keras); save its weights as safetensors first",
    b"\x1f\x8b": "compressed with gzip; decompress it first",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself; `git lfs pull` fetches it",
}


class NumPyValue:
    """In the place of what NumPy pickles: takes what builds a value, and keeps and runs nothing."""

    def __init__(self, *arguments):
        pass

    def __setstate__(self, state):
        pass


# Training loops keep scalars and arrays beside the weights; NumPy 2 calls numpy.core numpy._core.
NUMPY: list = [(NumPyValue, f"numpy.{name}") for name in ("dtype", "ndarray")]
NUMPY += [
    (NumPyValue, f"numpy.{core}.multiarray.{name}")
    for core in ("core", "_core")
    for name in ("scalar", "_reconstruct")
]


def open_checkpoint(path: Path, key: str | None, files: ExitStack) -> Checkpoint:
    """The tensors at `path`: a file, an index of several, or a folder with either.

    `files` closes what is opened here. Raises Unreadable, OSError, or ImportError without
    safetensors.
    """
    if path.is_dir():
        path = _in_folder(path)
    if not path.exists():
        raise Unreadable(f"{path}: there is no such file")
    open_ = _open_index if path.name.endswith(INDEX) else _open_file
    found = open_(path, key, files)
    tensors = {printable(name): stored for name, stored in found.tensors.items()}
    if len(tensors) < len(found.tensors):
        raise Unreadable(f"{path}: has names that differ only in what cannot be printed")
    return found._replace(tensors=tensors)


def _in_folder(folder: Path) -> Path:
    names = sorted(entry.name for entry in folder.iterdir())
    for suffixes in (INDEX, SAFETENSORS, TORCH):
        found = [name for name in names if name.endswith(suffixes)]
        if len(found) > 1:
            raise Unreadable(f"{folder}: has several checkpoints, give one: {', '.join(found)}")
        if found:
            return folder / found[0]
    endings = ", *".join((INDEX, SAFETENSORS, *TORCH))
    raise Unreadable(f"{folder}: has no checkpoint: no *{endings}")


def _open_index(path: Path, key: str | None, files: ExitStack) -> Checkpoint:
    with opening(path):
        try:
            index = json.loads(path.read_text())
            where = {str(name): str(shard) for name, shard in index["weight_map"].items()}
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            what = "is no index of a sharded checkpoint: no weight_map"
            raise Unreadable(f"{path}: {what}") from None
    opened, tensors = {}, {}
    for name, shard in where.items():
        file = Path(os.path.normpath(path.parent / shard))  # however often it is spelled
        if not file.exists():
            raise Unreadable(f"{path}: names {shard}, which is not there")
        if file not in opened:
            opened[file] = _open_file(file, key, files).tensors
        if name not in opened[file]:
            raise Unreadable(f"{path}: names {name!r}, which {shard} does not have")
        tensors[name] = opened[file][name]
    what = f"index of {len(opened)} file{'s' if len(opened) > 1 else ''}"
    return Checkpoint(path, what, _in_natural_order(tensors))


def _open_file(path: Path, key: str | None, files: ExitStack) -> Checkpoint:
    with opening(path) as size:
        if size == 0:  # also what /proc has
            raise Unreadable(f"{path}: is empty")
        with path.open("rb") as file:
            head = file.read(64)
        # safetensors: the header's length in 8 bytes, and the header, JSON. First, for a length may
        # look like what marks another format, none of which has a brace there.
        if head[8:9] == b"{":
            found = _open_safetensors(path, key, files)
        # a zip archive; a pickle, torch.save before 1.6
        elif head.startswith((b"PK", b"\x80")):
            found = _open_torch(path, key, zipped=head.startswith(b"PK"))
        else:
            foreign = (what for magic, what in FOREIGN.items() if head.startswith(magic))
            what = next(foreign, "neither a safetensors file nor one of torch.save")
            raise Unreadable(f"{path}: is {what}")
        return found._replace(tensors=within_file(path, found.tensors, size))


def _open_safetensors(path: Path, key: str | None, files: ExitStack) -> Checkpoint:
    from safetensors import SafetensorError, safe_open

    if key is not None:
        raise Unreadable(f"{path}: safetensors have no keys to choose from (--key)")
    try:
        file = files.enter_context(safe_open(path, framework="pt"))
        tensors = {name: Stored.of_slice(file.get_slice(name)) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise Unreadable(f"{path}: is damaged or incomplete: {first_line(error)}") from None
    return Checkpoint(path, "safetensors", _in_natural_order(tensors))


def _in_natural_order(tensors: dict[str, Stored]) -> dict[str, Stored]:
    """safetensors keeps no order; in this one layer 2 comes before layer 10."""

    def parts(item):  # text and numbers in turn; a number by its length, then its digits
        texts = re.split("([0-9]+)", item[0])
        digits = (number.lstrip("0") for number in texts[1::2])
        texts[1::2] = [(len(number), number) for number in digits]
        return texts

    return dict(sorted(tensors.items(), key=parts))


def _open_torch(path: Path, key: str | None, zipped: bool) -> Checkpoint:
    if zipped:
        _check_archive(path)
    with warnings.catch_warnings(), torch.serialization.safe_globals(NUMPY):
        warnings.simplefilter("ignore")  # of deprecations inside torch.load
        try:
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
        except pickle.UnpicklingError as error:
            raise Unreadable(f"{path}: {_refusal(path, error)}") from None
    state_dict, key = _state_dict(path, found, key)
    tensors = {
        str(name): Stored.of_tensor(value)
        for name, value in state_dict.items()
        if isinstance(value, torch.Tensor)
    }
    what = "torch.save" if zipped else "torch.save before 1.6, read into memory as a whole"
    return Checkpoint(path, what + (f", key {key!r}" if key else ""), tensors)


def _check_archive(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except zipfile.BadZipFile as error:
        raise Unreadable(f"{path}: is damaged or incomplete: {first_line(error)}") from None
    names = {member.filename.rpartition("/")[2] for member in members}
    if "constants.pkl" in names:
        what = "is a TorchScript archive; save torch.jit.load(...).state_dict(), inspect that"
        raise Unreadable(f"{path}: {what}")
    if "data.pkl" not in names:
        raise Unreadable(f"{path}: is a zip archive, not of torch.save but .npz, .keras, ...")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise Unreadable(f"{path}: is compressed, which torch.save's archives are not")


def _refusal(path: Path, error: pickle.UnpicklingError) -> str:
    """What torch.load(weights_only=True) would not load: most often, a class."""
    classes = re.findall(r"GLOBAL (\S+) (?:was not|whose)", str(error))
    with suppress(Exception):  # all of them, if the file is whole and a zip archive
        classes = torch.serialization.get_unsafe_globals_in_checkpoint(path) or classes
    if not classes:
        reason = re.search("Unsupported .*", str(error))
        return f"cannot be loaded: {reason[0] if reason else first_line(error)}"
    return (
        f"holds {', '.join(sorted(classes))} and not only tensors: loading that could run code; "
        "if you trust the file, save its state dict alone and inspect that"
    )


def _state_dict(path: Path, found: object, key: str | None) -> tuple[Mapping, str | None]:
    """The state dict in what was loaded, and its key if it was under one."""
    if not isinstance(found, Mapping):
        raise Unreadable(f"{path}: holds a {type(found).__name__}, not a state dict")
    inside = {str(name): value for name, value in found.items() if _has_tensors(value)}
    choices = f"the keys of state dicts in it are {', '.join(inside) or 'none'}"
    if key is not None:
        if key not in inside:
            raise Unreadable(f"{path}: has no state dict under {key!r}; {choices}")
        return inside[key], key
    for usual in KEYS:
        if usual in inside:
            return inside[usual], usual
    if _has_tensors(found):
        return found, None
    raise Unreadable(f"{path}: has no state dict where it usually is (--key); {choices}")


def _has_tensors(value: object) -> bool:
    return isinstance(value, Mapping) and any(isinstance(v, torch.Tensor) for v in value.values())
