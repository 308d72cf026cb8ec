"""OUT/runs.jsonl: every run is written down as it ends, so that nothing of it can be lost.

The first line says on which images, machine and PyTorch; the others are a run each.
"""

from __future__ import annotations

import json
from pathlib import Path

from .settings import Setting

FILE = "runs.jsonl"


class Refused(Exception):
    """What is in OUT stays as it is, and why, in one line for people."""


class Journal:
    def __init__(self, out: Path, head: dict, resume: bool):
        """With `resume`, takes up the runs that are there; without, there must be none."""
        self.path = out / FILE
        self.runs: dict[str, dict] = {}  # by Setting.key
        if not self.path.exists():
            if resume:
                raise Refused(f"--resume: there is no {self.path}")
            out.mkdir(parents=True, exist_ok=True)
            self._append(head)
            return
        lines = self._lines()
        if not resume:
            raise Refused(
                f"{self.path} has {max(len(lines) - 1, 0)} runs: --resume goes on with them, "
                "another --out begins anew"
            )
        if not lines or lines[0] != head:
            raise Refused(
                f"--resume: {self.path} was made from other images, or by another CPU or PyTorch"
            )
        self.runs = {key_of(line): line for line in lines[1:]}

    def add(self, setting: Setting, found: dict) -> None:
        record = {"setting": setting.as_json(), **found}
        self._append(record)
        self.runs[setting.key] = record

    def _append(self, record: dict) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def _lines(self) -> list[dict]:
        """Without the end of a line whose writer was killed, which is cut off the file too."""
        whole, lines = 0, []
        with self.path.open("rb") as file:
            for line in file:
                try:
                    lines.append(json.loads(line))
                except ValueError:
                    if line.endswith(b"\n"):
                        raise Refused(f"{self.path}: line {len(lines) + 1} is damaged") from None
                    break
                if not line.endswith(b"\n"):
                    lines.pop()
                    break
                whole += len(line)
        with self.path.open("r+b") as file:
            file.truncate(whole)
        return lines


def key_of(record: dict) -> str:
    return json.dumps(record["setting"], sort_keys=True)
