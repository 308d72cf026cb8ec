"""The gradient of a weight is written where that of its result lies, if nobody else has that."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch.utils.dlpack import to_dlpack
from torch_ws import standardize_many
from torch_ws.core import in_place


class Pass:
    """A backward pass through one weight, and where the gradient of its result lay."""

    def __init__(self, shape=(6, 20), dtype=None):
        self.weight = torch.randn(shape, requires_grad=True)
        self.factor = torch.randn(shape)
        [self.out] = standardize_many([self.weight], dtype=dtype)
        [self.expected] = standardize_many([self.weight], dtype=dtype)
        [self.expected] = torch.autograd.grad(
            self.expected, self.weight, self.factor.to(self.expected.dtype)
        )
        self.address = None
        self.out.register_hook(self.note)

    def note(self, grad):
        self.address = grad.data_ptr()

    def loss(self):
        return (self.out * self.factor).sum()

    def is_in_place(self):
        assert torch.equal(self.weight.grad, self.expected)
        return self.weight.grad.data_ptr() == self.address


@pytest.mark.parametrize("retain_graph", [False, True])
def test_a_gradient_that_nobody_has(retain_graph):
    one = Pass()
    one.loss().backward(retain_graph=retain_graph)
    assert one.is_in_place()


def test_some_of_many():
    """The gradient of the first is 2 everywhere, one number in memory; the third has none."""
    weights = [torch.randn(4, 5, requires_grad=True) for _ in range(4)]
    gains = [torch.randn(4, requires_grad=True) for _ in range(4)]
    factor, addresses = torch.randn(4, 5), {}
    outs = standardize_many(weights, gains)
    for i in (1, 3):
        outs[i].register_hook(lambda grad, i=i: addresses.update({i: grad.data_ptr()}))
    ((outs[0] * 2).sum() + (outs[1] * factor + outs[3] * factor).sum()).backward()
    for i in (0, 1, 3):
        out = standardize_many([weights[i]], [gains[i]])[0]
        grad = factor if i else torch.full((4, 5), 2.0)
        expected = torch.autograd.grad(out, (weights[i], gains[i]), grad)
        assert torch.equal(weights[i].grad, expected[0]) and torch.equal(gains[i].grad, expected[1])
    assert weights[2].grad is None
    assert addresses == {i: weights[i].grad.data_ptr() for i in (1, 3)}


def saved(grad):
    """A graph that refers to the very tensor, of which Python then knows nothing."""
    with torch.enable_grad():
        return (grad * torch.ones((), requires_grad=True)).sum()


HOLDERS = {
    "the tensor": lambda grad: grad,
    "another tensor": lambda grad: grad.detach(),
    "a view": lambda grad: grad[:1],
    "a graph": saved,
    "the storage": lambda grad: grad.untyped_storage(),
    "an array": lambda grad: grad.numpy(),
    "a buffer": lambda grad: memoryview(grad.numpy()),
    "DLPack": lambda grad: to_dlpack(grad),
    "another process": lambda grad: grad.share_memory_().data_ptr(),
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_a_gradient_that_a_hook_keeps(holder):
    one, held, copies = Pass(), [], []

    def keep(grad):
        held.append(HOLDERS[holder](grad))
        one.note(grad)
        copies.append(grad.clone())

    one.out.register_hook(keep)
    one.loss().backward()
    assert not one.is_in_place() and torch.equal(copies[0], one.factor)
    if isinstance(held[0], torch.Tensor) and held[0].shape == one.factor.shape:
        assert torch.equal(held[0], one.factor)  # nobody wrote


def test_retain_grad():
    one = Pass()
    one.out.retain_grad()
    one.loss().backward()
    assert torch.equal(one.out.grad, one.factor) and torch.equal(one.weight.grad, one.expected)


def test_autograd_grad_of_the_result_too():
    one = Pass()
    of_out, of_weight = torch.autograd.grad(one.loss(), (one.out, one.weight))
    assert torch.equal(of_out, one.factor) and torch.equal(of_weight, one.expected)


def test_a_gradient_that_the_caller_gives():
    one = Pass()
    given = one.factor.clone()
    one.out.backward(given)
    assert not one.is_in_place() and torch.equal(given, one.factor)


def test_hooks_of_the_node_see_what_it_got():
    one, got = Pass(), []
    one.out.grad_fn.register_hook(lambda _, grads: got.append(grads[0].clone()))
    one.loss().backward()
    assert torch.equal(got[0], one.factor) and torch.equal(one.weight.grad, one.expected)


@pytest.mark.parametrize("first", [False, True])  # the node that runs first
def test_a_gradient_that_another_node_gets_too(first):
    other = torch.zeros(6, 20, requires_grad=True)
    before = other * 1 if first else None
    one = Pass()
    before = other * 1 if before is None else before
    ((one.out + before) * one.factor).sum().backward()
    assert torch.equal(other.grad, one.factor) and torch.equal(one.weight.grad, one.expected)


def test_a_leaf_that_takes_the_same_gradient():
    one, other = Pass(), torch.zeros(6, 20, requires_grad=True)
    ((one.out + other) * one.factor).sum().backward()
    assert torch.equal(other.grad, one.factor) and torch.equal(one.weight.grad, one.expected)


def test_create_graph():
    one = Pass()
    one.loss().backward(create_graph=True)
    assert one.weight.grad.grad_fn is not None
    torch.testing.assert_close(one.weight.grad.detach(), one.expected)


class Given(torch.autograd.Function):
    """The identity, whose gradient `make()` makes."""

    @staticmethod
    def forward(ctx, x, make):
        ctx.make = make
        return x.clone()

    @staticmethod
    def backward(ctx, _):
        return ctx.make(), None


class Subclass(torch.Tensor):
    pass


def inference(values):
    with torch.inference_mode():
        return values.clone()


def in_more_memory(values):
    made = values.clone()
    made.untyped_storage().resize_(2 * made.nbytes)
    return made


NOT_ORDINARY = {
    "NumPy's": lambda values: torch.from_numpy(values.numpy().copy()),
    "Python's": lambda values: torch.frombuffer(
        bytearray(values.numpy().tobytes()), dtype=torch.float32
    ).view(values.shape),
    "a view": lambda values: torch.cat([values, values])[:6],
    "in more memory": in_more_memory,
    "other strides": lambda values: torch.empty_strided((6, 20), (1, 6)).copy_(values),
    "expanded": lambda values: values.flatten()[:1].expand(values.shape),
    "inference": inference,
    "with a graph": lambda values: values.clone().requires_grad_(),
    "a subclass": lambda values: values.clone().as_subclass(Subclass),
}


@pytest.mark.parametrize("kind", NOT_ORDINARY)
def test_a_gradient_that_is_no_ordinary_tensor(kind):
    one, addresses = Pass(), []

    def make():
        made = NOT_ORDINARY[kind](one.factor)
        addresses.append(made.data_ptr())
        return made

    Given.apply(one.out, make).backward(one.factor)
    [out] = standardize_many([one.weight])
    [expected] = torch.autograd.grad(out, one.weight, make().detach())
    assert torch.equal(one.weight.grad, expected)
    assert one.weight.grad.data_ptr() != addresses[0]
    assert not (one.weight.grad.requires_grad or one.weight.grad.is_inference())


def test_a_sparse_gradient_is_refused():
    [out] = standardize_many([torch.randn(4, 5, requires_grad=True)])
    with pytest.raises(NotImplementedError, match=r"weights\[0\]: grad must be a dense"):
        Given.apply(out, torch.ones(4, 5).to_sparse).sum().backward()


def test_memory_that_numpy_has():
    """An array that the function keeps, of which the tensor's storage does not tell."""
    one = Pass()
    array = one.factor.numpy().copy()
    Given.apply(one.out, lambda: torch.from_numpy(array)).sum().backward()
    assert np.array_equal(array, one.factor.numpy())
    assert torch.equal(one.weight.grad, one.expected)


def test_a_result_of_another_dtype():
    one = Pass(dtype=torch.bfloat16)
    one.factor = one.factor.bfloat16()
    one.loss().backward()
    assert not one.is_in_place()


class Hoarder(torch.overrides.TorchFunctionMode):
    """Keeps whatever an operation gives."""

    def __init__(self):
        super().__init__()
        self.kept = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.kept.append(func(*args, **(kwargs or {})))
        return self.kept[-1]


@pytest.mark.parametrize("mode", [nullcontext, Hoarder, torch.inference_mode])
@pytest.mark.parametrize("grad", [False, True])
def test_what_is_counted_first(mode, grad):
    """How many have a new gradient is found once, in the middle of whatever the user does."""
    expected = in_place._of_a_new_gradient()
    with mode(), torch.set_grad_enabled(grad):
        assert in_place._of_a_new_gradient.__wrapped__() == expected
