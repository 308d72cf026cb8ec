"""``python -m bench evidence``: which claims for weight standardization show, and which do not.

settings.py has what one run is, run.py makes it, panels.py which runs are compared, verdict.py what
a comparison shows. docs/evidence.md explains the experiments and has the recorded results.
"""

from __future__ import annotations

import argparse
import sys
import time

from ..common.report import print_head
from ..common.run import caption, make_head, say_if_busy, write
from ..common.terminal import print_text, show_progress
from . import plot, record, report
from .data import NotFound, get
from .journal import Journal, Refused
from .options import parse
from .panels import comparisons, settings
from .pool import run_all
from .settings import Setting

BAR = 20  # characters


def main(argv: list[str]) -> None:
    args = parse(argv)
    try:
        data = get(args.data)
        for warning in data.warnings:
            print_text(f"Warning: {warning}")
        head = make_head(["evidence", *argv], "cpu", _settings(args))
        place = {"cpu": head["machine"]["cpu"], "torch": head["versions"]["torch"]}
        journal = Journal(args.out, {**place, "data": data.hashes}, args.resume)
        print_head(head)
        compared = comparisons(args.panels, args.steps)
        _run(settings(compared, args.seeds), journal, args)
    except (NotFound, Refused) as error:
        print(f"python -m bench evidence: error: {error}", file=sys.stderr)
        sys.exit(2)
    found = {
        **head,
        "complete": True,
        **record.as_json(compared, journal.runs, args.seeds, data),
    }
    write(args.out / "evidence.json", found)
    report.print_comparisons(found)
    say_if_busy(head)
    plot.save(args.out / "evidence.png", found, caption(head))
    (args.out / "evidence.md").write_text(report.as_markdown(found), encoding="utf-8")
    print_text(f"In {args.out}: evidence.json, evidence.md, evidence.png, and {journal.path.name}.")


def _settings(args: argparse.Namespace) -> dict:
    names = ("panels", "seeds", "steps", "workers", "data")
    return {name: getattr(args, name) for name in names}


def _run(planned: list[Setting], journal: Journal, args: argparse.Namespace) -> None:
    """The runs that the journal does not have."""
    missing = [setting for setting in planned if setting.key not in journal.runs]
    if not missing:
        return
    start, total, made = time.monotonic(), sum(setting.effort for setting in missing), 0.0
    done = len(planned) - len(missing)
    _show(done, len(planned), None, "")
    try:
        for setting, found in run_all(missing, args.data, args.workers):
            journal.add(setting, found)
            done, made = done + 1, made + setting.effort
            left = (time.monotonic() - start) * (total / made - 1)
            _show(done, len(planned), left, f"{setting.title}, seed {setting.seed}")
    except KeyboardInterrupt:
        sys.exit(f"\nstopped; {journal.path} has {len(journal.runs)} runs: --resume goes on")
    finally:
        show_progress()
    print_text(f"{len(missing)} runs in {time.monotonic() - start:.0f} s")


def _show(done: int, total: int, left: float | None, last: str) -> None:
    filled = BAR * done // total
    time_left = "" if left is None else f", {left // 60:.0f}:{left % 60:02.0f} left"
    show_progress(f"[{'#' * filled:-<{BAR}}] {done} of {total} runs{time_left}  {last}")
