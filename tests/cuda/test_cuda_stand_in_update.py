"""The CUDA kernels of the update, through the stand-in: against the kernels of their parts, and
against torch.optim in float64.
"""

import pytest
import torch
from accuracy import assert_close, relative_error
from cuda_stand_in.check import expected
from cuda_stand_in.kernels import F32, PAPER, SUMS, TYPES, Layout, Weight
from cuda_stand_in.kinds import GAPS, KINDS, NAMES, ROWS, every_kind
from optimizer_steps import clipped

UPDATED = [1, 4, 5, *SUMS]  # with a kernel for updates
every_types = pytest.mark.parametrize("types", UPDATED, ids=[NAMES[t] for t in UPDATED])


def grad_type(types):
    return TYPES[types][0 if types in SUMS else 1]


# What a rule can make of a step: the options of torch's optimizers, as Rule's fields too.
SGD = {"lr": 0.1}
ADAM = {"adam": True, "lr": 0.01, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "step": 3}
RULES = {
    "sgd": SGD,
    "momentum": SGD | {"momentum": 0.9, "dampening": 0.1, "weight_decay": 0.02},
    "first": SGD | {"momentum": 0.9, "dampening": 0.1, "is_first": True},
    "nesterov": SGD | {"momentum": 0.9, "nesterov": True, "maximize": True, "weight_decay": 0.02},
    "adam": ADAM | {"weight_decay": 0.02},
    "adamw": ADAM | {"weight_decay": 0.02, "decoupled": True, "maximize": True},
    "amsgrad": ADAM | {"amsgrad": True},
}


def make(types, rows, cols, rule):
    """A gradient, a weight, and the states that the rule has."""
    dtype = TYPES[types][0]
    grad = (torch.randn(rows, cols) + 0.25).to(grad_type(types))
    weight = (torch.randn(rows, cols) * 0.05 + 0.01).to(dtype)
    count = 2 + ("amsgrad" in rule) if "adam" in rule else int("momentum" in rule)
    states = [(torch.randn(rows, cols) * 0.1).to(dtype) for _ in range(count)]
    states[1:] = [(torch.rand(rows, cols) + 0.5).to(dtype) / 100 for _ in states[1:]]
    if "is_first" in rule:  # its memory is not read
        states = [torch.full_like(state, float("nan")) for state in states]
    return grad, weight, states


def fields(rule):
    return {name: value for name, value in rule.items() if name != "amsgrad"}


