"""The update kernel against its parts: the backward kernel, torch.optim, the forward kernel.

Its gradient and its out are held to the kernels' bitwise; what comes of the optimizer's rule to
float64, by the error of the same composition in the weight's dtype. A first step with momentum
stores the gradient itself, which is how its bits are seen.
"""

import pytest
import torch
from accuracy import assert_close, relative_error
from optimizer_steps import (
    RULES,
    clipped,
    composed,
    fused,
    kernel_gradient,
    optimizer_for,
    parameters_of,
    standardized,
    states_of,
)
from torch_ws import Formula, formulas

# (weight, out, grad): every triple that has a kernel
TYPES = [
    (torch.float64, torch.float64, torch.float64),
    (torch.float32, torch.float32, torch.float32),
    (torch.float32, torch.float16, torch.float16),
    (torch.float32, torch.bfloat16, torch.bfloat16),
    (torch.float32, torch.float16, torch.float32),  # a sum of several gradients
    (torch.float32, torch.bfloat16, torch.float32),
]
# Below, around and above a vector of every instruction set, and four of them; the rows of layers:
# 7x7 and 3x3 convolutions; more than a block of the sums.
LENGTHS = [*range(1, 71), 147, 576, 4608]
every_types = pytest.mark.parametrize("types", TYPES, ids=lambda t: "-".join(map(str, t)))


def made(weights):
    return [w.detach().clone() for w in weights]


def assert_steps_agree(rule, weights, grads_by_step, formula="paper", dtype=None, **options):
    """Steps by the kernel against the same in float64, by the error of float32's composition."""

    def run(step, weight_dtype, **more):
        optimizer = optimizer_for(rule, [w.to(weight_dtype) for w in made(weights)])
        for grads in grads_by_step:
            outs = step(optimizer, grads, formula, **options, **more)
        return [*parameters_of(optimizer), *states_of(optimizer), *outs]

    ours = run(fused, weights[0].dtype, dtype=dtype)
    narrow = None if dtype == torch.float64 else dtype
    judges, peers = run(composed, torch.float64), run(composed, torch.float32, dtype=narrow)
    # float64's composition is no peer for itself: its error is float32's in float64's units, and
    # the judge's as much again
    eps = torch.finfo(weights[0].dtype).eps
    unit = 1 if weights[0].dtype == torch.float32 else 2 * eps / torch.finfo(torch.float32).eps
    assert len(ours) == len(judges)
    for actual, judge, peer in zip(ours, judges, peers, strict=True):
        # Twice what accuracy.py allows, and two roundings a step: these are the largest errors of
        # several steps, to some part by chance.
        peer_error = relative_error(peer.detach(), judge.detach()) * unit
        peer_error = 2 * peer_error + len(grads_by_step) * eps
        assert_close(actual.detach(), judge.detach(), peer_error)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rule", RULES)
def test_rules(isa, rule, dtype):
    # two weights, which share no state; four steps, after which no state is as it began
    weights = [(torch.randn(7, cols) * 0.1).to(dtype) for cols in (33, 147)]
    grads = [[torch.randn_like(w) for w in weights] for _ in range(4)]
    assert_steps_agree(rule, weights, grads)


def fuses_as_torch(isa):
    return isa != "default" and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rule", [rule for rule in RULES if RULES[rule][0] is torch.optim.SGD])
