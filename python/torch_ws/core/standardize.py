"""The public function."""

from __future__ import annotations

import torch
from torch.compiler import is_compiling
from torch.fx import Proxy
from torch.fx.proxy import TraceError

from .. import reference
from .._check import allocate_again, check, check_weight, explain
from ..formulas import Formula, FormulaName, resolve
from .autograd import DEFAULTS, apply, raw_forward
from .private import is_tracing, needs_reference

Tensor = torch.Tensor


def standardize(
    weight: Tensor,
    gain: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    formula: FormulaName | Formula = "paper",
    channel_dim: int = 0,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Standardizes every output channel of a weight. Differentiable.

    Equivalent to, for a convolution's weight and the default formula:

        std, mean = torch.std_mean(weight, dim=(1, 2, 3), correction=0, keepdim=True)
        out = (weight - mean) / (std + 1e-5)
        out = gain.view(-1, 1, 1, 1) * out + shift.view(-1, 1, 1, 1)  # where given

    but in one pass over memory, forward and backward, with statistics in float32 (float64 for
    float64 weights) whose error does not grow with ``|mean| / std``. A channel of one value gives
    zeros. NaN and Inf stay in their channel.

    Args:
        weight: (C, ...), at least 2 dimensions; float32, float64, float16 or bfloat16. Any strides;
            what is dense in memory is not copied, whatever its memory format.
        gain: (C,), in the weight's dtype.
        shift: (C,), in the weight's dtype.
        formula: a name from [`torch_ws.formulas`][] or a [`torch_ws.Formula`][].
        channel_dim: the dimension of the output channels; 1 for a transposed convolution.
        dtype: the result's dtype, by default the weight's. A float32 weight gives its bfloat16 or
            float16 result in the same pass.

    Returns:
        A tensor of the weight's shape and strides.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: a shape, dtype, device, dimension or formula does not fit; the message says
            which argument, what was expected and what came.
        NotImplementedError: a sparse or quantized tensor.

    Source: Qiao et al., "Micro-Batch Training with Batch-Channel Normalization and Weight
    Standardization", arXiv:1903.10520. For the other formulas see [`torch_ws.formulas`][].
    """
    try:
        resolved = resolve(formula)
        scalars = resolved.fixed or resolved.arguments(fan_in_of(weight, channel_dim))
        arguments = (channel_dim, *scalars, dtype)
        traced = is_compiling() or is_tracing()
        if traced and not torch.onnx.is_in_onnx_export():  # ONNX has no such op
            return _op(weight, gain, shift, *arguments)
        if traced or needs_reference() or not (weight.is_cpu or weight.is_cuda or weight.is_meta):
            check(weight, gain, shift, *arguments)
            return reference.standardize_op(weight, gain, shift, *arguments)
        if torch.is_grad_enabled() and (
            weight.requires_grad
            or (gain is not None and gain.requires_grad)
            or (shift is not None and shift.requires_grad)
        ):
            return apply(weight, gain, shift, arguments)
        return raw_forward(weight, gain, shift, *arguments)
    except TraceError:
        # A Proxy of torch.fx knows neither its device nor its size: the traced graph calls the op,
        # or, where the op's arguments depend on the size, this function.
        if resolved.fixed is not None:
            return _op(weight, gain, shift, *arguments)
        options = {"formula": resolved, "channel_dim": channel_dim, "dtype": dtype}
        tensors = (weight, gain, shift)
        tracer = weight.tracer  # type: ignore[attr-defined]  # the Proxy's
        return tracer.create_proxy("call_function", standardize, tensors, options)
    except (AttributeError, RuntimeError, TypeError, IndexError):
        # The ops refuse bad arguments before any work, tersely and cheaply. This says why.
        check_weight(weight, channel_dim)
        scalars = resolve(formula).arguments(fan_in_of(weight, channel_dim))
        explain(weight, gain, shift, channel_dim, *scalars, dtype)
        allocate_again([weight], dtype)
        raise


def _op(weight, gain, shift, *arguments) -> Tensor:
    options = dict(zip(DEFAULTS, arguments, strict=True))
    return torch.ops.ws.standardize(weight, gain, shift, **options)


def fan_in_of(weight, channel_dim):
    """The elements of a channel; 1 for an empty weight, which has no use for it."""
    if isinstance(weight, Proxy):
        raise TraceError("the size of a traced weight is not known")
    return weight.numel() // (weight.shape[channel_dim] or 1) or 1
