"""The published formulas of weight standardization, as data.

Every one of them is the same computation with another scalar epilogue per channel:

    var   = sum((w - mean)**2) / (N - correction)        N = fan-in, the elements of a channel
    d     = sqrt(var) + eps | sqrt(var + eps) | sqrt(max(var, eps))      by eps_mode
    w_hat = scale * (w - mean) / d
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import ClassVar, Literal, get_args

EpsMode = Literal["std", "var", "clamp"]
Scale = Literal["unit", "fan_in"]
EPS_MODES: tuple[EpsMode, ...] = get_args(EpsMode)
SCALES: tuple[Scale, ...] = get_args(Scale)

# The keys of `formulas`
FormulaName = Literal[
    "paper",
    "qiao",
    "qiao_bcn",
    "mmcv_aws",
    "timm",
    "timm_bit",
    "timm_scaled",
    "timm_nfnet",
    "bit",
    "nfnet",
    "keras_nfnet",
    "nnabla",
    "spikingjelly",
    "centered_weight_norm",
    "weight_norm",
]
Arguments = tuple[float, int, int, bool, float]  # eps, eps_mode, correction, center, scale


@dataclass(frozen=True)
class Formula:
    """One formula of weight standardization.

    Args:
        eps: keeps the division finite; see ``eps_mode``.
        eps_mode: ``"std"``: ``sqrt(var) + eps``; ``"var"``: ``sqrt(var + eps)``; ``"clamp"``:
            ``sqrt(max(var, eps))``.
        correction: 0 for the population variance, 1 for the sample variance.
        center: subtract the channel's mean; without it ``var`` is the mean square.
        scale: ``"unit"``: channels of standard deviation ``gamma``; ``"fan_in"``: of
            ``gamma / sqrt(N)``.
        gamma: a constant factor, such as the gain of the activation that follows.
        eps_per_fan_in: use ``eps / N``, as in NFNets' ``max(var * fan_in, eps)``.

    Raises:
        TypeError: an argument is not of the type shown.
        ValueError: a negative or non-finite number, or an unknown ``eps_mode`` or ``scale``.
    """

    eps: float = 1e-5
    eps_mode: EpsMode = "std"
    correction: int = 0
    center: bool = True
    scale: Scale = "unit"
    gamma: float = 1.0
    eps_per_fan_in: bool = False

    # Each instance's own. No field, which asdict(), == and repr would have; ClassVar says that.
    fixed: ClassVar[Arguments | None]

    def __post_init__(self):
        for name in ("eps", "gamma"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{name} must be a float, got {type(value).__name__}")
            if not math.isfinite(value):
                raise ValueError(f"{name} must be finite, got {value}")
        if self.eps < 0:
            raise ValueError(f"eps must not be negative, got {self.eps}")
        if isinstance(self.correction, bool) or not isinstance(self.correction, int):
            raise TypeError(f"correction must be an int, got {type(self.correction).__name__}")
        if self.correction < 0:
            raise ValueError(f"correction must not be negative, got {self.correction}")
        for name in ("center", "eps_per_fan_in"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be a bool, got {type(getattr(self, name)).__name__}")
        for name, allowed in (("eps_mode", EPS_MODES), ("scale", SCALES)):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise TypeError(f"{name} must be a str, got {type(value).__name__}")
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")
        # Most formulas do not depend on N; theirs are computed here, once, and not at every call.
        fixed = None
        if self.scale == "unit" and not self.eps_per_fan_in:
            fixed = self._arguments(1)
        object.__setattr__(self, "fixed", fixed)

    def arguments(self, fan_in: int) -> Arguments:
        """The ops' ``(eps, eps_mode, correction, center, scale)`` for channels of `fan_in`."""
        return self.fixed or self._arguments(fan_in)

    def for_fan_in(self, fan_in: int) -> Formula:
        """The same for channels of `fan_in`, as a formula that no longer depends on it."""
        eps, _, _, _, gamma = self.arguments(fan_in)
        return replace(self, eps=eps, gamma=gamma, scale="unit", eps_per_fan_in=False)

    def _arguments(self, fan_in: int) -> Arguments:
        eps = self.eps / fan_in if self.eps_per_fan_in else self.eps
        scale = self.gamma / math.sqrt(fan_in) if self.scale == "fan_in" else self.gamma
        return (
            float(eps),
            EPS_MODES.index(self.eps_mode),
            self.correction,
            self.center,
            float(scale),
        )


