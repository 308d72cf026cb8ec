"""What update_many takes: numbers by tensors, refusals that change nothing, versions."""

import pytest
import torch
from optimizer_steps import fused, optimizer_for, parameters_of, states_of
from torch_ws.core.update import raw_norms_many, raw_update_many

FORMULA = [1e-5, 0.0, 0.0, 1.0, 1.0]
SGD = [0, 0.1, 0.01, 0.9, 0.0, 0.0, 0, 0, 0, 1e-3]
ADAM = [1, 0.1, 0.01, 0.9, 0.99, 1e-8, 0, 0, 0, 1e-3]


def number(value):
    return torch.tensor(value, dtype=torch.float32)


def after_steps(rule="nesterov", grads_times=1.0, rule_lr=0.05, **options):
    """Everything that three steps write, from the same start."""
    torch.manual_seed(1)
    optimizer = optimizer_for(rule, [torch.randn(5, 33), torch.randn(4, 9)], lr=rule_lr)
    for _ in range(3):
        grads = [torch.randn(5, 33) * grads_times, torch.randn(4, 9) * grads_times]
        outs = fused(optimizer, grads, **options)
    return [t.detach() for t in (*parameters_of(optimizer), *states_of(optimizer), *outs)]


def assert_same(actual, expected):
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


@pytest.mark.parametrize("rule", ["nesterov", "adamw"])
def test_lr_by_a_tensor(isa, rule):
    # 0.05 in float32, as the tensor holds it; the rule's own number is not read
    expected = after_steps(rule, rule_lr=number(0.05).item())
    assert_same(after_steps(rule, rule_lr=7.0, lr=number(0.05)), expected)


def test_grad_scale_divides_and_a_factor_multiplies(isa):
    # powers of two, which change no bit
    expected = after_steps()
    scaled = after_steps(grads_times=1024.0, grad_scale=number(1024.0))
    assert_same(scaled, expected)
    assert_same(after_steps(grads_times=4.0, factor=number(0.25)), expected)
    both = after_steps(grads_times=512.0, factor=number(2.0), grad_scale=number(1024.0))
    assert_same(both, expected)


def test_each_weight_has_its_own_factor(isa):
    expected = after_steps()
    doubled = after_steps(grads_times=2.0, factor=[number(0.5), None])
    same = [torch.equal(a, e) for a, e in zip(doubled, expected, strict=True)]
    assert same == [True, False] * 3


@pytest.mark.parametrize("rule", ["nesterov", "amsgrad"])
@pytest.mark.parametrize("inf", [1.0, float("nan")])
def test_found_inf_writes_nothing(isa, rule, inf):
    optimizer = optimizer_for(rule, [torch.randn(5, 33), torch.randn(12, 4)])
    grads = [torch.randn(5, 33), torch.randn(12, 4)]
    outs = fused(optimizer, grads, found_inf=number(0.0))  # not found: a step
    written = [*parameters_of(optimizer), *states_of(optimizer), *outs]
    before = [t.detach().clone() for t in written]
    grads[0][2, 3] = float("inf")
    fused(optimizer, grads, outs=outs, found_inf=number(inf))
    assert_same([t.detach() for t in written], before)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_versions_are_counted_and_no_graph_is_built(requires_grad):
    weight = torch.randn(4, 9, requires_grad=requires_grad)
    out, momentum, grad = (torch.zeros(4, 9) for _ in range(3))
    gain = torch.ones(4, requires_grad=requires_grad)
    kept = weight * weight if requires_grad else None
    update(outs=[out], weights=[weight], states=[momentum], grads=[grad], gains=[gain])
    assert [t._version for t in (out, weight, momentum, grad, gain)] == [1, 1, 1, 0, 0]
    assert weight.is_leaf and not out.requires_grad
    if requires_grad:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            kept.sum().backward()


def arguments(rule=SGD, **given):
    """Those of update_many for one weight, all of which fit, with some replaced."""
    count = 2 if rule[0] else 1
    lists = {"outs": [torch.zeros(4, 9)], "weights": [torch.randn(4, 9)]}
    lists |= {"states": [torch.zeros(4, 9) for _ in range(count)], "grads": [torch.randn(4, 9)]}
    lists |= {"gains": [None], "new_gains": [None], "new_shifts": [None], "factors": [None]}
    lists |= {"channel_dims": [0], "formulas": FORMULA, "rule": rule, "flags": [0], "clips": [0.0]}
    lists |= {"steps": [number(1.0)] if rule[0] else []}
    return lists | {"lr": None, "grad_scale": None, "found_inf": None} | given


def update(**given):
    raw_update_many(**arguments(**given))


def freed():
    tensor = torch.zeros(4, 9)
    tensor.untyped_storage().resize_(0)
    return tensor


def changed(rule, place, value):
    return [*rule[:place], value, *rule[place + 1 :]]


