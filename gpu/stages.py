"""A stage: a command in processes of its own, with a time limit and a log."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Stage:
    name: str
    command: list[str]
    seconds: float  # its limit
    environment: dict[str, str] = field(default_factory=dict)  # beside the caller's
    unable: str | None = None  # why it cannot run here
    # What its log says in a line, and whether that is no failure but a machine that cannot.
    read: Callable[[str], tuple[str, bool]] = lambda log: ("", False)

    def skipped(self, reason: str) -> Stage:
        return dataclasses.replace(self, unable=self.unable or reason)


@dataclass(frozen=True)
class Result:
    name: str
    status: str  # "passed", "failed", "timed out" or "skipped"
    seconds: float = 0
    detail: str = ""


class Running:
    """A stage that has been started."""

    def __init__(self, stage: Stage, folder: Path, deadline: float):
        self.stage = stage
        self.start = time.monotonic()
        self.end = min(self.start + stage.seconds, deadline)
        self.log = folder / f"{stage.name}.log"
        with open(self.log, "w", encoding="utf-8") as log:
            print(f"$ {shlex.join(stage.command)}", file=log, flush=True)
            self.process = subprocess.Popen(
                stage.command,
                cwd=ROOT,
                env={**os.environ, **stage.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self) -> Result:
        try:
            code = self.process.wait(max(0, self.end - time.monotonic()))
        except subprocess.TimeoutExpired:
            code = None
        finally:
            self.kill()
        seconds = time.monotonic() - self.start
        detail, unable = self.stage.read(self.log.read_text(encoding="utf-8", errors="replace"))
        if unable:
            return Result(self.stage.name, "skipped", seconds, detail)
        if code is None:
            limit = f"stopped after {seconds:.0f} s"
            return Result(
                self.stage.name, "timed out", seconds, ", ".join(filter(None, (limit, detail)))
            )
        detail = detail or (f"exit status {code}" if code else "")
        return Result(self.stage.name, "failed" if code else "passed", seconds, detail)

    def kill(self) -> None:
        """What the command has started too: they are one session, and one group of processes."""
        with contextlib.suppress(ProcessLookupError):  # all have ended
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def run_together(stages: list[Stage], folder: Path, deadline: float) -> list[Result]:
    """Starts all stages at once, and returns when the last has ended."""
    results, running = [], []
    for stage in stages:
        unable = stage.unable or ("no time left" if time.monotonic() >= deadline else None)
        if unable:
            results.append(Result(stage.name, "skipped", detail=unable))
            continue
        try:
            running.append(Running(stage, folder, deadline))
        except OSError as error:
            results.append(Result(stage.name, "failed", detail=str(error)))
    for one in running:
        print(f"{one.stage.name}: at most {one.end - one.start:.0f} s ...", flush=True)
    try:
        results += [one.wait() for one in running]
    except KeyboardInterrupt:
        for one in running:
            one.kill()
        raise
    for result in results:
        print(f"{result.name}: {result.status}  {result.detail}".rstrip(), flush=True)
    return results
