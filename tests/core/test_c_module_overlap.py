"""torch_ws._C in place, with results that overlap, and with read-only arrays."""

import numpy as np
import pytest
from torch_ws import _C

ROWS, COLS = 12, 50  # a few vectors and an end of one, for every instruction set


def dense(rng):
    return rng.standard_normal((ROWS, COLS)).astype("f"), 0


def transposed(rng):  # columns, gathered some at a time
    return rng.standard_normal((COLS, ROWS)).astype("f"), 1


def runs(rng):  # of a transposed convolution
    return rng.standard_normal((7, ROWS, 9)).astype("f"), 1


def reversed_rows(rng):
    return rng.standard_normal((ROWS, COLS)).astype("f")[::-1], 0


def gaps(rng):
    return rng.standard_normal((ROWS, 2, COLS)).astype("f")[:, 0], 0


def large(rng):  # stored past the caches
    return rng.standard_normal((300, 4001)).astype("f"), 0


layouts = pytest.mark.parametrize("layout", [dense, transposed, runs, reversed_rows, gaps, large])


def like(array):
    """Of its shape and strides, in memory of its own."""
    base = array if array.base is None else array.base
    copy = base.copy()
    offset = array.__array_interface__["data"][0] - base.__array_interface__["data"][0]
    return np.ndarray(array.shape, array.dtype, copy, offset, array.strides)


@layouts
def test_forward_in_place(isa, layout):
    weight, channel_dim = layout(np.random.default_rng(0))
    out = like(weight)
    _C.forward(weight, out, channel_dim=channel_dim)
    _C.forward(weight, weight, channel_dim=channel_dim)
    assert np.array_equal(weight, out)


@layouts
@pytest.mark.parametrize("place", ["grad", "weight", "both"])
def test_backward_in_place(isa, layout, place):
    rng = np.random.default_rng(0)
    (weight, channel_dim), (grad, _) = layout(rng), layout(rng)
    grad = weight if place == "both" else grad
    gain = rng.standard_normal(weight.shape[channel_dim]).astype("f")
    results = [like(weight), *np.empty((2, gain.size), "f")]
    _C.backward(grad, weight, results[0], gain, *results[1:], channel_dim=channel_dim)
    vectors = np.empty((2, gain.size), "f")
    target = grad if place == "grad" else weight
    _C.backward(grad, weight, target, gain, *vectors, channel_dim=channel_dim)
    for actual, expected in zip((target, *vectors), results, strict=True):
        assert np.array_equal(actual, expected)


def test_arrays_that_interleave_are_apart():
    rng = np.random.default_rng(0)
    buffer = rng.standard_normal((6, 2, 8)).astype("f")
    weight = buffer[:, 0].copy()
    expected = np.empty_like(weight)
    _C.forward(weight, expected)
    _C.forward(buffer[:, 0], buffer[:, 1])  # rows between rows
    assert np.array_equal(buffer[:, 1], expected) and np.array_equal(buffer[:, 0], weight)
    columns = rng.standard_normal((8, 12)).astype("f")
    weight = columns[:, ::2].copy()
    expected = np.empty_like(weight)
    _C.forward(weight, expected, channel_dim=1)
    _C.forward(columns[:, ::2], columns[:, 1::2], channel_dim=1)  # elements between elements
    assert np.array_equal(columns[:, 1::2], expected)
    assert np.array_equal(columns[:, ::2], weight)


def strided(memory, shape, strides, offset=0):
    itemsize = memory.itemsize
    strides = [itemsize * s for s in strides]
    return np.lib.stride_tricks.as_strided(memory[offset:], shape, strides, writeable=True)


