"""Derivatives of every kind, and everything that traces or transforms: PyTorch's own checks."""

import os
import subprocess
import sys

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint
from torch_ws import formulas, reference, standardize

# the four optional-argument patterns, each another backward op or signature
AFFINE = {"none": (), "gain": ("gain",), "shift": ("shift",), "both": ("gain", "shift")}


def make_inputs(affine="both", dtype=torch.float64, shape=(4, 3, 2, 2)):
    inputs = {"weight": torch.randn(shape, dtype=dtype, requires_grad=True)}
    for name in AFFINE[affine]:
        inputs[name] = torch.randn(shape[0], dtype=dtype, requires_grad=True)
    return inputs


# Which op is called depends on the affine arguments alone, and what it computes on the formula
@pytest.mark.parametrize(
    "formula, affine",
    [(f, "both") for f in formulas] + [("paper", a) for a in AFFINE if a != "both"],
)
def test_gradcheck(formula, affine):
    inputs = make_inputs(affine)
    names, tensors = list(inputs), list(inputs.values())

    def function(*tensors):
        return standardize(**dict(zip(names, tensors, strict=True)), formula=formula)

    assert gradcheck(function, tensors, check_forward_ad=True)
    assert gradgradcheck(function, tensors)


@pytest.mark.parametrize("affine", AFFINE)
def test_opcheck_of_the_public_op(affine):
    torch.library.opcheck(torch.ops.ws.standardize, (), make_inputs(affine))


@pytest.mark.parametrize(
    "weight",
    [
        torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last),
        torch.randn(3, 4).t(),
        torch.randn(8, 3)[::2],
        torch.randn(25)[1:].view(4, 6),  # not aligned to 16 bytes
        torch.randn(1, 6).expand(4, 6),  # overlapping: the result is dense
        torch.empty(0, 3),
        torch.empty(4, 0),
        torch.randn(4, 1),
    ],
    ids=["channels_last", "transposed", "sliced", "offset", "expanded", "C=0", "N=0", "N=1"],
)
def test_opcheck_of_every_op(weight):
    grad, gain = torch.randn(weight.shape), torch.randn(weight.shape[0])
    arguments = (0, 1e-5, 0, 0, True, 1.0)
    ops = torch.ops.ws
    torch.library.opcheck(ops.standardize, (weight.detach().requires_grad_(),))
    torch.library.opcheck(ops.forward, (weight, gain, None, *arguments, torch.bfloat16))
    torch.library.opcheck(ops.backward, (grad, weight, None, *arguments))
    torch.library.opcheck(ops.backward_affine, (grad, weight, gain, *arguments))


# Both entries: the function, and the op that torch.compile and exported programs call.
ENTRIES = {"function": standardize, "op": torch.ops.ws.standardize}