def spelled(formula: FormulaName | Formula) -> str:
    """The formula as code writes it: its name in quotes if it has one, else its arguments."""
    names = [name for name, known in formulas.items() if formula in (name, known)]
    return repr(names[0] if names else formula)


class _ByName(dict):
    """Says in words that it has no such name."""

    def __missing__(self, name):
        raise KeyError(f"no formula {name!r}{did_you_mean(name)}; there are {', '.join(self)}")


def did_you_mean(name) -> str:
    """For an error about a name that is not in `formulas`: those in it that are near."""
    near = difflib.get_close_matches(str(name).lower(), formulas)
    return f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""


# Read-only; a dict below, whose lookups torch.compile knows and which is as fast as they come.
formulas: Mapping[str, Formula] = MappingProxyType(
    _ByName(
        {
            # Qiao et al. 2019 as commonly stated; big_vision bit.py, vision_transformer
            "paper": Formula(),
            # the authors' PyTorch code; mmcv ConvWS2d
            "qiao": Formula(correction=1),
            # the authors' ImageNet code of Batch-Channel Normalization
            "qiao_bcn": Formula(correction=1, eps_mode="var"),
            # mmcv ConvAWS2d, whose gain and shift are buffers
            "mmcv_aws": Formula(correction=1, eps_mode="var"),
            # timm StdConv2d, its default; and as BiT and ViT-hybrid use it
            "timm": Formula(eps=1e-6, eps_mode="var"),
            "timm_bit": Formula(eps=1e-8, eps_mode="var"),
            # timm ScaledStdConv2d, its default; and as NFNets use it (with a gain)
            "timm_scaled": Formula(eps=1e-6, eps_mode="var", scale="fan_in"),
            "timm_nfnet": Formula(eps=1e-5, eps_mode="var", scale="fan_in"),
            # google-research big_transfer; composer
            "bit": Formula(eps=1e-10, eps_mode="var"),
            # deepmind-research nfnets (with a gain)
            "nfnet": Formula(eps=1e-4, eps_mode="clamp", eps_per_fan_in=True, scale="fan_in"),
            # keras_cv_attention_models nfnets (with a gain)
            "keras_nfnet": Formula(eps=1e-5, eps_mode="clamp", eps_per_fan_in=True, scale="fan_in"),
            # nnabla, chainer, TensorFlow's deeplab, lucidrains in float32
            "nnabla": Formula(eps_mode="var"),
            # spikingjelly WSConv2d (with a gain)
            "spikingjelly": Formula(
                eps=1e-4, eps_mode="var", correction=1, eps_per_fan_in=True, scale="fan_in"
            ),
            # Huang et al. 2017 (with a gain)
            "centered_weight_norm": Formula(eps=0.0, eps_mode="var", scale="fan_in"),
            # Salimans & Kingma 2016; torch's weight_norm (with a gain)
            "weight_norm": Formula(eps=0.0, eps_mode="var", center=False, scale="fan_in"),
        }
    )
)


def resolve(formula: FormulaName | Formula) -> Formula:
    """The Formula of that name, or the Formula itself."""
    if isinstance(formula, Formula):
        return formula
    if not isinstance(formula, str):
        raise TypeError(f"formula must be a name or a Formula, got {type(formula).__name__}")
    if formula not in formulas:
        raise ValueError(
            f"formula must be one of {', '.join(formulas)}; got {formula!r}{did_you_mean(formula)}"
        )
    return formulas[formula]
