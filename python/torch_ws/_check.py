"""What is refused, and in which words. Every entry point raises from here, before any work.

The ops check the same conditions tersely for their own safety; on the fast path nothing here runs
until an op has refused its arguments (core/standardize.py). The fake kernels, which stand for an
op where a tensor has no data, check here too.
"""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import nn

from .formulas import EPS_MODES

# A weight's dtype -> the dtypes its result can have. The first is the default.
OUTPUT_DTYPES = {
    torch.float32: (torch.float32, torch.float16, torch.bfloat16),
    torch.float64: (torch.float64,),
    torch.float16: (torch.float16,),
    torch.bfloat16: (torch.bfloat16,),
}
Module = TypeVar("Module", bound=nn.Module)  # what is changed in place keeps its type
INPUT_SHAPES = {2: "(N, C)", 3: "(N, C, L)", 4: "(N, C, H, W)", 5: "(N, C, D, H, W)"}
MAX_DIMS = 64  # csrc/layout.h has it too


def called(name, layer):
    return f"{name!r} ({type(layer).__name__})" if name else f"the model ({type(layer).__name__})"


def few(names):
    """The last names, which matter most, and how many more there are."""
    names = [name if "(" in name else repr(name or "the model") for name in names]
    return (f"{len(names) - 3} more and " if len(names) > 3 else "") + ", ".join(names[-3:])


class naming:
    """Puts before the message of an error within it what the error is about."""

    def __init__(self, called: str):
        self.called = called

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if isinstance(error, (TypeError, ValueError, RuntimeError)):
            raise kind(f"{self.called}: {error}") from error


def check_module(module, name="model") -> None:
    """Raises unless the argument of that name is a module."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"{name} must be a torch.nn.Module, got {type(module).__name__}")


def check_flags(**flags) -> None:
    """Raises unless each is a bool: 0.5 would be taken for True."""
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise TypeError(f"{name} must be a bool, got {type(flag).__name__}")


def check_positive(name, number) -> None:
    """Raises unless the argument of that name is an int above 0."""
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{name} must be an int, got {type(number).__name__}")
    if number <= 0:
        raise ValueError(f"{name} must be positive, got {number}")


def check_float(name, number) -> None:
    """Raises unless the argument of that name is a number, which a bool is not meant to be."""
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        raise TypeError(f"{name} must be a float, got {type(number).__name__}")


def check_eps(eps) -> None:
    """Raises unless it can be added to a variance."""
    check_float("eps", eps)
    if not (math.isfinite(eps) and eps >= 0):
        raise ValueError(f"eps must be finite and not negative, got {eps}")


def check_input(input, num_channels, dims=()) -> None:
    """Raises unless the input is (N, C, ...) with a number of dimensions among `dims`, if given."""
    if not isinstance(input, torch.Tensor):
        raise TypeError(f"input must be a torch.Tensor, got {type(input).__name__}")
    shape = " or ".join(INPUT_SHAPES[n] for n in dims) or "(N, C, ...)"
    if input.dim() < 2 or (dims and input.dim() not in dims):
        raise ValueError(f"input must have shape {shape}, got {tuple(input.shape)}")
    if input.shape[1] != num_channels:
        raise ValueError(
            f"input must have shape {shape} with C = {num_channels}, got {tuple(input.shape)}"
        )


def _name(dtype):
    return str(dtype).removeprefix("torch.")


def check_weight(weight, channel_dim=0) -> None:
    """Raises unless `weight` is a dense floating-point tensor with a `channel_dim`."""
    if not isinstance(weight, torch.Tensor):
        raise TypeError(f"weight must be a torch.Tensor, got {type(weight).__name__}")
    if weight.is_quantized:
        raise NotImplementedError(f"weight must not be quantized, got {weight.dtype}")
    if weight.layout != torch.strided:
        raise NotImplementedError(f"weight must be a dense (strided) tensor, got {weight.layout}")
    if weight.dtype not in OUTPUT_DTYPES:
        allowed = ", ".join(map(_name, OUTPUT_DTYPES))
        raise ValueError(f"weight must have dtype {allowed}; got {_name(weight.dtype)}")
    if weight.dim() < 2:
        raise ValueError(
            "weight must have at least 2 dimensions (channels and their elements), "
            f"got shape {tuple(weight.shape)}"
        )
    if weight.dim() > MAX_DIMS:
        raise ValueError(f"weight must have at most {MAX_DIMS} dimensions, got {weight.dim()}")
    if isinstance(channel_dim, bool) or not isinstance(channel_dim, int):
        raise TypeError(f"channel_dim must be an int, got {type(channel_dim).__name__}")
    if not -weight.dim() <= channel_dim < weight.dim():
        raise ValueError(
            f"channel_dim must be in [{-weight.dim()}, {weight.dim() - 1}] for a weight of shape "
            f"{tuple(weight.shape)}, got {channel_dim}"
        )


def check(
    weight, gain, shift, channel_dim, eps, eps_mode, correction, center, scale, dtype=None
) -> None:
    """Raises for what ws::standardize refuses; the arguments are the op's."""
    check_weight(weight, channel_dim)
    channels = weight.shape[channel_dim]
    for name, tensor in (("gain", gain), ("shift", shift)):
        if tensor is None:
            continue
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name} must be a torch.Tensor or None, got {type(tensor).__name__}")
        if tensor.layout != torch.strided or tensor.is_quantized:
            raise NotImplementedError(f"{name} must be a dense (strided) tensor")
        if tensor.shape != (channels,):
            raise ValueError(
                f"{name} must have shape ({channels},), one value a channel; "
                f"got {tuple(tensor.shape)}"
            )
        if tensor.dtype != weight.dtype:
            raise ValueError(
                f"{name} must have the weight's dtype {_name(weight.dtype)}, "
                f"got {_name(tensor.dtype)}"
            )
        if tensor.device != weight.device:
            raise ValueError(
                f"{name} must be on the weight's device {weight.device}, got {tensor.device}"
            )
    if not 0 <= eps_mode < len(EPS_MODES):
        meanings = ", ".join(f'{i} "{mode}"' for i, mode in enumerate(EPS_MODES))
        raise ValueError(f"eps_mode must be one of {meanings}; got {eps_mode}")
    if not (math.isfinite(eps) and eps >= 0):
        raise ValueError(f"eps must be finite and not negative, got {eps}")
    if not math.isfinite(scale):
        raise ValueError(f"scale must be finite, got {scale}")
    statistics = torch.float64 if weight.dtype == torch.float64 else torch.float32
    for name, number, origin in (("eps", eps, ""), ("scale", scale, ", from the formula's gamma")):
        if abs(number) > torch.finfo(statistics).max:
            raise ValueError(
                f"{name} must be finite in {_name(statistics)}, the type of the statistics of a "
                f"{_name(weight.dtype)} weight; got {number}{origin}"
            )
    if correction < 0:
        raise ValueError(f"correction must not be negative, got {correction}")
    if weight.numel() > 0:
        fan_in = weight.numel() // channels
        if correction >= fan_in:
            raise ValueError(
                f"correction must be smaller than the elements of a channel ({fan_in}, of a weight "
                f"of shape {tuple(weight.shape)}), got {correction}"
            )
    if dtype is not None:
        if not isinstance(dtype, torch.dtype):
            raise TypeError(f"dtype must be a torch.dtype or None, got {type(dtype).__name__}")
        allowed = OUTPUT_DTYPES[weight.dtype]
        if dtype not in allowed:
            raise ValueError(
                f"dtype must be {' or '.join(map(_name, allowed))} for a {_name(weight.dtype)} "
                f"weight, got {_name(dtype)}"
            )


