"""The command line of ``python -m bench step``, checked before anything runs."""

from __future__ import annotations

import argparse

import torch

from ..common.arguments import add_how, add_names, add_output, check_common, count
from ..common.errors import reason_of
from ..common.optimizers import CLIPS, KINDS
from .measure import Cell
from .networks import DEFAULT_NETWORKS, NETWORKS
from .variants import PLAIN, Settings, Variant, takes_part, variants

SIZES = {"cpu": 64, "cuda": 224}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench step",
        usage="python -m bench step [options]",
        description="Checks, then times, training steps of networks with and without weight "
        "standardization: forward, backward, clipping and the optimizer's step.",
        allow_abbrev=False,
    )
    what = parser.add_argument_group("what")
    tiny = "the last a few milliseconds' work for trying things out"
    models = f"{{}}, {tiny}; default: {' '.join(DEFAULT_NETWORKS)}"
    add_names(what, "--models", NETWORKS, models, default=list(DEFAULT_NETWORKS))
    names = [name for name in variants() if name != PLAIN]
    add_names(what, "--variants", names, f"{{}}; default: all, and {PLAIN} in any case")
    what.add_argument(
        "--batch",
        nargs="+",
        type=count,
        metavar="IMAGES",
        default=[1, 2, 8],
        help="in a micro-batch; default: 1 2 8",
    )
    what.add_argument(
        "--size",
        type=count,
        metavar="PIXELS",
        help=f"of a side of the images; default: {SIZES['cpu']}, on CUDA {SIZES['cuda']}",
    )
    what.add_argument(
        "--micro-batches",
        nargs="+",
        type=count,
        metavar="K",
        default=[1, 8],
        help="in a step; default: 1 8. held needs several, layers and groups are timed with one",
    )
    what.add_argument("--optimizer", choices=KINDS, default="sgd", help="default: sgd, momentum")
    clips = "gradients before the step: by torch's clip_grad_norm_, by units; default: none"
    what.add_argument("--clip", choices=CLIPS, default="none", help=clips)
    how = parser.add_argument_group("how")
    how.add_argument("--autocast", action="store_true", help="to bfloat16")
    how.add_argument("--compile", action="store_true", help="torch.compile for every variant")
    how.add_argument("--channels-last", action="store_true", help="memory format of the networks")
    add_how(how, 30.0, "for a table; default: 30. Four times as many halve the intervals")
    add_output(parser, "draws the overheads")
    return parser


def parse(argv: list[str]) -> argparse.Namespace:
    """All that can be known to fail is refused here, before the first minute is spent."""
    parser = make_parser()
    args = parser.parse_args(argv)
    check_common(parser, args)
    if args.size is None:
        args.size = SIZES[args.device]
    for name in args.models:
        multiple = NETWORKS[name].multiple
        if args.size % multiple:
            parser.error(f"argument --size: {name} needs a multiple of {multiple}, got {args.size}")
    found = variants()
    for name in args.variants or ():
        if not any(takes_part(found[name], count) for count in args.micro_batches):
            needs = "2 or more" if found[name].accumulates else "1"
            got = " ".join(map(str, args.micro_batches))
            parser.error(f"argument --micro-batches: {name} needs {needs}, got {got}")
    if args.compile:
        try:
            torch.compile(lambda x: x + 1, isolate_recompiles=True)(
                torch.ones(2, device=args.device)
            )
        except Exception as error:
            reason = reason_of(error)
            parser.error(f"argument --compile: torch.compile does not work here: {reason}")
    return args


def choose_variants(args: argparse.Namespace) -> list[Variant]:
    found = variants()
    return [found[name] for name in found if name == PLAIN or name in (args.variants or found)]


def choose_cells(args: argparse.Namespace, chosen: list[Variant]) -> list[Cell]:
    """All combinations, but those in which nobody who was chosen to standardize takes part."""
    compared = [variant for variant in chosen if variant.formula is not None]
    return [
        Cell(network, batch, accumulate, args.size)
        for network in args.models
        for accumulate in dict.fromkeys(args.micro_batches)
        for batch in args.batch
        if not compared or any(takes_part(variant, accumulate) for variant in compared)
    ]


def choose_settings(args: argparse.Namespace) -> Settings:
    return Settings(
        args.device, args.optimizer, args.clip, args.autocast, args.compile, args.channels_last
    )