def test_sgd_is_torchs_to_the_last_bit(isa, rule, dtype):
    if not fuses_as_torch(isa):
        pytest.skip("one of the two has no fused multiply-add")
    weight = (torch.randn(7, 147) * 0.1).to(dtype)
    ours, theirs = (optimizer_for(rule, made([weight])) for _ in range(2))
    for _ in range(4):
        grad = torch.randn_like(weight)
        (p,) = parameters_of(theirs)
        p.grad = kernel_gradient(grad, p)
        theirs.step()
        fused(ours, [grad])
        pairs = zip(*(parameters_of(o) + states_of(o) for o in (ours, theirs)), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("rule", [rule for rule in RULES if RULES[rule][0] is not torch.optim.SGD])
def test_adams_moments_are_torchs_to_the_last_bit(isa, rule):
    if not fuses_as_torch(isa):
        pytest.skip("one of the two has no fused multiply-add")
    weight, grad = torch.randn(7, 147), torch.randn(7, 147)
    ours, theirs = (optimizer_for(rule, made([weight])) for _ in range(2))
    (p,) = parameters_of(theirs)
    p.grad = kernel_gradient(grad, p)
    for _ in range(2):  # from zeros, and from what is there
        theirs.step()
    for _ in range(2):
        fused(ours, [p.grad], is_true=True)
    # the weight's square root is PyTorch's own, which is not always the nearest number
    if RULES[rule][1].get("weight_decay") is None:
        pairs = zip(states_of(ours), states_of(theirs), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    (q,) = parameters_of(ours)
    assert relative_error(q.detach(), p.detach().double()) <= torch.finfo(torch.float32).eps


@pytest.mark.parametrize("rule", ["dampening", "amsgrad"])  # one state, three of them
def test_torchs_state_is_taken_over_and_given_back(isa, rule):
    weight = torch.randn(7, 147) * 0.1
    ours, theirs, judge = (
        optimizer_for(rule, made([w])) for w in (weight, weight, weight.double())
    )
    for step in range(12):
        grad = torch.randn_like(weight)
        composed(judge, [grad])
        composed(theirs, [grad])
        (fused if 4 <= step < 8 else composed)(ours, [grad])
    for o in (ours, theirs):
        assert o.state_dict()["state"][0].keys() == judge.state_dict()["state"][0].keys()
    tensors = [parameters_of(o) + states_of(o) for o in (ours, judge, theirs)]
    for actual, expected, peer in zip(*tensors, strict=True):
        expected = expected.detach()
        assert_close(actual.detach(), expected, relative_error(peer.detach(), expected))


def between(tensor, offset):
    """The same values in rows with a gap of NaN before, between and after them."""
    wide = tensor.new_full((len(tensor) + 1, tensor.shape[1] + 3), float("nan"))
    view = wide.flatten()[offset:].as_strided(tensor.shape, (wide.stride(0), 1))
    view.copy_(tensor)
    return view, wide


@pytest.mark.parametrize("rule", ["momentum", "amsgrad"])  # every state, in both
@every_types
def test_lengths(isa, types, rule):
    weight_dtype, out_dtype, grad_dtype = types
    for cols in LENGTHS:
        weight = (torch.randn(5, cols) * 0.1 + 0.02).to(weight_dtype)
        grad = torch.randn(5, cols).to(out_dtype).to(grad_dtype)
        expected = kernel_gradient(grad, weight)
        # at an odd place, and in the middle of memory that is not theirs
        view, around = between(weight, offset=1)
        out, around_out = between(torch.zeros(5, cols, dtype=out_dtype), offset=2)
        optimizer = optimizer_for(rule, [view])
        fused(optimizer, [grad], outs=[out])
        assert torch.equal(out, standardized(view, dtype=out_dtype))
        for memory, rows in ((around, view), (around_out, out)):
            assert memory.isnan().sum() == memory.numel() - rows.numel()
        states = states_of(optimizer)
        if rule == "momentum":
            assert torch.equal(states[0], expected)
        else:
            largest = expected.double().square().max() / 2  # of (1 - beta2) g^2
            error = (states[1].double() - expected.double().square() / 2).abs().max()
            assert torch.equal(states[1], states[2])
            assert error <= 2 * torch.finfo(weight_dtype).eps * largest


@every_types
def test_types(isa, types):
    weight_dtype, out_dtype, grad_dtype = types
    weight = (torch.randn(9, 147) * 0.1).to(weight_dtype)
    grads = [[torch.randn(9, 147).to(out_dtype).to(grad_dtype)] for _ in range(3)]
    assert_steps_agree("nesterov", [weight], grads, dtype=out_dtype)


@pytest.mark.parametrize("formula", [*formulas, Formula(eps=1e-3, eps_mode="var", correction=1)])
def test_formulas_with_new_gains_and_shifts(isa, formula):
    # the gradient is of the old gain, the out has the new one
    weight = torch.randn(16, 72) * torch.logspace(-3, 0, 16)[:, None]
    vectors = dict(zip(("gain", "new_gain", "new_shift"), torch.randn(3, 16), strict=True))
    grad = torch.randn_like(weight)
    optimizer = optimizer_for("momentum", made([weight]))
    (out,) = fused(optimizer, [grad], formula, **{k: [v] for k, v in vectors.items()})
    (p,), (momentum,) = parameters_of(optimizer), states_of(optimizer)
    assert torch.equal(momentum, kernel_gradient(grad, weight, vectors["gain"], formula))
    expected = weight.double() - 0.05 * momentum.double()
    assert relative_error(p.detach(), expected) <= torch.finfo(torch.float32).eps
    assert torch.equal(out, standardized(p, vectors["new_gain"], vectors["new_shift"], formula))


# name -> (weight, its axes as they lie in memory by rows): rows of runs, which are gathered, also
# of single elements; rows whose elements lie in another order; a part of a larger weight
LAYOUTS = {
    "transposed convolution": (lambda: torch.randn(6, 12, 3, 3), (1, 0, 2, 3)),
    "transposed linear": (lambda: torch.randn(40, 33), (1, 0)),
    "channels_last": (
        lambda: torch.randn(9, 7, 3, 3).to(memory_format=torch.channels_last),
        (0, 2, 3, 1),
    ),
    "sliced": (lambda: torch.randn(18, 7, 3, 3)[::2], (0, 1, 2, 3)),
    "transposed and sliced": (lambda: torch.randn(6, 24, 3, 3)[:, 1::2], (1, 0, 2, 3)),
}


@pytest.mark.parametrize("grad_layout", ["the weight's", "another"])  # copied if it has to be
@pytest.mark.parametrize("rule", ["sgd", "momentum", "amsgrad"])  # without states, with 1, with 3
@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(isa, name, rule, grad_layout):
    make, axes = LAYOUTS[name]
    weight = make().mul_(0.1)
    rows = weight.permute(axes).contiguous()
    ours, theirs = optimizer_for(rule, [weight]), optimizer_for(rule, made([rows]))
    outs = None
    for _ in range(2):
        grad = torch.randn_like(rows)
        moved = torch.empty(weight.shape).permute(axes).copy_(grad)
        moved = moved.permute([axes.index(d) for d in range(weight.dim())])
        if grad_layout == "the weight's":
            moved = torch.empty_like(weight).copy_(moved)
        outs = fused(ours, [moved], outs=outs, channel_dim=axes[0])
        expected = fused(theirs, [grad])
    actual = [*parameters_of(ours), *states_of(ours), *outs]
    expected = [*parameters_of(theirs), *states_of(theirs), *expected]
    assert all(torch.equal(a.permute(axes), e) for a, e in zip(actual, expected, strict=True))


@pytest.mark.parametrize("offset", [0, 1])  # aligned to a vector, so stored past the caches; or not
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_large_weight_is_that_of_its_parts(isa, dtype, offset):
    rows, cols = 2200, 1024  # 4.5 MB in 16 bits, more than kStreamedBytes
    weight, grad = torch.randn(rows, cols), torch.randn(rows, cols).to(dtype)
    memory = torch.empty(rows * cols + offset, dtype=dtype)
    out = memory[offset:].view(rows, cols)
    whole = optimizer_for("momentum", made([weight]))
    fused(whole, [grad], outs=[out])
    parts = optimizer_for("momentum", [w.clone() for w in weight.split(275)])
    outs = fused(parts, list(grad.split(275)), dtype=dtype)
    assert torch.equal(out, torch.cat(outs))
    assert torch.equal(parameters_of(whole)[0], torch.cat(parameters_of(parts)))
    assert torch.equal(states_of(whole)[0], torch.cat(states_of(parts)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("is_true", [False, True])
@pytest.mark.parametrize("rule", ["dampening", "adamw, all"])  # clipped before weight decay
def test_adaptive_clipping(isa, rule, is_true, dtype):
    # rows of all sizes, also below clip_eps; gradients from half of the limit to 1.5 times it
    weight = (torch.randn(30, 147) * torch.logspace(-3, 0, 30)[:, None]).to(dtype)
    limit = 0.05 * weight.norm(dim=1, keepdim=True).clamp(min=0.1)
    size = limit / 147**0.5 * (1 if is_true else weight.std(1, keepdim=True))
    grads = [torch.randn_like(weight) * size * (0.5 + torch.rand(30, 1)) for _ in range(3)]
    options = {"clip": 0.05, "clip_eps": 0.1, "is_true": is_true}
    gradient = grads[0] if is_true else kernel_gradient(grads[0], weight)
    changed = (clipped(gradient, weight, 0.05, 0.1) != gradient).any(1)
    assert 5 < changed.sum() < 25
    assert_steps_agree(rule, [weight], [[g.to(dtype)] for g in grads], **options)


def test_a_gradient_of_the_weight_itself(isa):
    weight, grad = torch.randn(7, 147), torch.randn(7, 147)
    optimizer = optimizer_for("momentum", made([weight]))
    (out,) = fused(optimizer, [grad], is_true=True, dtype=torch.bfloat16)
    assert torch.equal(states_of(optimizer)[0], grad)
    assert torch.equal(out, standardized(parameters_of(optimizer)[0], dtype=torch.bfloat16))
