"""The plain-PyTorch path in float32: what transforms, double backward and other devices compute."""

import pytest
import torch
import torch.nn.functional as F
from accuracy import assert_close, layer_norm_errors, relative_error
from torch_ws import Formula, reference, standardize, standardize_many

FORMULA = Formula(eps=1e-5, eps_mode="var")  # F.layer_norm's


def by_autograd(weight, grad):
    weight = weight.clone().requires_grad_()
    out = reference.standardize(weight, formula=FORMULA)
    return out, *torch.autograd.grad(out, weight, grad)


def by_create_graph(weight, grad):
    weight = weight.clone().requires_grad_()
    out = standardize(weight, formula=FORMULA)
    return out, *torch.autograd.grad(out, weight, grad, create_graph=True)


def by_vjp(weight, grad):
    out, pull = torch.func.vjp(lambda w: standardize(w, formula=FORMULA), weight)
    return out, *pull(grad)


def by_jvp(weight, grad):  # the Jacobian of a channel is symmetric
    return torch.func.jvp(lambda w: standardize(w, formula=FORMULA), (weight,), (grad,))


def by_vmap(weight, grad):
    return torch.vmap(by_vjp)(weight[:, None], grad[:, None])


PATHS = {"autograd": by_autograd, "create_graph": by_create_graph}
PATHS |= {"vjp": by_vjp, "jvp": by_jvp, "vmap": by_vmap}


def ordinary(rows, cols):
    return torch.randn(rows, cols)


def far_from_zero(rows, cols):  # |mean| = 1e4 std
    return torch.randn(rows, cols) + 1e4


def outlier(rows, cols):  # the first element, from the others
    values = torch.randn(rows, cols)
    values[:, 0] = 1e4
    return values


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("cols", [16, 576, 20000])
@pytest.mark.parametrize(
    "weights, grads",
    [
        (ordinary, ordinary),
        (far_from_zero, ordinary),
        (outlier, ordinary),
        (ordinary, far_from_zero),
        (far_from_zero, far_from_zero),
    ],
)
def test_accuracy(path, cols, weights, grads):
    weight, grad = weights(8, cols), grads(8, cols)
    judge = weight.double().requires_grad_()
    expected = reference.standardize(judge, formula=FORMULA)
    expected.backward(grad.double())
    out, grad_weight = (t.detach().view(8, cols) for t in path(weight, grad))
    # far from zero F.layer_norm loses most digits, which is no measure
    peers = [min(peer, 1e-6) for peer in layer_norm_errors(weight, grad)]
    assert_close(out, expected.detach(), peers[0])
    assert_close(grad_weight, judge.grad, peers[1])


def test_accuracy_beside_an_outlier():
    # judged without the outlier, which is a hundred times as large as what it spoils
    weight = outlier(8, 576)
    expected = reference.standardize(weight.double(), formula=FORMULA)[:, 1:]
    peer = F.layer_norm(weight, weight.shape[1:], eps=1e-5)[:, 1:]
    out = reference.standardize(weight, formula=FORMULA)[:, 1:]
    assert_close(out, expected, relative_error(peer, expected))


@pytest.mark.parametrize("value", [0.1, 1e4 / 3, 0.0])  # sums that are no multiple in float32
def test_constant_channel_is_exactly_zero(value):
    weight = torch.full((2, 147), value)
    assert not reference.standardize(weight).any()


@pytest.mark.parametrize("shape", [(4, 0), (0, 3), (0, 0, 2)])  # no elements, no channels, neither
@pytest.mark.parametrize("affine", ["", "gain", "shift", "gain shift"])
@pytest.mark.parametrize("many", [False, True])  # the list form has a node of its own
def test_double_backward_without_elements(shape, affine, many):
    inputs = {"weight": torch.randn(shape)}
    inputs |= {name: torch.randn(shape[0]) for name in affine.split()}
    tensors = [tensor.requires_grad_() for tensor in inputs.values()]
    if many:
        (out,) = standardize_many(*([inputs.get(k)] for k in ("weight", "gain", "shift")))
    else:
        out = standardize(**inputs)
    grads = torch.autograd.grad(out, tensors, torch.ones_like(out), create_graph=True)
    for grad, tensor in zip(grads, tensors, strict=True):
        assert torch.equal(grad, torch.zeros_like(tensor))


def test_gradients_of_the_reference_without_elements():
    inputs = torch.randn(4, 0), torch.randn(4), torch.randn(4)
    grads = torch.func.grad(lambda *t: reference.standardize(*t).sum(), argnums=(0, 1, 2))(*inputs)
    for grad, tensor in zip(grads, inputs, strict=True):
        assert torch.equal(grad, torch.zeros_like(tensor))
