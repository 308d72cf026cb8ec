"""The command line of ``python -m bench optimizer``, checked before anything runs."""

from __future__ import annotations

import argparse

from ..common.arguments import add_how, add_names, add_output, check_common
from ..common.optimizers import KINDS
from ..weights.workloads import MODELS
from .measure import DTYPES
from .variants import COPY, TORCH, Variant, variants


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench optimizer",
        usage="python -m bench optimizer [options]",
        description="Checks, then times, the update of a model's weights by one step of an "
        "optimizer: standardized weights in one pass, and plain ones by torch.optim.",
        allow_abbrev=False,
    )
    what = parser.add_argument_group("what")
    models = "the weights of these: {}; default: resnet50"
    add_names(what, "--models", MODELS, models, default=["resnet50"])
    add_names(what, "--optimizer", KINDS, "{}; default: both", default=list(KINDS), metavar="NAME")
    dtypes = "of the standardized weights: {}; default: both"
    add_names(what, "--dtype", DTYPES, dtypes, default=list(DTYPES))
    names = [name for name in variants() if name not in (TORCH, COPY)]
    always = f"default: all; {TORCH} and {COPY} in any case"
    add_names(what, "--variants", names, f"{{}}; {always}")
    add_how(parser.add_argument_group("how"), 20.0, "for a table; default: 20")
    add_output(parser, "draws times as multiples of a copy's")
    return parser


def parse(argv: list[str]) -> argparse.Namespace:
    """All that can be known to fail is refused here, before the first minute is spent."""
    parser = make_parser()
    args = parser.parse_args(argv)
    check_common(parser, args)
    return args


def choose_variants(args: argparse.Namespace) -> list[Variant]:
    found = variants()
    names = {*(args.variants or found), TORCH, COPY}
    return [variant for name, variant in found.items() if name in names]
