"""What the commands' options have in common: numbers, and files that are written at the end."""

from __future__ import annotations

import argparse
import importlib.util
import os
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


def check_device(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("argument --device: cuda, but this PyTorch sees no CUDA device")


def check_files(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuses paths of --json and --plot that could not be written after the measurement."""
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
