"""A step of an optimizer on standardized weights: by the update kernel, and as it is composed.

`fused` and `composed` do the same to the parameters and the state of a torch.optim optimizer: take
the gradients of the standardized weights, make a step, and give the next standardized weights.
"""

from itertools import product

import torch
from torch_ws import Formula, reference, standardize
from torch_ws.core.update import raw_update_many
from torch_ws.formulas import resolve

STATES = ("momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")

# What the options of torch's optimizers can make of a step: every branch of csrc/update.h.
RULES = {
    "sgd": (torch.optim.SGD, {}),
    "decay": (torch.optim.SGD, {"weight_decay": 0.02}),
    "momentum": (torch.optim.SGD, {"momentum": 0.9}),
    "dampening": (torch.optim.SGD, {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.02}),
    "nesterov": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.02}),
    "maximize": (torch.optim.SGD, {"momentum": 0.9, "maximize": True, "weight_decay": 0.02}),
    "adam": (torch.optim.Adam, {}),
    "adam decay": (torch.optim.Adam, {"weight_decay": 0.02}),
    "adam, beta1 below a half": (torch.optim.Adam, {"betas": (0.3, 0.99)}),
    "amsgrad": (torch.optim.Adam, {"amsgrad": True, "betas": (0.9, 0.5)}),
    "adamw": (torch.optim.AdamW, {"weight_decay": 0.02}),
    "adamw, all": (
        torch.optim.AdamW,
        # An eps that shows in every step, of gradients of about 10. Far below them it would divide
        # the errors of gradients near 0, which are those of a right result and a peer by chance.
        {"weight_decay": 0.02, "maximize": True, "amsgrad": True, "eps": 0.1},
    ),
}


def optimizer_for(rule, weights, lr=0.05):
    """The rule's optimizer of parameters that have the memory of `weights`."""
    kind, options = RULES[rule]
    parameters = [torch.nn.Parameter(weight) for weight in weights]
    return kind(parameters, lr=lr, foreach=False, **options)


def parameters_of(optimizer):
    return optimizer.param_groups[0]["params"]


def states_of(optimizer):
    """Every parameter's states in a row."""
    states = (optimizer.state[p] for p in parameters_of(optimizer))
    return [state[name] for state, name in product(states, STATES) if state.get(name) is not None]


def rule_of(group, kind, clip_eps=1e-3):
    """The numbers of update_many's `rule`."""
    if kind is torch.optim.SGD:
        own = group["momentum"], group["dampening"], 0.0, group["nesterov"], 0.0
    else:
        own = *group["betas"], group["eps"], 0.0, kind is torch.optim.AdamW
    first = kind is not torch.optim.SGD, group["lr"], group["weight_decay"]
    return [float(number) for number in (*first, *own, group["maximize"], clip_eps)]


def scalars_of(formula, weight, channel_dim=0):
    formula = resolve(formula)
    return formula.arguments(weight.numel() // weight.shape[channel_dim])


def given(value, count):
    return [value] * count if value is None or not isinstance(value, list) else value


def make_states(optimizer):
    """As torch makes them at a parameter's first step; gives the flags of those that had none."""
    kind, group = type(optimizer), optimizer.param_groups[0]
    firsts = []
    for p in group["params"]:
        state = optimizer.state[p]
        firsts.append(not state)
        if kind is torch.optim.SGD:
            if group["momentum"] and not state:  # its memory is not read
                state["momentum_buffer"] = torch.full_like(p, float("nan"))
        elif not state:
            names = STATES[1 : 4 if group["amsgrad"] else 3]
            state["step"] = torch.tensor(0.0)
            state.update({name: torch.zeros_like(p) for name in names})
    return [int(first) for first in firsts]


def fused(
    optimizer,
    grads,
    formula="paper",
    outs=None,
    *,
    channel_dim=0,
    gain=None,
    new_gain=None,
    new_shift=None,
    factor=None,
    clip=0.0,
    clip_eps=1e-3,
    is_true=False,
    dtype=None,
    **numbers,
):
    """The step by the kernel. Vectors, factor and clip: one for all weights, or a list of them."""
    kind, group = type(optimizer), optimizer.param_groups[0]
    weights = group["params"]
    count = len(weights)
    flags = [first + 2 * is_true for first in make_states(optimizer)]
    steps = [] if kind is torch.optim.SGD else [optimizer.state[p]["step"] for p in weights]
    for step in steps:
        step += 1
    if outs is None:
        outs = [torch.empty_like(w, dtype=dtype or w.dtype).detach() for w in weights]
    raw_update_many(
        outs,
        weights,
        states_of(optimizer),
        grads,
        *(given(vector, count) for vector in (gain, new_gain, new_shift, factor)),
        [channel_dim] * count,
        [float(n) for w in weights for n in scalars_of(formula, w, channel_dim)],
        rule_of(group, kind, clip_eps),
        flags,
        given(clip, count),
        steps,
        **numbers,
    )
    return outs


def clipped(grad, weight, clip, eps, channel_dim=0):
    """timm's adaptive_clip_grad, over rows."""
    dims = [d for d in range(weight.dim()) if d != channel_dim]
    norm, grad_norm = (t.norm(2, dims, keepdim=True) for t in (weight.detach(), grad))
    max_norm = norm.clamp(min=eps) * clip
    return torch.where(grad_norm < max_norm, grad, grad * (max_norm / grad_norm.clamp(min=1e-6)))


def composed(
    optimizer,
    grads,
    formula="paper",
    *,
    channel_dim=0,
    gain=None,
    new_gain=None,
    new_shift=None,
    factor=None,
    clip=0.0,
    clip_eps=1e-3,
    is_true=False,
    dtype=None,
):
    """The step of its parts, in the parameters' dtype: the reference's backward, the optimizer's
    own step, the reference. In float64 it is the judge of the kernel."""
    for p, grad in zip(parameters_of(optimizer), grads, strict=True):
        gradient = grad.to(p.dtype)
        if not is_true:
            leaf = p.detach().requires_grad_()
            out = reference.standardize(
                leaf, as_(gain, p), formula=formula, channel_dim=channel_dim
            )
            (gradient,) = torch.autograd.grad(out, leaf, gradient)
        if factor is not None:
            gradient = gradient * factor.to(p.dtype)
        if clip:
            gradient = clipped(gradient, p, clip, clip_eps, channel_dim)
        p.grad = gradient
    optimizer.step()
    return [
        reference.standardize(
            p.detach(),
            as_(new_gain, p),
            as_(new_shift, p),
            formula=formula,
            channel_dim=channel_dim,
            dtype=dtype,
        )
        for p in parameters_of(optimizer)
    ]


def as_(vector, weight):
    return None if vector is None else vector.to(weight.dtype)


def kernel_gradient(grad, weight, gain=None, formula="paper", channel_dim=0):
    """ws::backward's, which the update is to use bitwise."""
    scalars = scalars_of(formula, weight, channel_dim)
    return torch.ops.ws.backward(grad, weight.detach(), gain, channel_dim, *scalars)


def standardized(weight, gain=None, shift=None, formula: str | Formula = "paper", **options):
    """ws::forward's, which the update's out is to be bitwise."""
    return standardize(weight.detach(), gain, shift, formula=formula, **options)
