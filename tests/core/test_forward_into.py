"""ws::forward_into: what forward_many gives, written to memory that is there already."""

import pytest
import torch
from torch_ws.core.many import raw_forward_into, raw_forward_many

OPS = torch.ops.ws
FORMULA = (1e-3, 1, 1, 1, 0.7)
REFUSED = (RuntimeError, ValueError)  # the library's terse check; the fake kernel's words

# Rows of 9 elements, of many, split between threads, with gaps between them, and none at all; the
# channel in front and behind; every pair of types that has a kernel.
WEIGHTS = {
    "rows of 9": (torch.randn(33, 1, 3, 3), 0, torch.float32),
    "channels_last": (torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last), 0, None),
    "channel_dim 1": (torch.randn(6, 12, 3, 3), -3, torch.float32),
    "large": (torch.randn(300, 700), 0, torch.float32),
    "sliced": (torch.randn(20, 30)[::2], 0, torch.float32),
    "empty": (torch.randn(4, 0), 0, torch.float32),
    "double": (torch.randn(5, 50).double(), 0, torch.float64),
    "half": (torch.randn(5, 50).half(), 0, torch.float16),
    "bfloat16": (torch.randn(5, 50).bfloat16(), 0, torch.bfloat16),
    "to half": (torch.randn(5, 50), 0, torch.float16),
    "to bfloat16": (torch.randn(5, 50), 0, torch.bfloat16),
}


def lists():
    """The arguments after the weights: a gain for every second, a shift for every third."""
    weights, dims, _ = zip(*WEIGHTS.values(), strict=True)
    gains, shifts = (
        [
            torch.randn(w.shape[d]).to(w.dtype) if i % every == 0 else None
            for i, (w, d) in enumerate(zip(weights, dims, strict=True))
        ]
        for every in (2, 3)
    )
    return list(weights), gains, shifts, list(dims), [*FORMULA] * len(weights)


def expected_of(weights, gains, shifts, dims, formulas):
    return [
        raw_forward_many([w], [g], [s], [d], formulas[:5], dtype)[0]
        for w, g, s, d, (*_, dtype) in zip(
            weights, gains, shifts, dims, WEIGHTS.values(), strict=True
        )
    ]


def test_bitwise_what_forward_many_gives_and_where(isa):
    arguments = lists()
    expected = expected_of(*arguments)
    outs = [torch.full_like(e, torch.nan) for e in expected]
    addresses = [out.data_ptr() for out in outs]
    raw_forward_into(outs, *arguments)
    assert all(torch.equal(a, b) for a, b in zip(outs, expected, strict=True))
    assert [out.data_ptr() for out in outs] == addresses


def reversed_strides(shape, dtype):
    return torch.full(shape[::-1], torch.nan, dtype=dtype).permute(*range(len(shape))[::-1])


def test_an_out_of_other_strides_than_its_weight():
    """Its order decides in which a row is summed: as of a weight that lies so. It is no copy."""
    weights, *others = lists()
    outs = [reversed_strides(e.shape, e.dtype) for e in expected_of(weights, *others)]
    copies = [reversed_strides(w.shape, w.dtype).copy_(w) for w in weights]
    raw_forward_into(outs, weights, *others)
    expected = expected_of(copies, *others)
    assert all(torch.equal(a, b) for a, b in zip(outs, expected, strict=True))


def test_a_part_of_a_larger_memory():
    """Nothing beside it is written, and its offset counts."""
    memory, weight = torch.full((3, 4, 5), 7.0), torch.randn(4, 5)
    raw_forward_into([memory[1]], [weight], [None], [None], [0], [*FORMULA])
    [expected] = raw_forward_many([weight], [None], [None], [0], [*FORMULA], None)
    assert torch.equal(memory[1], expected) and (memory[::2] == 7).all()


def test_into_the_weight_itself():
    weight = torch.randn(4, 5)
    [expected] = raw_forward_many([weight], [None], [None], [0], [*FORMULA], None)
    raw_forward_into([weight], [weight], [None], [None], [0], [*FORMULA])
    assert torch.equal(weight, expected)


def test_the_write_is_counted():
    """A graph that needs what was there says so."""
    out = torch.randn(4, 3)
    loss = (out * torch.randn(4, 3, requires_grad=True)).sum()
    raw_forward_into([out], [torch.randn(4, 3)], [None], [None], [0], [*FORMULA])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_opcheck():
    weights, *others = lists()
    outs = [torch.empty_like(e) for e in expected_of(weights, *others)]
    torch.library.opcheck(OPS.forward_into, (outs, weights, *others))


