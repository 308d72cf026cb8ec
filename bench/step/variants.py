"""The ways to train one network that ``python -m bench step`` compares.

Each builds the same network from the same seed and differs in how, and how often, the weights of
its convolutions are standardized. `control` is `plain` once more, a second copy of the network: its
overhead is 0 but for the machine's noise and the luck of memory placement, so it shows what a run
can resolve. The optimizer is torch.optim's with fused=True, its fastest, but for the two plain
variants that show what its other implementations take.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import torch_ws
from torch import nn

from ..common.optimizers import AGC, CLIPS, KINDS, make_optimizer
from ..common.peers import chained_formula, timm_batch_norm
from .networks import Network

PLAIN = "plain"
CONTROL = "control"
SEED = 0  # of the initial weights
MicroBatch = tuple[torch.Tensor, torch.Tensor]


class FormulaConv2d(nn.Conv2d):
    """The authors' layer: the formula in eager PyTorch operations in every forward."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(x, chained_formula(self.weight), self.bias)


class BatchNormConv2d(nn.Conv2d):
    """timm's layer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(x, timm_batch_norm(self.weight), self.bias)


@dataclass(frozen=True)
class Variant:
    name: str
    what: str  # what exactly runs, for the report
    formula: str | None = None  # of torch_ws.formulas; None: no standardization
    conv: type[nn.Module] = nn.Conv2d
    prepare: Callable[[nn.Module, Network], None] = lambda model, network: None
    around: Callable[[nn.Module], contextlib.AbstractContextManager] = lambda model: (
        contextlib.nullcontext()
    )
    optimizer: str = "fused"  # torch.optim's implementation
    is_fused: bool = False  # standardization within the optimizer's step
    is_ours: bool = False  # torch_ws's: an error in it stops the run
    accumulates: bool | None = False  # runs with several micro-batches a step, one, or (None) both

    def build(self, network: Network) -> nn.Module:
        torch.manual_seed(SEED)
        model = network.make(self.conv)
        self.prepare(model, network)
        return model


def _convert(model: nn.Module, network: Network) -> None:
    torch_ws.convert(model, skip=network.skip)


def _group(model: nn.Module, network: Network) -> None:
    _convert(model, network)
    torch_ws.group(model)


def variants() -> dict[str, Variant]:
    found = [
        Variant(PLAIN, "no weight standardization; torch.optim with fused=True", accumulates=None),
        Variant(CONTROL, "plain once more: what this run can resolve", accumulates=None),
        Variant(
            "plain_default",
            "plain, without an implementation named: on the CPU a loop over the parameters",
            optimizer="default",
            accumulates=None,
        ),
        Variant("plain_foreach", "plain, foreach=True", optimizer="foreach", accumulates=None),
        Variant(
            "formula",
            "eager chained means, (w - mean) / (std + 1e-5) in each layer, the authors' 2019 code",
            "qiao",
            FormulaConv2d,
        ),
        Variant(
            "batch_norm",
            "F.batch_norm(w.reshape(1, O, -1), training=True, eps=1e-6) in each layer, as in timm",
            "timm",
            BatchNormConv2d,
        ),
        Variant("layer", "torch_ws.convert(model)", "paper", prepare=_convert, is_ours=True),
        Variant(
            "grouped",
            "torch_ws.group(torch_ws.convert(model))",
            "paper",
            prepare=_group,
            is_ours=True,
        ),
        Variant(
            "held",
            "with torch_ws.hold(model): all micro-batches of a step",
            "paper",
            prepare=_convert,
            around=lambda model: torch_ws.hold(model),
            is_ours=True,
            accumulates=True,
        ),
        Variant(
            "fused",
            "torch_ws.fuse(torch_ws.convert(model), optimizer)",
            "paper",
            prepare=_convert,
            is_fused=True,
            is_ours=True,
            accumulates=None,
        ),
    ]
    return {variant.name: variant for variant in found}


def takes_part(variant: Variant, accumulate: int) -> bool:
    return variant.accumulates in (None, accumulate > 1)


@dataclass(frozen=True)
class Settings:
    """What all variants of a run share."""

    device: str = "cpu"
    optimizer: str = "sgd"
    clip: str = "none"
    autocast: bool = False
    compile: bool = False
    channels_last: bool = False

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format


class Trainer:
    """One variant of one network, ready to train; `numbers`: of the optimizer, if not the timed."""

    def __init__(self, variant: Variant, network: Network, settings: Settings, **numbers: float):
        self.variant = variant
        self.settings = settings
        self.model = variant.build(network)
        self.model.to(settings.device, memory_format=settings.memory_format)
        self.forward = self.model
        if settings.compile:
            # fullgraph: an error where part of it would silently run eagerly; isolated, as each
            # variant's code would otherwise look for its graph among those of all others
            self.forward = torch.compile(
                self.model, fullgraph=True, dynamic=False, isolate_recompiles=True
            )
        self.optimizer = make_optimizer(
            settings.optimizer, self.model.parameters(), variant.optimizer, **numbers
        )
        self.clip = CLIPS[settings.clip]
        if variant.is_fused:
            agc = AGC if settings.clip == "agc" else None
            torch_ws.fuse(self.model, self.optimizer, agc=agc)
            self.clip = CLIPS["none" if agc else settings.clip]

    def step(self, micro_batches: Sequence[MicroBatch]) -> None:
        self.accumulate(micro_batches)
        self.clip(self.model.parameters())
        self.optimizer.step()
        self.optimizer.zero_grad()

    def accumulate(self, micro_batches: Sequence[MicroBatch]) -> None:
        """Forward and backward of every micro-batch; the gradients of their mean loss."""
        with self.variant.around(self.model):
            for images, labels in micro_batches:
                with torch.autocast(
                    self.settings.device, torch.bfloat16, enabled=self.settings.autocast
                ):
                    loss = F.cross_entropy(self.forward(images), labels)
                (loss / len(micro_batches)).backward()
                del loss  # what is left of its graph refers to held weights


def moving_averages(
    model: nn.Module, optimizer: torch.optim.Optimizer, settings: Settings
) -> dict[str, torch.Tensor | None]:
    """Of the parameters' gradients, by name, as the optimizer keeps them; None: of none."""
    key = KINDS[settings.optimizer].states[0]
    return {name: optimizer.state.get(p, {}).get(key) for name, p in model.named_parameters()}


def make_data(
    network: Network, batch: int, size: int, count: int, settings: Settings
) -> list[MicroBatch]:
    """The same random micro-batches at every call."""
    torch.manual_seed(SEED + 1)
    found = []
    for _ in range(count):
        images, labels = network.data(batch, size)
        images = images.to(settings.device, memory_format=settings.memory_format)
        found.append((images, labels.to(settings.device)))
    return found