def check_backward(grad, weight, gain, *arguments) -> None:
    """Raises for what ws::backward refuses; the arguments are the op's."""
    check(weight, gain, None, *arguments)
    _check_like_result("grad", grad, weight)


def check_into(out, weight, gain, shift, *arguments) -> None:
    """Raises for what ws::forward_into refuses of one weight and its `out`."""
    check(weight, gain, shift, *arguments)
    _check_like_result("out", out, weight)
    if out.numel() > 0 and out.stride() != torch.empty_like(out, device="meta").stride():
        raise ValueError(
            f"out must fill its memory without gaps, got shape {tuple(out.shape)} with strides "
            f"{out.stride()}"
        )


def _check_like_result(name, tensor, weight):
    """Raises unless it is what a result of `weight` can be."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise NotImplementedError(f"{name} must be a dense (strided) tensor")
    if tensor.shape != weight.shape:
        raise ValueError(
            f"{name} must have the weight's shape {tuple(weight.shape)}, got {tuple(tensor.shape)}"
        )
    allowed = OUTPUT_DTYPES[weight.dtype]
    if tensor.dtype not in allowed:
        raise ValueError(
            f"{name} must have dtype {' or '.join(map(_name, allowed))} for a "
            f"{_name(weight.dtype)} weight, got {_name(tensor.dtype)}"
        )
    if tensor.device != weight.device:
        raise ValueError(
            f"{name} must be on the weight's device {weight.device}, got {tensor.device}"
        )


def explain(weight, gain, shift, *arguments) -> None:
    """Raises what was wrong with the arguments that ws::standardize refused, if anything was."""
    check(weight, gain, shift, *arguments)
    check_memory(weight=weight, gain=gain, shift=shift)


def explain_backward(grad, weight, gain, *arguments) -> None:
    """The same for ws::backward."""
    check_backward(grad, weight, gain, *arguments)
    check_memory(grad=grad, weight=weight, gain=gain)


def explain_into(out, weight, gain, shift, *arguments) -> None:
    """The same for ws::forward_into."""
    check_into(out, weight, gain, shift, *arguments)
    check_memory(out=out, weight=weight, gain=gain, shift=shift)


def check_memory(**tensors):
    """Raises for a tensor whose storage was freed or shrunk (untyped_storage().resize_)."""
    for name, tensor in tensors.items():
        if tensor is None or tensor.numel() == 0:
            continue
        try:
            held = tensor.untyped_storage().nbytes()
        except NotImplementedError:  # what torch.func puts around a tensor has none
            continue
        steps = ((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
        needed = (tensor.storage_offset() + sum(steps) + 1) * tensor.element_size()
        if held < needed:
            raise ValueError(
                f"{name} must have memory for its {tensor.numel()} elements, {needed} bytes of "
                f"storage; got {held}"
            )


def allocate_again(weights, dtype=None, grads=()) -> None:
    """Makes what a call that failed makes: its results, and copies of what has other strides.

    The ops do it through PyTorch's stable interface, which loses the type and the words of an
    error. Where memory has run out, this raises PyTorch's own, such as torch.OutOfMemoryError.
    """
    results = [torch.empty_like(weight, dtype=dtype or weight.dtype) for weight in weights]
    copies = []  # all are held at once, as in the call
    for tensors in (weights, grads):
        for result, tensor in zip(results, tensors, strict=False):
            copies.append(torch.empty_like(result, dtype=tensor.dtype))
