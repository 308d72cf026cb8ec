"""The command line of ``python -m bench evidence``, checked before anything runs."""

from __future__ import annotations

import argparse
import importlib.util
import os
from pathlib import Path

from ..common.arguments import add_names, count
from ..common.machine import cores
from .data import DIGITS
from .panels import LONG, PANELS
from .settings import Setting

STEPS = {DIGITS: 150}
DEFAULT_OUT = "build/evidence"


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench evidence",
        usage="python -m bench evidence [options]",
        description="Trains small networks with and without weight standardization, and says which "
        "of the claims made for it show: six minutes on two cores, for Fashion-MNIST and the "
        "defaults.",
        allow_abbrev=False,
    )
    what = parser.add_argument_group("what")
    what.add_argument(
        "--data",
        metavar="DIR",
        help=f"of Fashion-MNIST's files, or {DIGITS} for scikit-learn's; default: where they "
        "usually are. Nothing is downloaded",
    )
    panels = [name for name in PANELS if name != LONG]
    help = f"{{}}; default: all but {LONG}"
    add_names(what, "--only", PANELS, help, metavar="PANEL", default=panels)
    what.add_argument("--long", action="store_true", help=f"the panel {LONG} too: six times longer")
    what.add_argument("--seeds", type=count, default=5, help="runs of a setting; default: 5")
    steps = f"of a run; default: {Setting.steps}, for {DIGITS} {STEPS[DIGITS]}"
    what.add_argument("--steps", type=count, help=steps)
    how = parser.add_argument_group("how")
    how.add_argument(
        "--workers", type=count, default=cores(), help="processes; default: one a core, %(default)s"
    )
    how.add_argument(
        "--out", metavar="DIR", type=Path, default=Path(DEFAULT_OUT), help="default: %(default)s"
    )
    how.add_argument("--resume", action="store_true", help="keeps the runs that are there")
    return parser


def parse(argv: list[str]) -> argparse.Namespace:
    """All that can be known to fail is refused here, before the first run."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.steps is None:
        args.steps = STEPS.get(args.data, Setting.steps)
    wanted = {*args.only, *([LONG] if args.long else [])}
    args.panels = [name for name in PANELS if name in wanted]
    existing = next(path for path in (args.out, *args.out.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        parser.error(f"argument --out: {args.out} cannot be written: {existing} cannot")
    if importlib.util.find_spec("matplotlib") is None:
        parser.error("it needs matplotlib, which is not installed")
    return args