def test_compiled():
    """Functionalized: what reads the out comes after the write."""
    torch._dynamo.reset()

    def function(out, weight):
        OPS.forward_into([out], [weight], [None], [None], [0], [*FORMULA])
        return out * 2

    out, weight = torch.empty(4, 3), torch.randn(4, 3)
    result = torch.compile(function, fullgraph=True, backend="aot_eager")(out, weight)
    [expected] = raw_forward_many([weight], [None], [None], [0], [*FORMULA], None)
    assert torch.equal(out, expected) and torch.equal(result, 2 * expected)


def freed(tensor):
    tensor.untyped_storage().resize_(0)
    return tensor


# out for a weight of (4, 3): what the op says, and what is said in words
BAD = {
    "shape": (
        torch.ones(3, 4),
        "shape",
        r"out must have the weight's shape \(4, 3\), got \(3, 4\)",
    ),
    "dimensions": (torch.ones(4, 3, 1), "shape", "out must have the weight's shape"),
    "device": (torch.ones(4, 3, device="meta"), "device", "out must be on the weight's device cpu"),
    "double": (
        torch.ones(4, 3).double(),
        "dtype",
        "out must have dtype .* got float64",
    ),
    "integer": (torch.ones(4, 3).int(), "dtype", "out must have dtype .* got int32"),
    "sparse": (torch.ones(4, 3).to_sparse(), "Sparse", "out must be a dense"),
    "freed": (freed(torch.ones(4, 3)), "memory", "out must have memory for its 12 elements"),
    "gaps": (torch.ones(4, 6)[:, ::2], "without gaps", r"without gaps, got .* strides \(6, 2\)"),
    "expanded": (torch.ones(3).expand(4, 3), "without gaps", r"strides \(0, 1\)"),
    "overlapping": (torch.ones(12).as_strided((4, 3), (2, 1)), "without gaps", r"strides \(2, 1\)"),
}


@pytest.mark.parametrize("case", BAD)
def test_an_out_that_is_refused(case):
    """Nothing is written to those before it in the list, with which nothing is wrong."""
    bad, terse, words = BAD[case]
    first = torch.full((4, 3), 7.0)
    weights = [torch.randn(4, 3), torch.randn(4, 3)]
    arguments = ([first, bad], weights, [None] * 2, [None] * 2, [0, 0], [*FORMULA] * 2)
    with pytest.raises((*REFUSED, NotImplementedError), match=terse):
        OPS.forward_into(*arguments)
    with pytest.raises((ValueError, NotImplementedError), match=rf"weights\[1\]: .*{words}"):
        raw_forward_into(*arguments)
    assert (first == 7).all() and first._version == 0


@pytest.mark.parametrize("case", ["shape", "double", "gaps"])
def test_an_out_that_is_refused_on_meta(case):
    bad, _, words = BAD[case]
    weight = torch.empty(4, 3, device="meta")
    out = torch.empty_strided(bad.shape, bad.stride(), dtype=bad.dtype, device="meta")
    with pytest.raises(ValueError, match=words):
        OPS.forward_into([out], [weight], [None], [None], [0], [*FORMULA])


@pytest.mark.parametrize("name", ["weights", "gains", "shifts"])
def test_what_forward_many_refuses(name):
    """A tensor whose memory is gone; tests/core/test_raw_ops.py has what else the lists share."""
    good = {"weights": torch.randn(4, 3), "gains": torch.randn(4), "shifts": torch.randn(4)}
    out = torch.full((4, 3), 7.0)
    columns = [[freed(t) if n == name else t] for n, t in good.items()]
    with pytest.raises(ValueError, match=f"{name[:-1]} must have memory for its"):
        raw_forward_into([out], *columns, [0], [*FORMULA])
    assert (out == 7).all()


@pytest.mark.parametrize("argument", range(6))  # outs, weights, gains, shifts, dims, formulas
def test_lengths_of_lists(argument):
    lists = [[torch.randn(4, 3)], [torch.randn(4, 3)], [None], [None], [0], [*FORMULA]]
    lists[argument] = lists[argument][:-1]
    with pytest.raises(ValueError, match=r"must have (one entry a weight|5 numbers)"):
        raw_forward_into(*lists)


def test_what_is_no_tensor():
    with pytest.raises(TypeError, match=r"weights\[0\]: out must be a torch.Tensor, got float"):
        raw_forward_into([1.0], [torch.randn(4, 3)], [None], [None], [0], [*FORMULA])
