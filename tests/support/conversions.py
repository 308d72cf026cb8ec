"""convert without its warnings; converted models, and how close what is made of them comes."""

import warnings

import torch
import torch_ws
from architectures import build

RTOL = 1e-5  # other operations, the same mathematics, in float32; relative to the largest output


def quietly(*arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch_ws.convert(*arguments, **options)


def converted(name, grouped=False):
    """A model in eval mode with everything a layer can have, its input, its output."""
    model, x = build(name)
    quietly(model, "timm_nfnet", linear=True, gain=True, shift=True)
    if grouped:
        torch_ws.group(model)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.rpartition(".")[2] in ("gain", "shift"):
                parameter.uniform_(0.5, 1.5)
        return model, x, model(x)


def close(out, expected):
    torch.testing.assert_close(out, expected, rtol=0, atol=RTOL * expected.abs().max().item())
