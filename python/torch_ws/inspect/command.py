"""``python -m torch_ws.inspect CHECKPOINT``: what weight standardization would find there.

The statistics of every channel of every layer, and how far each formula is from exact
standardization on them; docs/inspecting.md explains the columns. Tensors are read some channels at
a time, so that a checkpoint of any size takes little memory.
"""

import argparse
import importlib.util
import math
import os
import sys
from contextlib import ExitStack
from pathlib import Path

from ..formulas import formulas
from .compare import Selected, compare
from .layers import choose, matching, read_layers
from .read import INDEX, open_checkpoint
from .stored import Unreadable, printable, reading

PROGRAM = "python -m torch_ws.inspect"
LONGEST = 1000  # characters of an error
FORMULAS = ("paper", "qiao", "nnabla", "timm", "bit", "nfnet")  # in the table, unless chosen
DEAD = 1e-4  # times the largest std of a channel in the layer
SORTS = {
    "condition": lambda layer: -1 if math.isnan(layer.condition) else layer.condition,
    "dead": lambda layer: layer.dead.sum().item() / layer.channels,
}


def main(argv: list[str]) -> int:
    return run(parse(argv))


def parse(argv: list[str]) -> argparse.Namespace:
    parser = make_parser()
    args = parser.parse_args(argv)
    check_arguments(parser, args)
    return args


def run(args: argparse.Namespace) -> int:
    try:
        from . import report

        comparison = None
        with ExitStack() as files:
            selected, left_out = select(args.checkpoint, args, files)
            checkpoint, chosen, transposed = selected
            size = sum({stored.place: stored.bytes for stored in chosen.values()}.values())
            if args.compare is not None:
                other, _ = select(args.compare, args, files)
                size += 2 * sum(s.bytes for one in (selected, other) for s in one.chosen.values())
            with report.make_progress(size) as advance, reading(checkpoint.path):
                if args.compare is not None:
                    found = compare(selected, other, args.formula[0], advance)
                    comparison = report.Comparison(other.checkpoint, args.formula[0], found)
                layers = read_layers(chosen, transposed, args.dead, advance)
        if args.sort is not None:
            layers.sort(key=SORTS[args.sort], reverse=True)
        if args.json is not None:
            report.write_json(args.json, checkpoint, layers, left_out, args.dead, comparison)
        if args.plot is not None:
            from .plot import save

            save(args.plot, printable(checkpoint.path.name), layers, args.formula)
        report.print_report(checkpoint, layers, left_out, args.formula, comparison)
        return 0
    except ImportError as error:
        return fail(f"{error}: pip install 'torch-ws[inspect]'")
    except (Unreadable, OSError) as error:
        return fail(str(error))


def select(path: Path, args: argparse.Namespace, files: ExitStack) -> tuple[Selected, dict]:
    """What is chosen of a checkpoint, and why other weights are left out."""
    checkpoint = open_checkpoint(path, args.key, files)
    chosen, left_out = choose(checkpoint, args.include, args.exclude, args.linear)
    transposed = matching("--transposed", args.transposed, checkpoint)
    return Selected(checkpoint, chosen, transposed), left_out


def fail(message: str) -> int:
    """Says it in one line; gives the exit status."""
    if len(message) > LONGEST:  # with a name that a file made up
        message = f"{message[:LONGEST]}..."
    print(f"{PROGRAM}: error: {printable(message)}", file=sys.stderr)
    return 2


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        usage="%(prog)s CHECKPOINT [options]",
        description="What weight standardization would find in a checkpoint.",
    )
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        type=Path,
        help="a file of safetensors or torch.save, an index of several, or a folder with either",
    )
    parser.add_argument(
        "--key",
        help="under which torch.save's file has the state dict; default: state_dict, "
        "model_state_dict, model and other usual ones, or none",
    )
    parser.add_argument(
        "--compare",
        metavar="OTHER",
        type=Path,
        help="also how similar the weights of another checkpoint are, layer by layer",
    )
    what = parser.add_argument_group("which tensors (GLOB: a name, where * is any text)")
    what.add_argument(
        "--linear", action="store_true", help="also 2-d weights; default: 3-d and more"
    )
    for option, text in (
        ("include", "these instead of what is named weight, 2-d ones too"),
        ("exclude", "not these"),
        ("transposed", "transposed convolutions, whose channels are dimension 1"),
    ):
        what.add_argument(
            f"--{option}", metavar="GLOB", nargs="+", action="extend", default=[], help=text
        )
    parser.add_argument(
        "--formula",
        metavar="NAME",
        nargs="+",
        choices=list(formulas),
        default=list(FORMULAS),
        help=f"whose deviations to show, and the first's result in the picture and with --compare: "
        f"some of {', '.join(formulas)}; default: {' '.join(FORMULAS)}",
    )
    parser.add_argument(
        "--dead",
        metavar="RATIO",
        type=_ratio,
        default=DEAD,
        help="channels of a std up to RATIO times their layer's largest are dead; default: 1e-4",
    )
    parser.add_argument("--sort", choices=list(SORTS), help="the largest first; default: by name")
    parser.add_argument("--json", metavar="FILE.json", help="writes everything, for all formulas")
    parser.add_argument("--plot", metavar="FILE.png", help="draws channels before and after")
    return parser


def _ratio(text):
    value = float(text)
    if not 0 <= value < 1:
        raise ValueError
    return value


def check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuses files that could not be written after the work."""
    for option, path, suffix in (("--json", args.json, ".json"), ("--plot", args.plot, ".png")):
        if path is None:
            continue
        folder = Path(path).parent
        if not folder.is_dir():
            parser.error(f"argument {option}: there is no folder {folder}")
        if Path(path).is_dir() or not os.access(path if Path(path).exists() else folder, os.W_OK):
            parser.error(f"argument {option}: {path} cannot be written")
        if not path.endswith(suffix) or path.endswith(INDEX):  # or it might replace a checkpoint
            parser.error(f"argument {option}: {path} should end in {suffix}, and not in {INDEX}")
    if args.plot is not None and importlib.util.find_spec("matplotlib") is None:
        parser.error("argument --plot: it needs matplotlib: pip install 'torch-ws[inspect]'")