M = np.arange(64, dtype="f")
W = np.random.default_rng(1).standard_normal((4, 6)).astype("f")
# what overlaps what -> arguments of forward
FORWARD = {
    "out overlaps itself: expanded rows": (W, strided(M, (4, 6), (0, 1))),
    "out overlaps itself: expanded columns": (W, strided(M, (4, 6), (1, 0))),
    "out overlaps itself: sliding": (W, strided(M, (4, 6), (1, 1))),
    "out overlaps itself: nearly": (W, strided(M, (4, 6), (5, 1))),
    "out overlaps itself: crossing": (W, strided(M, (4, 6), (2, 2))),
    "out and weight: one element": (strided(M, (4, 6), (6, 1)), strided(M, (4, 6), (6, 1), 23)),
    "out and weight: a row further": (strided(M, (4, 6), (6, 1)), strided(M, (4, 6), (6, 1), 6)),
    "out and weight: before": (strided(M, (4, 6), (6, 1), 1), strided(M, (4, 6), (6, 1))),
    "out and weight: transposed": (strided(M, (6, 6), (6, 1)), strided(M, (6, 6), (1, 6))),
    "out and weight: reversed": (strided(M, (4, 6), (6, 1)), strided(M, (4, 6), (6, 1))[::-1]),
    "out and weight: other gaps": (strided(M, (4, 6), (6, 1)), strided(M, (4, 6), (8, 1))),
    "out and weight: gaps of one": (strided(M, (4, 6), (12, 1)), strided(M, (4, 6), (12, 1), 5)),
    "out and weight: expanded weight": (strided(M, (4, 6), (0, 1)), strided(M, (4, 6), (6, 1), 5)),
    "out and weight: halves": (M[:24].reshape(4, 6), M[:24].reshape(4, 6).view("e")[:, :6]),
    "out and gain": (W, strided(M, (4, 6), (6, 1)), M[23:27]),
    "out and shift": (W, strided(M, (4, 6), (6, 1)), None, M[:4]),
    "out and gain: in a row": (W, strided(M, (4, 6), (12, 1)), M[16:20]),
}
G, V = W[::-1].copy(), np.ones((3, 4), "f")
R = strided(M, (4, 6), (6, 1))
BACKWARD = {
    "grad_weight overlaps itself": (G, W, strided(M, (4, 6), (0, 1))),
    "grad_weight and grad": (strided(M, (4, 6), (6, 1), 3), W, R),
    "grad_weight and weight": (G, strided(M, (4, 6), (6, 1), 3), R),
    "grad_weight and gain": (G, W, R, M[2:6]),
    "grad_weight and grad_gain": (G, W, R, None, M[2:6]),
    "grad_weight and grad_shift": (G, W, R, None, None, M[2:6]),
    "grad_gain and grad_shift": (G, W, R, None, V[0], V[0]),
    "grad_gain and grad_shift: in part": (G, W, R, None, M[40:44], M[43:47]),
    "grad_gain and gain": (G, W, R, V[0], V[0]),
    "grad_shift and gain": (G, W, R, V[0], None, V[0]),
    "grad_gain and grad": (G, W, R, None, G.ravel()[4:8]),
    "grad_shift and weight": (G, W, R, None, None, W.ravel()[20:]),
}


@pytest.mark.parametrize("case", [*FORWARD, *BACKWARD])
def test_overlaps_are_refused(case):
    function, arguments = (_C.forward, FORWARD) if case in FORWARD else (_C.backward, BACKWARD)
    arguments = arguments[case]
    names = case.split(":")[0].replace(" overlaps itself", " must not overlap itself")
    before = [None if a is None else a.copy() for a in arguments]
    with pytest.raises(ValueError, match=names):
        function(*arguments)
    for array, old in zip(arguments, before, strict=True):
        assert array is None or np.array_equal(array, old)


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def test_read_only_inputs():
    gain, shift = np.random.default_rng(2).standard_normal((2, 4)).astype("f")
    out, expected = np.empty_like(W), np.empty_like(W)
    _C.forward(read_only(W), out, read_only(gain), read_only(shift))
    _C.forward(W, expected, gain, shift)
    assert np.array_equal(out, expected)
    _C.backward(read_only(G), read_only(W), out, read_only(gain))
    _C.backward(G, W, expected, gain)
    assert np.array_equal(out, expected)


def test_read_only_results_are_refused():
    array = read_only(W)
    with pytest.raises(ValueError, match="out must be writable, got a read-only array"):
        _C.forward(W, array)
    with pytest.raises(ValueError, match="out must be writable"):
        _C.forward(array, array)
    with pytest.raises(ValueError, match="out must be writable"):
        _C.forward(np.empty((0, 3)), read_only(np.empty((0, 3))))
    with pytest.raises(ValueError, match="grad_weight must be writable"):
        _C.backward(G, W, array)
    for vectors in ((None, read_only(V[0])), (None, None, read_only(V[0]))):
        name = ("grad_gain", "grad_shift")[len(vectors) - 2]
        with pytest.raises(ValueError, match=f"{name} must be writable"):
            _C.backward(G, W, np.empty_like(W), *vectors)
    assert np.array_equal(array, W)