nan, inf = float("nan"), float("inf")
# name -> (what is given, the words of the refusal)
REFUSED = {
    "outs too few": ({"outs": []}, "outs must have one entry a weight"),
    "gains too many": ({"gains": [None] * 2}, "gains must have one entry a weight"),
    "formulas": ({"formulas": FORMULA[1:]}, "formulas must have 5 numbers a weight"),
    "eps": ({"formulas": [-1.0, *FORMULA[1:]]}, "eps must be finite and not negative"),
    "channel_dim": ({"channel_dims": [2]}, "channel_dim must be in"),
    "rule's length": ({"rule": SGD[:-1]}, "rule must have 10 numbers"),
    "rule infinite": ({"rule": changed(SGD, 1, inf)}, "rule must have finite numbers"),
    "rule NaN": ({"rule": changed(SGD, 2, nan)}, "rule must have finite numbers"),
    "rule's flag": ({"rule": changed(SGD, 6, 0.5)}, "rule's nesterov must be 0 or 1"),
    "adam's kind": ({"rule": changed(SGD, 0, 2)}, "rule's adam must be 0 or 1"),
    "flags": ({"flags": [4]}, "flags must be 0 to 3"),
    "clip negative": ({"clips": [-0.1]}, "clips must be finite"),
    "clip NaN": ({"clips": [nan]}, "clips must be finite"),
    "a state too few": ({"states": []}, "the rule has 1 states a weight"),
    "a state too many": ({"rule": changed(SGD, 3, 0)}, "the rule has 0 states a weight"),
    "adam, 1 state": ({"rule": ADAM, "states": [torch.zeros(4, 9)]}, "has 2 or 3 states a weight"),
    "adam, no step": ({"rule": ADAM, "steps": []}, "steps must have one entry a weight"),
    "sgd, a step": ({"steps": [number(1.0)]}, "no step; got 3 states and 1 steps"),
    "step's dtype": ({"rule": ADAM, "steps": [torch.tensor(1)]}, "step must be a float32 tensor"),
    "lr's shape": ({"lr": torch.ones(2)}, "lr must be a float32 tensor of one number"),
    "lr's dtype": ({"lr": torch.ones((), dtype=torch.float64)}, "lr must be a float32 tensor"),
    "factor": ({"factors": [torch.ones(4)]}, "factor must be a float32 tensor of one number"),
    "found_inf": ({"found_inf": torch.ones((), device="meta")}, "found_inf must be .* on cpu"),
    "weight's dtype": (
        {name: [torch.zeros(4, 9).half()] for name in ("outs", "weights", "states", "grads")},
        "weight must be float32 or float64",
    ),
    "out's dtype": ({"outs": [torch.zeros(4, 9).double()]}, "dtype must be float32 or float16"),
    "out's shape": ({"outs": [torch.zeros(4, 8)]}, "out must have the weight's shape"),
    "grad's dtype": ({"grads": [torch.zeros(4, 9).half()]}, "grad must have dtype torch.float32"),
    "grad's shape": ({"grads": [torch.zeros(9, 4)]}, "grad must have the weight's shape"),
    "state's dtype": ({"states": [torch.zeros(4, 9).half()]}, r"states\[1\] must have dtype"),
    "state's shape": ({"states": [torch.zeros(36)]}, r"states\[1\] must have the weight's shape"),
    "state's device": ({"states": [torch.zeros(4, 9, device="meta")]}, r"states\[1\] .* on meta"),
    "gain": ({"gains": [torch.ones(9)]}, r"gain must have shape \(4,\)"),
    "new_shift": ({"new_shifts": [torch.ones(4).half()]}, "shift must have the weight's dtype"),
    "a weight without memory": ({"weights": [freed()]}, r"weights\[1\] must have memory"),
    "a state without memory": ({"states": [freed()]}, r"states\[1\] must have memory"),
    # what is written cannot be copied first
    "state's layout": ({"states": [torch.zeros(9, 4).t()]}, "all laid out alike"),
    "out of one row": ({"outs": [torch.zeros(1, 9).expand(4, 9)]}, "must not overlap itself"),
    "weight of one row": ({"weights": [torch.zeros(1, 9).expand(4, 9)]}, "must not overlap itself"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_changes_nothing(case):
    # beside a weight that fits, before it and after it
    given, words = REFUSED[case]
    bad, good = arguments(**given), [arguments(given.get("rule", SGD)) for _ in range(2)]
    whole = ("rule", "lr", "grad_scale", "found_inf")
    lists = {k: bad[k] if k in whole else [*good[0][k], *bad[k], *good[1][k]] for k in bad}
    if "rule" in case or "kind" in case or "state" in case:
        lists["steps"] = bad["steps"] * (3 if bad["steps"] else 0)
    written = [t for name in ("outs", "weights", "states") for t in lists[name]]
    written = [t for t in written if t.untyped_storage().nbytes() and t.device.type == "cpu"]
    before = [t.clone() for t in written]
    with pytest.raises((ValueError, RuntimeError), match=words):
        raw_update_many(**lists)
    assert_same(written, before)
    assert all(t._version == 0 for t in written)


def test_empty_weights():
    empty = [torch.empty(0, 9), torch.empty(4, 0)]
    lists = arguments(outs=empty, weights=empty, states=empty, grads=empty, flags=[0, 0])
    two = {k: v * 2 for k, v in lists.items() if isinstance(v, list) and len(v) == 1}
    raw_update_many(**lists | two | {"formulas": FORMULA * 2})
    norms = raw_norms_many(empty, empty, [None] * 2, [0, 0], FORMULA * 2, True)
    assert [n.tolist() for n in norms] == [[], [0.0] * 4] * 3


@pytest.mark.parametrize("rule", [SGD, ADAM])
def test_opcheck(rule):
    lists = arguments(rule, gains=[torch.randn(4)])
    torch.library.opcheck(torch.ops.ws.update_many, tuple(lists.values()))
    grads, weights, gains = lists["grads"], lists["weights"], lists["gains"]
    for affine in (False, True):
        torch.library.opcheck(
            torch.ops.ws.norms_many, (grads, weights, gains, [0], FORMULA, affine)
        )
