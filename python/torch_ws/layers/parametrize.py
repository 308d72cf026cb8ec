"""Weight standardization of any tensor of any module, by torch.nn.utils.parametrize.

For what has no layer here: recurrent and attention weights, embeddings, modules of one's own. The
layers of modules.py do more where they exist: autocast's dtype, group, hold, the eval cache, fold.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize as torch_parametrize

from .._check import Module, check, check_flags, check_module, check_weight, naming
from ..core.standardize import fan_in_of, standardize
from ..formulas import Formula, FormulaName, resolve, spelled
from .standardized import TRANSPOSED, Standardized, regrouped


class WeightStandardization(nn.Module):
    """The parametrization that `parametrize` registers.

    Its result has the dtype of what it is given, under autocast too: autocast may hand out another
    dtype than cuDNN's recurrent kernels find in the biases beside it, torch.nn.utils.parametrize
    stores the result as the parameter when it is removed, its ``cached()`` serves a tensor inside
    and outside of autocast alike, and an embedding is not cast at all.
    """

    gain: nn.Parameter | None
    shift: nn.Parameter | None

    def __init__(self, formula: Formula, channel_dim: int, groups: int = 1):
        super().__init__()
        self.formula = formula
        self.channel_dim = channel_dim
        self.groups = groups  # of a transposed convolution
        self.register_parameter("gain", None)
        self.register_parameter("shift", None)

    def reset_parameters(self) -> None:
        """gain 1 and shift 0."""
        for vector, value in ((self.gain, 1.0), (self.shift, 0.0)):
            if vector is not None:
                nn.init.constant_(vector, value)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The standardized weight."""
        rows = standardize(
            self.to_rows(weight),
            self.gain,
            self.shift,
            formula=self.formula,
            channel_dim=self.channel_dim,
        )
        return self.to_rows(rows)  # and back

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        """What ``module.weight = weight`` stores: `weight` itself, to be standardized."""
        return weight

    def to_rows(self, weight):
        """The elements in an order in which `channel_dim` counts the channels, and back."""
        return weight if self.groups == 1 else regrouped(weight, self.groups)

    def extra_repr(self) -> str:
        text = f"formula={spelled(self.formula)}, channel_dim={self.channel_dim}"
        text += f", groups={self.groups}" if self.groups != 1 else ""
        given = [name for name in ("gain", "shift") if getattr(self, name) is not None]
        return text + "".join(f", {name}=True" for name in given)


def parametrize(
    module: Module,
    name: str = "weight",
    formula: FormulaName | Formula = "paper",
    *,
    channel_dim: int | None = None,
    gain: bool = False,
    shift: bool = False,
) -> Module:
    """Standardizes a parameter or buffer of any module from now on, in place.

    Equivalent to ``torch.nn.utils.parametrize.register_parametrization`` with a module that calls
    [`torch_ws.standardize`][]: ``module.weight`` is computed whenever it is read from the
    parameter ``module.parametrizations.weight.original``, the same object as before.
    ``remove_parametrizations`` takes it back.

    Args:
        module: any module but torch_ws's own layers, which standardize their weight themselves.
        name: of the parameter or buffer, of at least 2 dimensions.
        formula: a name from [`torch_ws.formulas`][] or a [`torch_ws.Formula`][].
        channel_dim: the dimension of the channels; by default that of the output channels: of
            the weight of a transposed convolution as in [`torch_ws.WSConvTranspose2d`][], also
            with groups, and 0 otherwise.
        gain: a learnable factor a channel, a new parameter
            ``module.parametrizations.weight.0.gain`` of shape (C,), initially 1, in the tensor's
            dtype. It requires a gradient if the tensor does.
        shift: likewise a learnable offset a channel, initially 0.

    Returns:
        The module itself.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: the module has no such parameter or buffer, or it is not initialized; it is
            standardized already, by this function or by the layer; `channel_dim` or the formula
            does not fit; the tensor is sharded and would get a gain or shift that is not. The
            module is unchanged.
        NotImplementedError: a sparse or quantized tensor.
    """
    check_module(module, "module")
    if not isinstance(name, str):
        raise TypeError(f"name must be a str, got {type(name).__name__}")
    formula = resolve(formula)
    check_flags(gain=gain, shift=shift)
    weight = _tensor(module, name)
    if hasattr(weight, "device_mesh") and (gain or shift):
        raise ValueError(f"{name!r} is sharded, and a new gain or shift would not be: shard later")

    groups = 1
    if channel_dim is None:
        channel_dim = 0
        if isinstance(module, TRANSPOSED) and name == "weight":
            groups = module.groups
            channel_dim = 1 if groups == 1 else 0
    parametrization = WeightStandardization(formula, channel_dim, groups)
    with naming(f"{name!r} of {type(module).__name__}"):
        check_weight(weight, channel_dim)
        rows = parametrization.to_rows(weight.detach().to("meta"))
        arguments = formula.arguments(fan_in_of(rows, channel_dim))
        check(rows, None, None, channel_dim, *arguments)

    options = {"dtype": weight.dtype, "device": weight.device}
    channels = rows.shape[channel_dim]
    if gain:
        vector = torch.ones(channels, **options)
        parametrization.gain = nn.Parameter(vector, requires_grad=weight.requires_grad)
    if shift:
        vector = torch.zeros(channels, **options)
        parametrization.shift = nn.Parameter(vector, requires_grad=weight.requires_grad)
    torch_parametrize.register_parametrization(module, name, parametrization)
    return module


def _tensor(module, name):
    """The tensor of that name, or an error that says why it cannot be parametrized."""
    called = f"{name!r} of {type(module).__name__}"
    if isinstance(module, Standardized) and name == "weight":
        raise ValueError(f"{called} would be standardized twice: the layer does it already")
    if torch_parametrize.is_parametrized(module, name):
        if any(isinstance(p, WeightStandardization) for p in module.parametrizations[name]):
            raise ValueError(f"{called} is standardized already: remove_parametrizations first")
        with torch.enable_grad():  # else it would not say whether it requires one
            return getattr(module, name)
    tensor = module._parameters.get(name, module._buffers.get(name))
    if tensor is None:
        known = [*module._parameters, *module._buffers]
        held = ", ".join(map(repr, known)) if known else "none"
        hint = ""
        if hasattr(module, name):
            hint = "; what it has there is made otherwise, as by weight_norm or pruning, or is None"
        raise ValueError(
            f"name must be a parameter or buffer of {type(module).__name__} (it has {held}), "
            f"got {name!r}{hint}"
        )
    if is_lazy(tensor):
        raise ValueError(f"{called} is not initialized: first run the module once")
    return tensor
