"""standardize_many: bitwise what standardize does weight by weight, in one call and one node."""

import pytest
import torch
import torch_ws
from torch_ws import Formula, standardize, standardize_many

# Shapes, layouts and dtypes side by side: rows of one vector and of many, a weight too small for a
# thread of its own, one with gaps between rows, an empty one, and one split between threads.
WEIGHTS = {
    "rows of 9": lambda: torch.randn(33, 1, 3, 3),
    "channels_last": lambda: torch.randn(16, 8, 3, 3).to(memory_format=torch.channels_last),
    "8x8": lambda: torch.randn(8, 8),
    "empty": lambda: torch.randn(4, 0),
    "large": lambda: torch.randn(300, 700),
    "double": lambda: torch.randn(5, 50, dtype=torch.float64),
    "bfloat16": lambda: torch.randn(7, 64).bfloat16(),
    "sliced": lambda: torch.randn(20, 30)[::2],
}
FORMULAS = ["paper", "nfnet", Formula(eps=1e-3, eps_mode="var", correction=1)]


def make(affine=True):
    weights = [w().requires_grad_() for w in WEIGHTS.values()]
    # a gain for every second weight, a shift for every third
    gains = [torch.randn(w.shape[0]).to(w.dtype) for w in weights]
    gains = [g.requires_grad_() if affine and i % 2 == 0 else None for i, g in enumerate(gains)]
    shifts = [torch.zeros(w.shape[0], dtype=w.dtype) for w in weights]
    shifts = [s.requires_grad_() if affine and i % 3 == 0 else None for i, s in enumerate(shifts)]
    formulas = [FORMULAS[i % 3] for i in range(len(weights))]
    return weights, gains, shifts, formulas


def one_by_one(weights, gains, shifts, formulas):
    zipped = zip(weights, gains, shifts, formulas, strict=True)
    return [standardize(w, g, s, formula=f) for w, g, s, f in zipped]


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("affine", [False, True])
def test_bitwise_what_standardize_does(isa, threads, affine):
    weights, gains, shifts, formulas = make(affine)
    inputs = [t for t in (*weights, *gains, *shifts) if t is not None]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        many = standardize_many(weights, gains, shifts, formula=formulas)
    finally:
        torch.set_num_threads(before)
    single = one_by_one(weights, gains, shifts, formulas)
    assert [o.stride() for o in many] == [o.stride() for o in single]
    assert all(torch.equal(a, b) for a, b in zip(many, single, strict=True))
    grads = [torch.randn_like(o) for o in many]
    ours = torch.autograd.grad(many, inputs, grads)
    theirs = torch.autograd.grad(single, inputs, grads)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_one_node_and_no_grad():
    weights, *_ = make()
    outs = standardize_many(weights)
    assert len({o.grad_fn for o in outs}) == 1
    with torch.no_grad():
        assert not any(o.requires_grad for o in standardize_many(weights))


def test_missing_gradients():
    weights, gains, shifts, formulas = make()
    for used in ([], [0], [2, 4], [0, 2, 4]):
        outs = standardize_many(weights, gains, shifts, formula=formulas)
        single = one_by_one(weights, gains, shifts, formulas)
        if not used:
            continue
        inputs = [t for t in (*weights, *gains, *shifts) if t is not None]
        ours, theirs = (
            torch.autograd.grad(sum(o[i].square().sum() for i in used), inputs, allow_unused=True)
            for o in (outs, single)
        )
        for a, b in zip(ours, theirs, strict=True):
            assert (a is None) == (b is None)
            assert a is None or torch.equal(a, b)


def test_frozen_weights_get_no_gradient():
    first, second = torch.randn(4, 9, requires_grad=True), torch.randn(4, 9)
    a, b = standardize_many([first, second])
    (a * b).sum().backward()
    assert first.grad is not None and second.grad is None


def test_results_in_another_dtype_and_channel_dims():
    weights = [torch.randn(6, 12, 3, 3), torch.randn(4, 5)]
    outs = standardize_many(weights, channel_dim=[1, 0], dtype=torch.bfloat16)
    assert torch.equal(outs[0], standardize(weights[0], channel_dim=1, dtype=torch.bfloat16))
    assert torch.equal(outs[1], standardize(weights[1], dtype=torch.bfloat16))


