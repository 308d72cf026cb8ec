"""Opens a checkpoint so that its tensors can be read some channels at a time.

What a file is, its first bytes say, not its name. Both formats are mapped into memory, so a tensor
costs nothing until it is read, and nothing is unpickled that torch.load(weights_only=True) refuses.
"""

from __future__ import annotations

import json
import math
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

import torch

from ._check import OUTPUT_DTYPES

# Where training scripts put the state dict; the first of these is read, averaged weights last.
KEYS = ("state_dict", "model_state_dict", "model", "module", "params", "net", "network")
KEYS += ("state_dict_ema", "model_ema", "params_ema", "ema")

# What is looked for in a folder, in this order
INDEX, SAFETENSORS, TORCH = ".index.json", ".safetensors", (".pt", ".pth", ".bin", ".ckpt")

FOREIGN = {
    b"GGUF": "a GGUF file, whose weights are quantized; inspect the checkpoint it was made from",
    b"\x89HDF": "an HDF5 file (Keras); save its weights as safetensors first",
    b"\x1f\x8b": "compressed with gzip; decompress it first",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself; `git lfs pull` fetches it",
}

# safetensors' names of the dtypes that can be standardized
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class Unreadable(Exception):
    """What cannot be read and why, in one line for people."""


class Stored(NamedTuple):
    """A tensor in its file. `block(dim, start, stop)` reads this range of one dimension."""

    shape: tuple[int, ...]
    dtype: str
    block: Callable[[int, int, int], torch.Tensor]
    problem: str = ""  # why it cannot be standardized, if so

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * getattr(torch, self.dtype).itemsize

    @classmethod
    def of_tensor(cls, tensor: torch.Tensor) -> Stored:
        tensor = tensor.detach()
        dtype = str(tensor.dtype).removeprefix("torch.")
        problem = "" if tensor.dtype in OUTPUT_DTYPES else _why_not(dtype)
        if tensor.layout != torch.strided:
            problem = "sparse"
        elif tensor.is_meta:
            problem = "without values (on the meta device)"

        def block(dim: int, start: int, stop: int) -> torch.Tensor:
            return tensor.narrow(dim, start, stop - start)

        return cls(tuple(tensor.shape), dtype, block, problem)

    @classmethod
    def of_slice(cls, part) -> Stored:
        """Of safetensors' lazy slice of a whole tensor."""
        dtype = part.get_dtype()
        problem = "" if dtype in DTYPES else _why_not(dtype)

        def block(dim: int, start: int, stop: int) -> torch.Tensor:
            return part[(slice(None),) * dim + (slice(start, stop),)]

        return cls(tuple(part.get_shape()), DTYPES.get(dtype, dtype), block, problem)


class Checkpoint(NamedTuple):
    path: Path  # the file, where a folder was given
    what: str  # the format, and where in the file the state dict was
    tensors: dict[str, Stored]


def open_checkpoint(path: Path, key: str | None, files: ExitStack) -> Checkpoint:
    """The tensors at `path`: a file, an index of several, or a folder with either.

    `files` closes what is opened here. Raises Unreadable, or ImportError without safetensors.
    """
    if path.is_dir():
        path = _in_folder(path)
    if not path.exists():
        raise Unreadable(f"{path}: there is no such file")
    open_ = _open_index if path.name.endswith(INDEX) else _open_file
    found = open_(path, key, files)
    return found._replace(tensors={printable(name): t for name, t in found.tensors.items()})


def printable(text: str) -> str:
    """Without line breaks and what terminals take for commands; names in files may have both."""
    return "".join(char if char.isprintable() else "?" for char in text)


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
    try:
        where = {str(k): str(v) for k, v in json.loads(path.read_text())["weight_map"].items()}
    except (ValueError, TypeError, LookupError, AttributeError):
        raise Unreadable(f"{path}: is no index of a sharded checkpoint: no weight_map") from None
    opened = {}
    for shard in sorted(set(where.values())):
        if not (path.parent / shard).is_file():
            raise Unreadable(f"{path}: names {shard}, which is not there")
        opened[shard] = _open_file(path.parent / shard, key, files).tensors
    for name, shard in where.items():
        if name not in opened[shard]:
            raise Unreadable(f"{path}: names {name!r}, which {shard} does not have")
    tensors = {name: opened[shard][name] for name, shard in where.items()}
    what = f"index of {len(opened)} file{'s' if len(opened) > 1 else ''}"
    return Checkpoint(path, what, _in_natural_order(tensors))