@pytest.mark.parametrize("entry", ENTRIES)
def test_torch_func(entry):
    weight, gain = torch.randn(3, 5, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    tangents = torch.randn_like(weight), torch.randn_like(gain)

    def through(function):
        def loss(w, g):
            return function(w, g).pow(3).sum()

        return (
            torch.func.grad(loss, argnums=(0, 1))(weight, gain),
            torch.func.jacrev(function, argnums=(0, 1))(weight, gain),
            torch.func.jacfwd(function)(weight, gain),
            torch.func.hessian(loss)(weight, gain),
            torch.func.jvp(function, (weight, gain), tangents),
        )

    torch.testing.assert_close(through(ENTRIES[entry]), through(reference.standardize))


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("in_dims", [(0, 0), (1, None), (None, 1), (3, 0)])
@pytest.mark.parametrize("channel_dim", [0, 1, -1])
def test_vmap(entry, in_dims, channel_dim):
    # a batch of 4 in the place that in_dims says, or none
    weight = torch.randn(3, 3, 3) if in_dims[0] is None else torch.randn(4, 3, 3, 3)
    gain = torch.randn(3) if in_dims[1] is None else torch.randn(4, 3)
    if in_dims[0] is not None:
        weight = weight.movedim(0, in_dims[0])
    if in_dims[1] is not None:
        gain = gain.movedim(0, in_dims[1])

    def function(w, g):
        return ENTRIES[entry](w, g, channel_dim=channel_dim)

    batched = torch.vmap(function, in_dims)(weight, gain)
    weights = weight.unbind(in_dims[0]) if in_dims[0] is not None else [weight] * 4
    gains = gain.unbind(in_dims[1]) if in_dims[1] is not None else [gain] * 4
    one_by_one = [function(w, g) for w, g in zip(weights, gains, strict=True)]
    torch.testing.assert_close(batched, torch.stack(one_by_one))


def test_vmap_over_the_backward():
    weight = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    grads = torch.randn(4, 3, 5, dtype=torch.float64)
    out = standardize(weight)
    (batched,) = torch.autograd.grad(out, weight, grads, is_grads_batched=True, retain_graph=True)
    one_by_one = [torch.autograd.grad(out, weight, g, retain_graph=True)[0] for g in grads]
    torch.testing.assert_close(batched, torch.stack(one_by_one))


def test_forward_mode_dual_numbers():
    weight, tangent = torch.randn(2, 3, 5, dtype=torch.float64).unbind()
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(weight, tangent)
        results = [
            torch.autograd.forward_ad.unpack_dual(f(dual))
            for f in (standardize, torch.ops.ws.standardize, reference.standardize)
        ]
    # the Jacobian of a channel is symmetric: the tangent goes through the backward kernel
    backward = torch.ops.ws.backward(tangent, weight, None, 0, 1e-5, 0, 0, True, 1.0)
    for result in results:
        torch.testing.assert_close(result.primal, standardize(weight))
        torch.testing.assert_close(result.tangent, backward)


def test_double_backward_of_a_bfloat16_result():
    weight = torch.randn(4, 9, requires_grad=True)
    out = standardize(weight, dtype=torch.bfloat16)
    (grad,) = torch.autograd.grad(out, weight, torch.ones_like(out) * weight, create_graph=True)
    grad.square().sum().backward()
    assert weight.grad.isfinite().all()
    assert weight.grad.dtype == torch.float32


def compiled(function, **kwargs):
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager", **kwargs)


@pytest.mark.parametrize("formula", ["paper", "nfnet"])  # nfnet's arguments depend on the fan-in
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(formula, dynamic):
    def function(weight, gain):
        return standardize(weight, gain, formula=formula).sin().square().sum()

    fast = compiled(function, dynamic=dynamic)
    for channels in (4, 5):
        inputs = list(make_inputs("gain", torch.float32, (channels, 2 * channels)).values())
        value, expected = fast(*inputs), function(*inputs)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(
            torch.autograd.grad(value, inputs), torch.autograd.grad(expected, inputs)
        )


def test_compile_with_inductor_calls_our_op():
    from torch._inductor.utils import run_and_get_code

    weight = torch.randn(8, 27, requires_grad=True)
    torch._dynamo.reset()
    fast = torch.compile(lambda w: standardize(w) * 2, fullgraph=True)
    out, code = run_and_get_code(lambda: fast(weight))
    assert "torch.ops.ws.forward" in "".join(code)
    assert torch.equal(out, standardize(weight) * 2)


def test_compile_refuses_what_eager_refuses():
    fast = compiled(lambda w: standardize(w))
    with pytest.raises(Exception, match="at least 2 dimensions"):
        fast(torch.randn(5))


def test_checkpoint():
    inputs = list(make_inputs().values())
    plain = torch.autograd.grad(standardize(*inputs).pow(3).sum(), inputs)
    out = checkpoint(lambda *t: standardize(*t).pow(3).sum(), *inputs, use_reentrant=False)
    assert all(
        torch.equal(a, b) for a, b in zip(torch.autograd.grad(out, inputs), plain, strict=True)
    )


def test_weight_changed_in_place_before_backward_is_an_error():
    weight = torch.randn(4, 5, requires_grad=True)
    out = standardize(weight)
    with torch.no_grad():
        weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_inference_mode():
    weight = torch.randn(4, 5, requires_grad=True)
    with torch.inference_mode():
        assert torch.equal(standardize(weight), torch.ops.ws.standardize(weight))
        assert standardize(weight).is_inference()


def test_many_calls_do_not_leak():
    # in a process of its own, so that other tests' memory does not blur the reading
    script = """
import resource, torch, torch_ws
weight, gain = torch.randn(16, 16, requires_grad=True), torch.randn(16, requires_grad=True)
def run(n):
    for _ in range(n):
        torch_ws.standardize(weight, gain).sum().backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = run(2000)
print(run(10000) - before)
"""
    output = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, env=os.environ
    ).stdout
    assert int(output) < 2000  # kB; one leaked tensor object a call would be more
