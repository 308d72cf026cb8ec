"""ws::backward_in_place: what backward_many gives, where the gradients of the results lay."""

import pytest
import torch
from torch_ws.core.many import raw_backward_many

OPS = torch.ops.ws
FORMULA = (1e-3, 1, 1, 1, 0.7)

# Rows of 9 elements, of many, split between threads, stored past the caches, and none at all; the
# channel in front and behind; every type.
WEIGHTS = {
    "rows of 9": (torch.randn(33, 1, 3, 3), 0),
    "channels_last": (torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last), 0),
    "channel_dim 1": (torch.randn(6, 12, 3, 3), -3),
    "large": (torch.randn(300, 700), 0),
    "past the caches": (torch.randn(600, 1760), 0),
    "empty": (torch.randn(4, 0), 0),
    "double": (torch.randn(5, 50).double(), 0),
    "half": (torch.randn(5, 50).half(), 0),
    "bfloat16": (torch.randn(5, 50).bfloat16(), 0),
}


def lists():
    """The op's arguments but for affine: a gain for every second weight."""
    weights, dims = zip(*WEIGHTS.values(), strict=True)
    gains = [
        torch.randn(w.shape[d]).to(w.dtype) if i % 2 == 0 else None
        for i, (w, d) in enumerate(zip(weights, dims, strict=True))
    ]
    grads = [torch.randn_like(w) for w in weights]
    return grads, list(weights), gains, list(dims), [*FORMULA] * len(weights)


@pytest.mark.parametrize("affine", [False, True])
def test_bitwise_what_backward_many_gives_and_where(isa, affine):
    grads, *arguments = lists()
    expected = raw_backward_many(grads, *arguments, affine)
    addresses = [grad.data_ptr() for grad in grads]
    results = raw_backward_many(grads, *arguments, affine, in_place=True)
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))
    assert [result.data_ptr() for result in results[: len(grads)]] == addresses


REST = ([None], [0], [*FORMULA], False)  # what follows one grad and its weight


def test_a_grad_of_other_strides_than_its_weight():
    """Its order decides in which a row is summed: as of a weight that lies so. It is no copy."""
    weight = torch.randn(5, 6, 7)
    grad = torch.randn(7, 6, 5).permute(2, 1, 0)
    [expected] = raw_backward_many([grad], [torch.empty_like(grad).copy_(weight)], *REST)
    OPS.backward_in_place([grad], [weight], *REST)
    assert torch.equal(grad, expected)


def test_opcheck():
    """A trace has backward_many in its place: gradients there are no plain tensors."""
    checks = ("test_schema", "test_autograd_registration")
    torch.library.opcheck(OPS.backward_in_place, (*lists(), True), test_utils=checks)


def freed(tensor):
    tensor.untyped_storage().resize_(0)
    return tensor


BAD = {
    "shape": (torch.ones(3, 4), "shape"),
    "another dtype": (torch.ones(4, 3).bfloat16(), "the weight's dtype"),
    "gaps": (torch.ones(4, 6)[:, ::2], "gaps"),
    "expanded": (torch.ones(3).expand(4, 3), "gaps"),
    "freed": (freed(torch.ones(4, 3)), "memory"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_grad_that_is_refused(case):
    """Nothing is written to those before it in the list, with which nothing is wrong."""
    bad, words = BAD[case]
    first, weights = torch.full((4, 3), 7.0), [torch.randn(4, 3), torch.randn(4, 3)]
    arguments = ([first, bad], weights, [None] * 2, [0, 0], [*FORMULA] * 2, False)
    with pytest.raises(RuntimeError, match=words):
        OPS.backward_in_place(*arguments)
    assert (first == 7).all()
