"""What is refused: the exception's type and words, from the function and from the op."""

import pytest
import torch
import torch_ws
from torch_ws import Formula, reference, standardize

W = torch.randn(4, 3, 2, 2)

# (arguments, exception, message)
BAD = {
    "not a tensor": (([1.0],), TypeError, "weight must be a torch.Tensor, got list"),
    "integer": ((W.int(),), ValueError, "weight must have dtype float32, .*; got int32"),
    "complex": ((W.to(torch.complex64),), ValueError, "weight must have dtype .*; got complex64"),
    "sparse": ((W.to_sparse(),), NotImplementedError, "weight must be a dense .* got torch.sparse"),
    "quantized": (
        (torch.quantize_per_tensor(W, 0.1, 0, torch.qint8),),
        NotImplementedError,
        "weight must not be quantized, got torch.qint8",
    ),
    "0-d": ((torch.tensor(1.0),), ValueError, r"weight must have at least 2 dimensions .* \(\)"),
    "1-d": ((torch.randn(4),), ValueError, r"at least 2 dimensions .* got shape \(4,\)"),
    "gain not a tensor": ((W, 2.0), TypeError, "gain must be a torch.Tensor or None, got float"),
    "gain's shape": (
        (W, torch.ones(4, 1, 1, 1)),
        ValueError,
        r"gain must have shape \(4,\), one value a channel; got \(4, 1, 1, 1\)",
    ),
    "shift's shape": (
        (W, None, torch.ones(3)),
        ValueError,
        r"shift must have shape \(4,\).*\(3,\)",
    ),
    "gain's dtype": (
        (W, torch.ones(4).double()),
        ValueError,
        "gain must have the weight's dtype float32, got float64",
    ),
    "gain's device": (
        (W, torch.ones(4, device="meta")),
        ValueError,
        "gain must be on the weight's device cpu, got meta",
    ),
    "shift sparse": (
        (W, None, torch.ones(4).to_sparse()),
        NotImplementedError,
        "shift must be a dense",
    ),
    "channel_dim": (
        (W, {"channel_dim": 4}),
        ValueError,
        r"channel_dim must be in \[-4, 3\] .* got 4",
    ),
    "channel_dim's type": ((W, {"channel_dim": "0"}), TypeError, "channel_dim must be an int"),
    "dtype": (
        (W, {"dtype": torch.float64}),
        ValueError,
        "dtype must be float32 or float16 or bfloat16 for a float32 weight, got float64",
    ),
    "dtype of a double": (
        (W.double(), {"dtype": torch.bfloat16}),
        ValueError,
        "dtype must be float64 for a float64 weight, got bfloat16",
    ),
    "dtype's type": ((W, {"dtype": "bfloat16"}), TypeError, "dtype must be a torch.dtype or None"),
    "unknown formula": (
        (W, {"formula": "papre"}),
        ValueError,
        "formula must be one of paper, qiao, .*; got 'papre'",
    ),
    "formula's type": ((W, {"formula": 3}), TypeError, "formula must be a name or a Formula"),
    "N = 1 with correction 1": (
        (torch.randn(4, 1), {"formula": "qiao"}),
        ValueError,
        r"correction must be smaller than the elements of a channel \(1,",
    ),
    "correction = N": (
        (torch.randn(4, 3), {"formula": Formula(correction=3)}),
        ValueError,
        r"correction must be smaller .* \(3, .* got 3",
    ),
}


@pytest.mark.parametrize("requires_grad", [False, True])  # two paths to the kernel
@pytest.mark.parametrize(
    "function", [standardize, reference.standardize], ids=["ours", "reference"]
)
@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case, function, requires_grad):
    arguments, exception, message = BAD[case]
    kwargs = {}
    if isinstance(arguments[-1], dict):
        *arguments, kwargs = arguments
    weight = arguments[0]
    if requires_grad and isinstance(weight, torch.Tensor) and weight.is_floating_point():
        arguments = (weight.detach().requires_grad_(), *arguments[1:])
    with pytest.raises(exception, match=message):
        function(*arguments, **kwargs)


# What only the op can be given.
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps_mode": 3}, 'eps_mode must be one of 0 "std", 1 "var", 2 "clamp"; got 3'),
        ({"eps_mode": -1}, "eps_mode must be one of .*; got -1"),
        ({"eps": -1.0}, "eps must be finite and not negative, got -1.0"),
        ({"eps": float("nan")}, "eps must be finite and not negative, got nan"),
        ({"scale": float("inf")}, "scale must be finite, got inf"),
        ({"correction": -1}, "correction must not be negative, got -1"),
        ({"channel_dim": -5}, r"channel_dim must be in \[-4, 3\]"),
        ({"dtype": torch.int32}, "dtype must be float32 or .* got int32"),
    ],
)
def test_bad_arguments_of_the_op(options, message):
    with pytest.raises(ValueError, match=message):
        torch.ops.ws.standardize(W, **options)
    # without autograd the library's own, terse check refuses
    with torch.inference_mode(), pytest.raises(RuntimeError, match="ws: "):
        torch.ops.ws.standardize(W.clone(), **options)


@pytest.mark.parametrize(
    ("options", "exception", "message"),
    [
        ({"eps": "small"}, TypeError, "eps must be a float, got str"),
        ({"eps": True}, TypeError, "eps must be a float, got bool"),
        ({"eps": -1.0}, ValueError, "eps must not be negative, got -1.0"),
        ({"eps": float("nan")}, ValueError, "eps must be finite, got nan"),
        ({"gamma": float("inf")}, ValueError, "gamma must be finite, got inf"),
        ({"correction": 0.5}, TypeError, "correction must be an int, got float"),
        ({"correction": -1}, ValueError, "correction must not be negative, got -1"),
        ({"center": 1}, TypeError, "center must be a bool, got int"),
        (
            {"eps_mode": "inside"},
            ValueError,
            "eps_mode must be one of std, var, clamp; got 'inside'",
        ),
        ({"eps_mode": 1}, TypeError, "eps_mode must be a str, got int"),
        ({"scale": "gain"}, ValueError, "scale must be one of unit, fan_in; got 'gain'"),
    ],
)
def test_bad_formula(options, exception, message):
    with pytest.raises(exception, match=message):
        Formula(**options)


@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (0, 0), (2, 0, 3)])
def test_empty_weights_give_empty_results(shape):
    weight = torch.randn(shape, requires_grad=True)
    gain = torch.randn(shape[0], requires_grad=True)
    for function in (standardize, reference.standardize):
        out = function(weight, gain, formula="nfnet", dtype=torch.bfloat16)
        assert (out.shape, out.dtype) == (weight.shape, torch.bfloat16)
        grads = torch.autograd.grad(out.sum(), (weight, gain), allow_unused=True)
        assert grads[0].shape == weight.shape
        assert grads[1] is None or torch.equal(grads[1], torch.zeros(shape[0]))


def test_a_gradient_of_the_wrong_shape_is_refused():
    arguments = (0, 1e-5, 0, 0, True, 1.0)
    with pytest.raises(RuntimeError, match="grad must have the weight's shape and device"):
        torch.ops.ws.backward(torch.randn(4, 3), W, None, *arguments)
    with pytest.raises(RuntimeError, match="no kernel for this weight dtype and result dtype"):
        torch.ops.ws.backward(W.double(), W, None, *arguments)


def test_modules_refuse_an_unknown_formula():
    with pytest.raises(ValueError, match="formula must be one of"):
        torch_ws.WSConv2d(3, 4, 3, formula="papre")
