"""torch_ws._C: the kernels on DLPack arrays, without copies."""

import numpy as np
import pytest
import torch
from torch_ws import _C, cpu_capability, standardize

OPTIONS = {"eps": 1e-3, "eps_mode": 1, "correction": 1, "scale": 0.5}


def test_forward_and_backward_equal_the_ops(isa):
    weight, gain, shift = np.random.randn(6, 5, 3).astype("f"), *np.random.randn(2, 6).astype("f")
    grad = np.random.randn(6, 5, 3).astype("f")
    out, grad_weight = np.empty_like(weight), np.empty_like(weight)
    grad_gain, grad_shift = np.empty_like(gain), np.empty_like(gain)
    _C.forward(weight, out, gain, shift, **OPTIONS)
    _C.backward(grad, weight, grad_weight, gain, grad_gain, grad_shift, **OPTIONS)
    tensors = [torch.tensor(a, requires_grad=True) for a in (weight, gain, shift)]
    expected = torch.ops.ws.standardize(*tensors, **OPTIONS)
    assert np.array_equal(out, expected.detach().numpy())
    grads = torch.autograd.grad(expected, tensors, torch.tensor(grad))
    for actual, want in zip((grad_weight, grad_gain, grad_shift), grads, strict=True):
        assert np.array_equal(actual, want.numpy())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes_through_torch_tensors(dtype):
    weight = torch.randn(4, 9).to(dtype)
    out = torch.empty_like(weight)
    _C.forward(weight, out)
    assert torch.equal(out, standardize(weight))


def test_float32_to_bfloat16():
    weight, out = torch.randn(4, 9), torch.empty(4, 9, dtype=torch.bfloat16)
    _C.forward(weight, out)
    assert torch.equal(out, standardize(weight, dtype=torch.bfloat16))


def test_strided_arrays_are_used_where_they_are():
    weight = np.random.randn(3, 8, 9).astype("f")[:, ::2]  # channel_dim 1: runs of 9
    out = np.full((3, 8, 9), 7, "f")
    _C.forward(weight, out[:, ::2], channel_dim=-2)
    expected = standardize(torch.from_numpy(weight.copy()), channel_dim=1).numpy()
    assert np.array_equal(out[:, ::2], expected)
    assert (out[:, 1::2] == 7).all()


def test_in_place():
    weight = np.random.randn(3, 40)
    expected = standardize(torch.from_numpy(weight.copy())).numpy()
    _C.forward(weight, weight)
    assert np.array_equal(weight, expected)


def test_build_info():
    info = _C.build_info()
    assert info["compiler"] and info["pybind11"].startswith("3.")
    assert info["cuda"] is None or info["cuda"]["toolkit"].count(".") == 1


def test_empty_array():
    out = np.empty((0, 3), "f")
    _C.forward(np.empty((0, 3), "f"), out)


W = np.random.randn(4, 6).astype("f")
BAD = {
    "list": (([[1.0]], W), {}, TypeError, "weight must be an array with __dlpack__ .* got list"),
    "integer": ((W.astype(int), W), {}, ValueError, "weight must be float64, float32, .* got"),
    "1-d": ((W[0], W[0].copy()), {}, ValueError, r"at least 2 dimensions, got shape \(6,\)"),
    "shape": (
        (W, W[:3].copy()),
        {},
        ValueError,
        r"out must have weight's shape \(4, 6\), got \(3, 6\)",
    ),
    "dtype": ((W, W.astype("d")), {}, ValueError, "out must have the weight's dtype, .* float64"),
    "gain": ((W, W.copy(), W[0]), {}, ValueError, r"gain must be contiguous, of shape \(4,\)"),
    "gain's dtype": (
        (W, W.copy(), np.ones(4)),
        {},
        ValueError,
        "gain must have the weight's dtype",
    ),
    "strides": ((W[:, ::2], W[:, :3].copy()), {}, ValueError, "weight must be dense within its"),
    "eps_mode": ((W, W.copy()), {"eps_mode": 3}, ValueError, "eps_mode must be 0 .* got 3"),
    "eps": ((W, W.copy()), {"eps": -1.0}, ValueError, "eps must be finite and not negative"),
    "correction": ((W, W.copy()), {"correction": 6}, ValueError, "correction must be in .* got 6"),
    "channel_dim": ((W, W.copy()), {"channel_dim": 2}, ValueError, r"must be in \[-2, 1\], got 2"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case):
    arguments, options, exception, message = BAD[case]
    before = [np.array(a) for a in arguments]
    with pytest.raises(exception, match=message):
        _C.forward(*arguments, **options)
    assert all(np.array_equal(a, b) for a, b in zip(arguments, before, strict=True))


def test_grad_weight_of_another_dtype_is_refused():
    with pytest.raises(ValueError, match="grad_weight must have the weight's dtype float32"):
        _C.backward(W, W, np.empty((4, 6)))


def test_tensor_that_requires_grad_is_refused():
    weight = torch.randn(4, 6, requires_grad=True)
    with pytest.raises(Exception, match=r"requires? grad"):
        _C.forward(weight, torch.empty(4, 6))


def test_unknown_capability_is_refused_and_changes_nothing():
    before = cpu_capability()
    with pytest.raises(ValueError, match="one of avx512, avx2, default; got avx1024"):
        _C.set_cpu_capability("avx1024")
    assert cpu_capability() == before