def stepped(rule, gradient, weight, states):
    """torch's own optimizer, in the tensors' dtype: the updated weight, and its states."""
    p = torch.nn.Parameter(weight.clone())
    common = {name: rule.get(name, 0) for name in ("lr", "weight_decay")}
    common |= {"maximize": rule.get("maximize", False), "foreach": False}
    if "adam" in rule:
        kind = torch.optim.AdamW if "decoupled" in rule else torch.optim.Adam
        betas = (rule["beta1"], rule["beta2"])
        optimizer = kind([p], betas=betas, eps=rule["eps"], amsgrad="amsgrad" in rule, **common)
        names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
        optimizer.state[p]["step"] = torch.tensor(rule["step"] - 1.0)
    else:
        own = {name: rule.get(name, 0) for name in ("momentum", "dampening", "nesterov")}
        optimizer = torch.optim.SGD([p], **own, **common)
        names = ("momentum_buffer",) if "is_first" not in rule else ()
    for name, state in zip(names, states, strict=False):
        optimizer.state[p][name] = state.clone()
    p.grad = gradient
    optimizer.step()
    kept = ("momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    state = optimizer.state[p]
    return p.detach(), [state[name] for name in kept if state.get(name) is not None]


def composed(rule, grad, weight, states, gain, formula):
    """The weight and the states after the reference's backward and torch's step, in their dtype."""
    leaf = weight.clone().requires_grad_()
    gain = None if gain is None else gain.to(weight.dtype)
    (gradient,) = torch.autograd.grad(expected(leaf, gain, None, formula), leaf, grad)
    stepped_weight, states = stepped(rule, gradient, weight, [s.to(weight.dtype) for s in states])
    return [stepped_weight, *states]


def check(kernels, types, rule, rows, cols, layout, max_cluster, formula=PAPER, **vectors):
    grad, weight, states = make(types, rows, cols, rule)
    options = {"max_cluster": max_cluster, "formula": formula}
    result = kernels.update(
        types, grad, weight, states, rule=fields(rule), layouts=[layout] * 4, **options, **vectors
    )
    judges, peers = (
        composed(rule, grad.to(dtype), weight.to(dtype), states, vectors.get("gain"), formula)
        for dtype in (torch.float64, torch.float32)
    )
    names = ("weight", "first", "second", "largest")
    for name, judge, peer in zip(names, judges, peers, strict=False):
        # twice what accuracy.py allows, since a step has more roundings than a standardization
        assert_close(result.tensors[name], judge, 2 * relative_error(peer, judge))
    return result


@pytest.mark.slow
@every_kind
@pytest.mark.parametrize("rule", RULES)
def test_rules(kernels, rule, kind):
    rows, cols, layout, max_cluster = KINDS[kind]
    check(kernels, F32, RULES[rule], rows, cols, layout, max_cluster)


@every_kind
@every_types
def test_out_is_the_forward_kernels(kernels, types, kind):
    # bitwise, so that training goes on from a checkpoint
    rows, cols, layout, max_cluster = KINDS[kind]
    dtype = TYPES[types][0]
    gains, shift = torch.randn(2, rows).to(dtype), torch.randn(rows).to(dtype)
    result = check(
        kernels,
        types,
        RULES["momentum"],
        rows,
        cols,
        layout,
        max_cluster,
        gain=gains[0],
        new_gain=gains[1],
        new_shift=shift,
    )
    assert result.record.launches == (4 if result.plan.form == "split" else 1)
    pair = types - 2 if types in SUMS else types
    forward = kernels.forward(
        pair,
        result.tensors["weight"].clone(),
        gains[1],
        shift,
        layouts=[layout] * 2,
        max_cluster=max_cluster,
    )
    assert forward.plan.access == result.plan.access and forward.plan.team == result.plan.team
    assert torch.equal(result.tensors["out"], forward.tensors["out"])


@every_kind
def test_first_step_stores_the_backward_kernels_gradient(kernels, kind):
    # bitwise: its statistics and its expression
    rows, cols, layout, max_cluster = KINDS[kind]
    grad, weight, states = make(F32, rows, cols, RULES["first"])
    options = {"max_cluster": max_cluster}
    gain = torch.randn(rows)
    update = kernels.update(
        F32, grad, weight, states, gain, rule=RULES["first"], layouts=[layout] * 4, **options
    )
    backward = kernels.backward(F32, grad, weight, gain, layouts=[layout] * 3, **options)
    assert torch.equal(update.tensors["first"], backward.tensors["grad_weight"])


@every_kind
def test_an_adaptive_clip(kernels, kind):
    # by each row's norms: rows that are clipped beside rows that are not, in timm's way
    rows, cols, layout, max_cluster = KINDS[kind]
    grad, weight, _ = make(F32, rows, cols, SGD)
    grad[::2] *= 1e-3
    factor, scale, clip = 0.5, 4.0, 0.05
    rule = SGD | {"factor": factor, "grad_scale": scale, "clip": clip, "clip_eps": 1e-3}
    layouts = {"layouts": [layout] * 4, "max_cluster": max_cluster}
    result = kernels.update(F32, grad, weight, rule=rule, **layouts).tensors["weight"]
    leaf = weight.double().requires_grad_()
    (gradient,) = torch.autograd.grad(expected(leaf, None, None, PAPER), leaf, grad.double())
    judge = weight.double() - SGD["lr"] * clipped(gradient * factor / scale, leaf, clip, 1e-3)
    assert not torch.equal(judge, weight.double() - SGD["lr"] * gradient * factor / scale)
    assert relative_error(result - weight, judge - weight) <= 1e-5  # of the step: a few digits less
    # a gradient of the weight itself, whose norm is that of its elements
    rule["is_true"] = True
    result = kernels.update(F32, grad, weight, rule=rule, **layouts).tensors["weight"]
    judge = weight.double() - SGD["lr"] * clipped(grad.double() * factor / scale, leaf, clip, 1e-3)
    assert relative_error(result - weight, judge - weight) <= 1e-5


@every_kind
def test_nothing_is_written_if_an_inf_was_found(kernels, kind):
    rows, cols, layout, max_cluster = KINDS[kind]
    for rule in (RULES["momentum"], RULES["amsgrad"]):
        grad, weight, states = make(F32, rows, cols, rule)
        grad[0, 0] = float("inf")
        rule = fields(rule) | {"found_inf": 1.0, "lr_at": 0.5}
        result = kernels.update(
            F32,
            grad,
            weight,
            states,
            rule=rule,
            layouts=[layout] * 4,
            max_cluster=max_cluster,
        )
        before = dict(
            zip(("weight", "first", "second", "largest"), (weight, *states), strict=False)
        )
        assert all(torch.equal(result.tensors[name], t) for name, t in before.items())
        assert result.tensors["out"].isnan().all()  # as its memory was


def test_numbers_on_the_device_are_the_rules(kernels):
    # which are in the place of the rule's own
    there = {"lr_at": ADAM["lr"], "step_at": ADAM["step"], "found_inf": 0.0}
    grad, weight, states = make(F32, 5, 64, ADAM)
    given = [ADAM, ADAM | {"lr": 9.0, "step": 9} | there]
    results = [kernels.update(F32, grad, weight, states, rule=rule).tensors for rule in given]
    assert relative_error(results[1]["weight"], results[0]["weight"].double()) <= 1e-7


@every_kind
def test_other_rows_are_not_touched_by_nan(kernels, kind):
    rows, cols, layout, max_cluster = KINDS[kind]
    grad, weight, states = make(F32, rows, cols, RULES["adam"])
    options = {"layouts": [layout] * 4, "max_cluster": max_cluster, "rule": fields(RULES["adam"])}
    clean = kernels.update(F32, grad, weight, states, **options).tensors
    grad[1, cols // 2] = float("nan")
    result = kernels.update(F32, grad, weight, states, **options).tensors
    for name, tensor in result.items():
        others = [row for row in range(rows) if row != 1]
        assert torch.equal(tensor[others], clean[name][others])
    assert result["out"][1].isnan().all() and result["weight"][1].isnan().all()


@every_kind
def test_a_constant_row_stays_one(kernels, kind):
    # with eps 0 its out is 0, and its gradient
    rows, cols, layout, max_cluster = KINDS[kind]
    grad, weight = torch.randn(rows, cols), torch.full((rows, cols), 0.3)
    rule = SGD | {"weight_decay": 0.02}
    options = {"layouts": [layout] * 4, "max_cluster": max_cluster}
    no_eps = (0.0, 1.0, 0, 1, True)
    result = kernels.update(F32, grad, weight, rule=rule, formula=no_eps, **options).tensors
    assert (result["weight"] == result["weight"][0, 0]).all() and (result["out"] == 0).all()


# a state whose rows lie otherwise than the weight's: at another distance from 16 bytes, with gaps
@pytest.mark.parametrize("state", [Layout(offset=2), Layout(gap=4), Layout(gap=3)], ids=str)
@pytest.mark.parametrize("cols", [147, 64])
def test_states_in_a_layout_of_their_own(kernels, cols, state):
    grad, weight, states = make(F32, 33, cols, RULES["amsgrad"])
    rule = fields(RULES["amsgrad"])
    plain = kernels.update(F32, grad, weight, states, rule=rule).tensors
    layouts = [ROWS, Layout(offset=1), ROWS, state]
    result = kernels.update(F32, grad, weight, states, rule=rule, layouts=layouts).tensors
    for name, tensor in result.items():
        assert relative_error(tensor, plain[name].double()) <= 1e-4


# The runs of transposed convolutions, of which a thread's groups skip some; and an aligned run
# longer than what a team's threads move on by.
@pytest.mark.parametrize("run", [1, 4, 9, 16, 1300])
@pytest.mark.parametrize("minimum", [40, 1104, 29600])
def test_runs(kernels, minimum, run):
    cols = -(-minimum // run) * run
    grad, weight, states = make(F32, 3, cols, RULES["adam"])
    rule = fields(RULES["adam"])
    plain = kernels.update(F32, grad, weight, states, rule=rule, layouts=[GAPS] * 4).tensors
    runs = Layout(runs=True)
    for layouts in (
        [runs] * 4,
        [ROWS, runs, ROWS, runs],
        [runs, ROWS, runs, Layout(runs=True, gap=4)],
    ):
        for max_cluster in (1, 16):
            result = kernels.update(
                F32,
                grad,
                weight,
                states,
                rule=rule,
                layouts=layouts,
                run=run,
                max_cluster=max_cluster,
            ).tensors
            for name, tensor in result.items():
                # a wrong place would be off by all of it; Adam's quotients make roundings larger
                assert relative_error(tensor, plain[name].double()) <= 1e-4


def test_updates_of_all_types_share_a_launch(kernels):
    weights = [
        Weight.update(types, *make(types, 8, cols, RULES["momentum"]), rule=RULES["momentum"])
        for types in UPDATED
        for cols in (64, 147, 1152)
    ]
    record = kernels.run("update", weights)
    assert record.launches == 1 and record.entries == len(weights)
    # a ResNet-50's 53 weights, too
    assert kernels.capacity("update", large=True) == 89
