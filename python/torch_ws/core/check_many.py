"""Checks of the list ops' arguments, naming each weight by its index."""

from __future__ import annotations

from .._check import check, check_backward, check_into, naming
from ..formulas import Arguments


def _whole(name, number):
    if not float(number).is_integer():
        raise ValueError(f"{name} must be a whole number, got {number}")
    return int(number)


def options_of(formulas, i) -> Arguments:
    """The options of ws::standardize for weight i. In the list ops all numbers travel as floats."""
    eps, eps_mode, correction, center, scale = formulas[5 * i : 5 * i + 5]
    if center not in (0, 1):
        raise ValueError(f"center must be 0 or 1, got {center}")
    return eps, _whole("eps_mode", eps_mode), _whole("correction", correction), bool(center), scale


def check_lists(weights, formulas, **lists):
    for name, values in lists.items():
        if len(values) != len(weights):
            raise ValueError(
                f"{name} must have one entry a weight, {len(weights)}; got {len(values)}"
            )
    if len(formulas) != 5 * len(weights):
        raise ValueError(
            f"formulas must have 5 numbers a weight, {5 * len(weights)} in all; got {len(formulas)}"
        )


def check_one_device(weights, i):
    if weights[i].device != weights[0].device:
        raise ValueError(
            f"weights must be on one device, {weights[0].device}; got {weights[i].device}"
        )


def check_all(weights, gains, shifts, channel_dims, formulas, dtype, each=check):
    check_lists(weights, formulas, gains=gains, shifts=shifts, channel_dims=channel_dims)
    for i, weight in enumerate(weights):
        with naming(f"weights[{i}]"):
            options = options_of(formulas, i)
            each(weight, gains[i], shifts[i], channel_dims[i], *options, dtype)
            check_one_device(weights, i)


def check_all_into(outs, weights, gains, shifts, channel_dims, formulas, each=check_into):
    lists = {"outs": outs, "gains": gains, "shifts": shifts, "channel_dims": channel_dims}
    check_lists(weights, formulas, **lists)
    for i, weight in enumerate(weights):
        with naming(f"weights[{i}]"):
            options = options_of(formulas, i)
            each(outs[i], weight, gains[i], shifts[i], channel_dims[i], *options)
            check_one_device(weights, i)


def check_all_backward(grads, weights, gains, channel_dims, formulas, each=check_backward):
    check_lists(weights, formulas, grads=grads, gains=gains, channel_dims=channel_dims)
    for i, weight in enumerate(weights):
        with naming(f"weights[{i}]"):
            each(grads[i], weight, gains[i], channel_dims[i], *options_of(formulas, i))
            check_one_device(weights, i)
