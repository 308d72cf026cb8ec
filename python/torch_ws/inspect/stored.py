"""A checkpoint's tensors, before they are read, and what keeps its files from doing harm.

Files may be damaged or crafted. Three things hold for every format: `opening` admits regular files
only, and turns whatever a reader raises into Unreadable; `within_file` admits the tensors that are
computed on; and _inspect_limits.py bounds time and memory.
"""

from __future__ import annotations

import math
import stat
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from .._check import OUTPUT_DTYPES
from .limits import limits

# safetensors' names of the dtypes that can be standardized
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}

NOT_FILES = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}

DIMENSIONS = 64  # PyTorch's most
OVERLAP = 4  # how many times the tensors of a file may together be as large as it, sharing memory


class Unreadable(Exception):
    """What cannot be read and why, in one line for people."""


class Stored(NamedTuple):
    """A tensor in its file. `block(dim, start, stop)` reads this range of one dimension."""

    shape: tuple[int, ...]
    dtype: str
    block: Callable[[int, int, int], torch.Tensor]
    place: Hashable  # the same for two names of one tensor
    problem: str = ""  # why it cannot be standardized, if so

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * getattr(torch, self.dtype).itemsize

    @classmethod
    def of_tensor(cls, tensor: torch.Tensor) -> Stored:
        tensor = tensor.detach()
        dtype = str(tensor.dtype).removeprefix("torch.")
        shape = tuple(tensor.shape)
        problem = "" if tensor.dtype in OUTPUT_DTYPES else _why_not(dtype)
        if tensor.layout != torch.strided:
            problem = "sparse"
        elif tensor.is_meta:
            problem = "without values (on the meta device)"
        place = None if problem else (tensor.data_ptr(), shape, tensor.stride(), dtype)

        def block(dim: int, start: int, stop: int) -> torch.Tensor:
            return tensor.narrow(dim, start, stop - start)

        return cls(shape, dtype, block, place, problem)

    @classmethod
    def of_slice(cls, part) -> Stored:
        """Of safetensors' lazy slice of a whole tensor."""
        dtype = part.get_dtype()
        problem = "" if dtype in DTYPES else _why_not(dtype)

        def block(dim: int, start: int, stop: int) -> torch.Tensor:
            return part[(slice(None),) * dim + (slice(start, stop),)]

        return cls(tuple(part.get_shape()), DTYPES.get(dtype, dtype), block, id(block), problem)


class Checkpoint(NamedTuple):
    path: Path  # the file, where a folder was given
    what: str  # the format, and where in the file the state dict was
    tensors: dict[str, Stored]


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Any error of a file's reader, as Unreadable: damage can raise anything.

    But an OSError, whose message is one for people, and ImportError, that safetensors is missing.
    """
    try:
        yield
    except (Unreadable, OSError, ImportError):
        raise
    except Exception as error:
        kind, reason = type(error).__name__, first_line(error)
        reason = reason if reason == kind else f"{kind}: {reason}"
        raise Unreadable(f"{path}: cannot be loaded: {reason}") from None


@contextmanager
def opening(path: Path) -> Iterator[int]:
    """Around all that opens a file and parses it; gives its size.

    Only regular files: a pipe or a device may have no end, and none of them can be mapped.
    """
    with reading(path):
        status = path.stat()  # of what a link points to
        if not stat.S_ISREG(status.st_mode):
            what = NOT_FILES.get(stat.S_IFMT(status.st_mode), "something else")
            raise Unreadable(f"{path}: is {what}, not a file")
        with limits(status.st_size):
            yield status.st_size


def within_file(path: Path, tensors: dict[str, Stored], size: int) -> dict[str, Stored]:
    """With a problem for each tensor that claims more values than its file can hold.

    The strides of torch.save's tensors may be 0, and their storages shared, so that a file of a few
    bytes has tensors of any size, and any number of them.
    """
    admitted = {}
    for name, stored in tensors.items():
        if len(stored.shape) > DIMENSIONS:
            stored = stored._replace(problem=f"of more than {DIMENSIONS} dimensions")
        elif not stored.problem and stored.bytes > size:
            stored = stored._replace(problem="expanded, larger than the file")
        admitted[name] = stored
    distinct = {stored.place: stored.bytes for stored in admitted.values() if not stored.problem}
    if sum(distinct.values()) > OVERLAP * size:
        raise Unreadable(f"{path}: has tensors that overlap, together {OVERLAP} times its size")
    return admitted


def printable(text: str) -> str:
    """Without line breaks and what terminals take for commands; names in files may have both."""
    return "".join(char if char.isprintable() else "?" for char in text)


def _why_not(dtype: str) -> str:
    kinds = {"f": "scaled by another tensor", "c": "not real"}  # float8_e4m3fn, F4, complex64
    return f"{dtype}, {kinds.get(dtype[0].lower(), 'not floating-point')}"


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
