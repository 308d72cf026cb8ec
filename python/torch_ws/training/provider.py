"""Who may compute a layer's standardized weight instead of the layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from ..layers.standardized import Standardized
    from .fused_layer import FusedLayer


class Provider(Protocol):
    """What a layer asks before it standardizes its weight, in ``Standardized.standardized_weight``.

    It stands in the attribute `_provider` of the layer's ``__dict__``: one at a time, and no part
    of copies and pickles. Providers are a group between passes and each of its passes (group.py), a
    block of passes (hold.py), and FSDP2's gathering, whose layers find their weight standardized
    already (distributed/gather.py), and a fused model's layers, each for itself (fused_layer.py).
    The eval cache (layers/cache.py) is asked last, for all layers.
    """

    idle: bool  # it computes nothing now: a pass or a block may take its place until that ends
    permanent: bool  # nothing may take its place: group and hold leave its layers alone
    # What stands for the layer in a fused model, whose results are stored while it trains.
    fused: FusedLayer | None = None

    @property
    def fused_class(self) -> type[FusedLayer] | None:
        """That of `fused`, if the weight is sharded and the provider gathers it standardized."""
        return None

    def move(self, move: Callable):
        """Calls `move`, which gives the layer's parameters other memory, and returns its result."""
        return move()

    def take(
        self, layer: Standardized, tensors: tuple, dtype: torch.dtype | None
    ) -> torch.Tensor | None:
        """The layer's standardized weight; None: the provider has none, and the layer goes on.

        Only what the layer itself would compute now: from these very (weight, gain, shift), with
        nothing written to them since; by the formula that the layer has; in this dtype (None: the
        weight's own); and with a graph if gradients are enabled and needed. Nobody writes to it.
        """