def _open_file(path: Path, key: str | None, files: ExitStack) -> Checkpoint:
    with path.open("rb") as file:
        head = file.read(64)
    # safetensors: the header's length in 8 bytes, and the header, JSON. First, for a length may
    # look like what marks another format, none of which has a brace there.
    if head[8:9] == b"{":
        if key is not None:
            raise Unreadable(f"{path}: safetensors have no keys to choose from (--key)")
        return Checkpoint(path, "safetensors", _open_safetensors(path, files))
    if head.startswith((b"PK", b"\x80")):  # a zip archive; a pickle, torch.save before 1.6
        return _open_torch(path, key, zipped=head.startswith(b"PK"))
    for magic, what in FOREIGN.items():
        if head.startswith(magic):
            raise Unreadable(f"{path}: is {what}")
    what = "neither a safetensors file nor one of torch.save" if head else "empty"
    raise Unreadable(f"{path}: is {what}")


def _open_safetensors(path: Path, files: ExitStack) -> dict[str, Stored]:
    from safetensors import SafetensorError, safe_open

    try:
        file = files.enter_context(safe_open(path, framework="pt"))
        tensors = {name: Stored.of_slice(file.get_slice(name)) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise Unreadable(f"{path}: is damaged or incomplete: {_first_line(error)}") from None
    return _in_natural_order(tensors)


def _in_natural_order(tensors: dict[str, Stored]) -> dict[str, Stored]:
    """safetensors keeps no order; in this one layer 2 comes before layer 10."""

    def parts(item):  # text and numbers in turn
        return [int(p) if i % 2 else p for i, p in enumerate(re.split(r"(\d+)", item[0]))]

    return dict(sorted(tensors.items(), key=parts))


def _open_torch(path: Path, key: str | None, zipped: bool) -> Checkpoint:
    if zipped:
        try:
            with zipfile.ZipFile(path) as archive:
                names = {name.rpartition("/")[2] for name in archive.namelist()}
        except Exception as error:  # BadZipFile, and whatever else damage leads to
            raise Unreadable(f"{path}: is damaged or incomplete: {_first_line(error)}") from None
        if "constants.pkl" in names:
            what = "is a TorchScript archive; save torch.jit.load(...).state_dict(), inspect that"
            raise Unreadable(f"{path}: {what}")
        if "data.pkl" not in names:
            raise Unreadable(f"{path}: is a zip archive, not of torch.save but .npz, .keras, ...")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of deprecations inside torch.load
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise Unreadable(f"{path}: {_refusal(path, error)}") from None
    except Exception as error:  # a damaged file can raise anything
        raise Unreadable(f"{path}: cannot be loaded: {_first_line(error)}") from None
    state_dict, key = _state_dict(path, found, key)
    tensors = {
        str(name): Stored.of_tensor(value)
        for name, value in state_dict.items()
        if isinstance(value, torch.Tensor)
    }
    what = "torch.save" if zipped else "torch.save before 1.6, read into memory as a whole"
    return Checkpoint(path, what + (f", key {key!r}" if key else ""), tensors)


def _refusal(path: Path, error: pickle.UnpicklingError) -> str:
    """What torch.load(weights_only=True) would not load: most often, a class."""
    classes = re.findall(r"GLOBAL (\S+) (?:was not|whose)", str(error))
    with suppress(Exception):  # all of them, if the file is whole and a zip archive
        classes = torch.serialization.get_unsafe_globals_in_checkpoint(path) or classes
    if not classes:
        reason = re.search("Unsupported .*", str(error))
        return f"cannot be loaded: {reason[0] if reason else _first_line(error)}"
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


def _why_not(dtype: str) -> str:
    kinds = {"f": "scaled by another tensor", "c": "not real"}  # float8_e4m3fn, F4, complex64
    return f"{dtype}, {kinds.get(dtype[0].lower(), 'not floating-point')}"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
