"""convert, without its warnings."""

import warnings

import torch_ws


def quietly(*arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch_ws.convert(*arguments, **options)
