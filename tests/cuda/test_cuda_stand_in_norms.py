"""The CUDA kernels of the norms, through the stand-in: against float64 and the backward kernels."""

import pytest
import torch
from accuracy import relative_error
from cuda_stand_in.check import expected
from cuda_stand_in.kernels import F32, PAPER, TYPES
from cuda_stand_in.kinds import KINDS, NAMES, every_kind


@pytest.mark.parametrize("types", range(6), ids=NAMES[:6])
@every_kind
def test_norms(kernels, types, kind):
    rows, cols, layout, max_cluster = KINDS[kind]
    weight_dtype, grad_dtype = TYPES[types]
    # whose squared norms fit float16
    grad = ((torch.randn(rows, cols) + 0.25) / 64).to(grad_dtype)
    weight = (torch.randn(rows, cols) * 0.05 + 0.01).to(weight_dtype)
    gain = torch.randn(rows).to(weight_dtype)
    options = {"max_cluster": max_cluster, "layouts": [layout] * 2}
    result = kernels.norms(types, grad, weight, gain, **options)
    assert result.record.launches == (2 if result.plan.form == "split" else 1)
    options["layouts"] = [layout] * 3
    backward = kernels.backward(types, grad, weight, gain, **options).tensors
    doubles = [t.double() for t in (weight, gain)]
    leaf = doubles[0].requires_grad_()
    out = expected(leaf, doubles[1], None, PAPER)
    (gradient,) = torch.autograd.grad(out, leaf, grad.double())
    squares = gradient.square().sum(1)
    error = ((result.tensors["squared_norm"].view(-1).double() - squares) / squares).abs().max()
    assert error <= 16 * torch.finfo(weight_dtype).eps
    for name in ("grad_gain", "grad_shift"):
        peer = backward[name].view(-1)
        assert relative_error(result.tensors[name].view(-1), peer.double()) <= 1e-5


# docs/derivation.md: of a gradient along the weight little is left, and the closed form loses it
@pytest.mark.parametrize("angle", [1e-1, 1e-2, 1e-3])
def test_norms_of_a_gradient_nearly_along_the_weight(kernels, angle):
    weight = torch.randn(4, 576)
    grad = weight + angle * torch.randn(4, 576)
    no_eps = (0.0, 1.0, 0, 1, True)
    squares = kernels.norms(F32, grad, weight, formula=no_eps).tensors["squared_norm"].view(-1)
    leaf = weight.double().requires_grad_()
    (gradient,) = torch.autograd.grad(expected(leaf, None, None, no_eps), leaf, grad.double())
    judge = gradient.square().sum(1)
    assert ((squares - judge).abs() <= 4 * torch.finfo(torch.float32).eps / angle**2 * judge).all()
    assert (squares >= 0).all()