def test_empty_list():
    assert standardize_many([]) == []
    assert standardize_many((), [], []) == []


def test_double_backward():
    weights = [torch.randn(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    gain = torch.randn(2, dtype=torch.float64, requires_grad=True)

    def function(a, b, gain):
        return tuple(standardize_many([a, b], [gain, None]))

    assert torch.autograd.gradcheck(function, (*weights, gain), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, (*weights, gain))


def test_torch_func():
    weights = [torch.randn(2, 3), torch.randn(3, 4)]

    def loss(function, *weights):
        return sum(o.pow(3).sum() for o in function(weights))

    ours = torch.func.grad(lambda *w: loss(standardize_many, *w), argnums=(0, 1))(*weights)
    single = torch.func.grad(
        lambda *w: loss(lambda ws: [standardize(x) for x in ws], *w), argnums=(0, 1)
    )(*weights)
    torch.testing.assert_close(ours, single)


def test_opcheck():
    weights, gains, shifts, _ = make()
    scalars = [1e-5, 0, 0, 1, 1.0] * len(weights)
    dims = [0] * len(weights)
    ops = torch.ops.ws
    torch.library.opcheck(ops.standardize_many, (weights, gains, shifts, dims, scalars))
    weights, gains, shifts = (
        [None if t is None else t.detach() for t in ts] for ts in (weights, gains, shifts)
    )
    torch.library.opcheck(ops.forward_many, (weights, gains, shifts, dims, scalars, None))
    grads = [torch.randn_like(w) for w in weights]
    for affine in (False, True):
        torch.library.opcheck(ops.backward_many, (grads, weights, gains, dims, scalars, affine))


def test_compile():
    torch._dynamo.reset()
    weights = [torch.randn(4, 9, requires_grad=True), torch.randn(3, 5, 3, requires_grad=True)]

    def function(a, b):
        return sum(o.pow(3).sum() for o in standardize_many([a, b], formula=["paper", "nfnet"]))

    fast = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(fast(*weights), function(*weights))
    torch.testing.assert_close(
        torch.autograd.grad(fast(*weights), weights),
        torch.autograd.grad(function(*weights), weights),
    )


W = [torch.randn(4, 3), torch.randn(5, 3)]
BAD = {
    "a tensor": ((W[0],), {}, TypeError, "weights must be a list or tuple of tensors, got Tensor"),
    "gains": ((W, [None]), {}, ValueError, "gains must have one entry a weight, 2; got 1"),
    "formulas": (
        (W,),
        {"formula": ["paper"]},
        ValueError,
        "formula must have one entry a weight, 2",
    ),
    "formula": (
        (W,),
        {"formula": 3},
        TypeError,
        "formula must be one value or one for each weight",
    ),
    "unknown": ((W,), {"formula": ["paper", "x"]}, ValueError, "formula must be one of .* got 'x'"),
    "channel_dim": (
        (W,),
        {"channel_dim": [0, 2]},
        ValueError,
        r"weights\[1\]: channel_dim must be in \[-2, 1\]",
    ),
    "not a tensor": (([W[0], 1.0],), {}, TypeError, r"weights\[1\]: weight must be a torch.Tensor"),
    "integer": (([W[0], W[1].int()],), {}, ValueError, r"weights\[1\]: weight must have dtype"),
    "gain": (
        (W, [None, torch.ones(4)]),
        {},
        ValueError,
        r"weights\[1\]: gain must have shape \(5,\)",
    ),
    "dtype": (
        ([W[0], W[1].double()],),
        {"dtype": torch.bfloat16},
        ValueError,
        r"weights\[1\]: dtype must be float64",
    ),
    "devices": (
        ([W[0], W[1].to("meta")],),
        {},
        ValueError,
        r"weights\[1\]: weights must be on one device, cpu; got meta",
    ),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_bad_arguments(case, requires_grad):
    arguments, options, exception, message = BAD[case]
    if requires_grad and isinstance(arguments[0], list):
        first = arguments[0][0].detach().requires_grad_()
        arguments = ([first, *arguments[0][1:]], *arguments[1:])
    with pytest.raises(exception, match=message):
        torch_ws.standardize_many(*arguments, **options)
