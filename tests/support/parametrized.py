"""Modules of every kind that has weights, parametrized, and the reference of what they compute."""

import copy

import torch
import torch_ws
from torch import nn
from torch.func import functional_call
from torch_ws import reference

FAN_IN = {"formula": "centered_weight_norm"}


class Bare(nn.Module):
    """A module of one's own, with a parameter and a buffer of any shape."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(3, 5, 2))
        self.register_buffer("mask", torch.randn(4, 6))

    def forward(self, x):
        return torch.einsum("coi,bi->bco", self.table, x) + self.mask.sum()


def tokens(*shape):
    return torch.randint(0, 7, shape)


# the module, the tensors' names, the inputs
CASES = {
    "conv": (lambda: nn.Conv2d(4, 6, 3, groups=2), ["weight"], lambda: (torch.randn(2, 4, 5, 5),)),
    "transposed": (
        lambda: nn.ConvTranspose1d(4, 6, 3),
        ["weight"],
        lambda: (torch.randn(2, 4, 5),),
    ),
    "linear": (lambda: nn.Linear(5, 3), ["weight"], lambda: (torch.randn(2, 5),)),
    "bilinear": (
        lambda: nn.Bilinear(3, 4, 5),
        ["weight"],
        lambda: (torch.randn(2, 3), torch.randn(2, 4)),
    ),
    "embedding": (lambda: nn.Embedding(7, 5), ["weight"], lambda: (tokens(2, 3),)),
    "embedding bag": (lambda: nn.EmbeddingBag(7, 5), ["weight"], lambda: (tokens(2, 3),)),
    "own": (Bare, ["table", "mask"], lambda: (torch.randn(4, 2),)),
    "attention": (
        lambda: nn.MultiheadAttention(6, 2),
        ["in_proj_weight"],
        lambda: (torch.randn(3, 2, 6),) * 3,
    ),
    "lstm": (
        lambda: nn.LSTM(4, 5, 2, bidirectional=True, proj_size=3),
        ["weight_ih_l0", "weight_hh_l0", "weight_hh_l1_reverse", "weight_hr_l0"],
        lambda: (torch.randn(6, 2, 4),),
    ),
    "gru": (
        lambda: nn.GRU(4, 5),
        ["weight_ih_l0", "weight_hh_l0"],
        lambda: (torch.randn(6, 2, 4),),
    ),
    "rnn": (lambda: nn.RNN(4, 5), ["weight_hh_l0"], lambda: (torch.randn(6, 2, 4),)),
    "cell": (lambda: nn.LSTMCell(4, 5), ["weight_ih", "weight_hh"], lambda: (torch.randn(2, 4),)),
}


def flat(outputs):
    """All tensors of nested outputs."""
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    return [t for o in outputs if o is not None for t in flat(o)]


def loss(outputs):
    return sum((o * torch.arange(1, 1 + o.numel()).view_as(o).cos()).sum() for o in flat(outputs))


def double(inputs):
    return tuple(x.double() if x.is_floating_point() else x for x in inputs)


def parametrized(case, **options):
    """(module, a plain copy, tensors' names, inputs, channel_dim), in float64."""
    make, names, inputs = CASES[case]
    module = make().double()
    plain = copy.deepcopy(module)
    for name in names:
        assert torch_ws.parametrize(module, name, **options) is module
    with torch.no_grad():
        for name in names:
            for vector in module.parametrizations[name][0].parameters():
                vector.normal_()
    return module, plain, names, double(inputs()), 1 if case == "transposed" else 0


def standardized_by_reference(module, names, channel_dim):
    """name -> (leaves, the standardized tensor): of what `module` holds, by the reference."""
    results = {}
    for name in names:
        held = module.parametrizations[name]
        leaves = [held.original, held[0].gain, held[0].shift]
        leaves = [None if t is None else t.detach().clone().requires_grad_() for t in leaves]
        formula = held[0].formula
        tensor = reference.standardize(*leaves, formula=formula, channel_dim=channel_dim)
        results[name] = leaves, tensor
    return results


RECURRENT = ["lstm", "gru", "rnn", "cell"]


def assert_follows_its_weights(module, plain, names, inputs, channel_dim):
    tensors = {n: t for n, (_, t) in standardized_by_reference(module, names, channel_dim).items()}
    others = {n: p for n, p in module.named_parameters() if "parametrizations" not in n}
    expected = functional_call(plain, {**others, **tensors}, inputs)
    torch.testing.assert_close(flat(module(*inputs)), flat(expected))
