"""What one run of the experiments is, apart from its seed: everything that decides its numbers."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """One network trained once; the defaults are those of the convergence panel's GN."""

    norm: str = "gn"  # a key of networks.NORMS
    formula: str | None = None  # of the convolutions' standardization
    lr: float = 0.1
    micro_batch: int = 32
    initial: str = "std x 1"  # a key of networks.INITIAL
    steps: int = 200
    measures: str = ""  # besides the curve: "landscape", or "similarity" of a chain's layers
    seed: int = 0

    def of_seed(self, seed: int) -> Setting:
        return dataclasses.replace(self, seed=seed)

    @property
    def effort(self) -> float:
        """About how long it takes, in runs of the defaults."""
        of = {"": 1, "landscape": 2.5, "similarity": 3}[self.measures]
        return of * self.steps / Setting.steps * (8 if self.norm == "bcn_estimated" else 1)

    def as_json(self) -> dict:
        return dataclasses.asdict(self)

    @property
    def key(self) -> str:
        """One line that tells runs apart."""
        return json.dumps(self.as_json(), sort_keys=True)

    @property
    def title(self) -> str:
        """As in the figures: "GN+WS", with what differs from the defaults."""
        if self.measures == "similarity":
            return "chains of layers"
        name = {"gn": "GN", "bn": "BN", "bcn": "BCN", "bcn_estimated": "estimated BCN"}
        parts = [name.get(self.norm, "no norm") + ("+WS" if self.formula else "")]
        if self.micro_batch != Setting.micro_batch:
            parts[0] += f" of {self.micro_batch}"
        parts += [f"lr {self.lr:g}"] if self.lr != Setting.lr else []
        parts += [self.initial] if self.initial != Setting.initial else []
        return ", ".join(parts)
