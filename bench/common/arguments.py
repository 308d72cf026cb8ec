"""What the commands' options have in common."""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Iterable
from pathlib import Path

import torch


def positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError
    return value


def count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def add_names(group, option: str, names: Iterable[str], help: str, **options) -> None:
    """An option with one of the names or more, which {} in `help` stands for."""
    options.setdefault("metavar", option.removeprefix("--").rstrip("s").upper())
    help = help.format(f"some of {', '.join(names)}")
    group.add_argument(option, nargs="+", choices=list(names), help=help, **options)


def add_how(group, seconds: float, seconds_help: str) -> None:
    group.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    threads = torch.get_num_threads()
    group.add_argument("--threads", type=count, default=threads, help="default: %(default)s")
    group.add_argument("--seconds", type=positive, default=seconds, help=seconds_help)


def add_output(parser: argparse.ArgumentParser, plot_help: str) -> None:
    output = parser.add_argument_group("output")
    output.add_argument("--json", metavar="PATH", help="writes everything that was found")
    output.add_argument("--plot", metavar="PATH.png", help=plot_help)


def check_common(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuses a device that is not here, and paths that could not be written at the end."""
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("argument --device: cuda, but this PyTorch sees no CUDA device")
    for option, path in (("--json", args.json), ("--plot", args.plot)):
        if path is not None:
            folder = Path(path).parent
            if not folder.is_dir():
                parser.error(f"argument {option}: no folder {folder}")
            if Path(path).is_dir() or not os.access(
                path if Path(path).exists() else folder, os.W_OK
            ):
                parser.error(f"argument {option}: {path} cannot be written")
    if args.plot is not None and Path(args.plot).suffix != ".png":
        parser.error(f"argument --plot: {args.plot} should end in .png")
    if args.plot is not None and importlib.util.find_spec("matplotlib") is None:
        parser.error("argument --plot: it needs matplotlib, which is not installed")
