"""The command line of ``python -m bench standardize``, checked before anything runs."""

from __future__ import annotations

import argparse

import torch_ws

from ..common.arguments import add_how, add_names, add_output, check_common
from .calls import DIRECTIONS
from .measure import DTYPES
from .providers import COPY, ELEMENTWISE, Provider, ours, peers
from .workloads import (
    DEFAULT_MODELS,
    MODELS,
    SHAPES,
    Workload,
    model_workload,
    parse_shape,
    weight_workload,
)

SECTIONS = ("shapes", "models", "overhead")


def shape(text: str) -> str:
    """An argument's type, whose error names the argument."""
    try:
        parse_shape(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        usage="python -m bench [standardize] [options]",
        description="Checks, then times, weight standardization by torch_ws and by its peers.",
        allow_abbrev=False,
    )
    what = parser.add_argument_group("what")
    what.add_argument(
        "--shapes",
        nargs="+",
        type=shape,
        metavar="SHAPE",
        help=f"single weights, such as 512x128x3x3; default: {' '.join(SHAPES)}",
    )
    models = f"the weights of whole models: {{}}; default: {' '.join(DEFAULT_MODELS)}"
    add_names(what, "--models", [*MODELS, "all"], models)
    only = "these parts; default: all, or those that --shapes and --models name"
    what.add_argument("--only", nargs="+", choices=SECTIONS, help=only)
    copies = f"default: all but {ELEMENTWISE}; in any case {COPY}, and on CUDA {ELEMENTWISE}"
    add_names(what, "--providers", peers(), f"{{}}; {copies}", metavar="PEER")
    both = ["forward", "both"]
    add_names(what, "--direction", DIRECTIONS, "{}; default: forward both", default=both)
    dtypes = "of the weights, or weights:outputs; {}; default: float32"
    add_names(what, "--dtype", DTYPES, dtypes, default=["float32"])
    what.add_argument(
        "--many",
        action="store_true",
        help="torch_ws.standardize_many, all weights in one call, instead of one call for each",
    )
    what.add_argument(
        "--isa",
        nargs="+",
        choices=("avx512", "avx2", "default"),
        default=[],
        help="torch_ws also with its kernels lowered to these instruction sets",
    )
    add_how(parser.add_argument_group("how"), 1.0, "for a row; default: 1")
    add_output(parser, "draws times as multiples of a copy's")
    return parser


def parse(argv: list[str]) -> argparse.Namespace:
    """All that can be known to fail is refused here, before the first minute is spent."""
    parser = make_parser()
    args = parser.parse_args(argv)
    check_common(parser, args)
    if args.device == "cuda" and args.isa:
        parser.error("argument --isa: instruction sets are the CPU's; leave out --device cuda")
    current = torch_ws.cpu_capability()
    for name in args.isa:
        try:
            torch_ws._C.set_cpu_capability(name)
        except ValueError:
            parser.error(f"argument --isa: this machine cannot run {name}")
    torch_ws._C.set_cpu_capability(current)
    for name in ("shapes", "models"):
        if args.only and getattr(args, name) is not None and name not in args.only:
            parser.error(f"argument --{name}: given, but --only leaves the {name} out")
    if args.plot is not None and args.only == ["overhead"]:
        parser.error("argument --plot: --only overhead leaves nothing to draw")
    return args


def choose_workloads(args: argparse.Namespace) -> tuple[list[Workload], bool]:
    """The workloads, and whether the overhead of a call is measured too."""
    named = [name for name in ("shapes", "models") if getattr(args, name) is not None]
    sections = args.only or named or SECTIONS
    workloads = []
    if "shapes" in sections:
        workloads += [weight_workload(text) for text in args.shapes or SHAPES]
    if "models" in sections:
        names = args.models or DEFAULT_MODELS
        workloads += [model_workload(name) for name in (MODELS if "all" in names else names)]
    return workloads, "overhead" in sections


def choose_providers(args: argparse.Namespace) -> list[Provider]:
    """torch_ws, its lowered variants, the peers and the copy."""
    found = peers()
    names = {*(args.providers or set(found) - {ELEMENTWISE}), COPY}
    if args.device == "cuda":
        names.add(ELEMENTWISE)
    chosen = [ours(args.many)] + [ours(args.many, name) for name in args.isa]
    return chosen + [provider for name, provider in found.items() if name in names]
