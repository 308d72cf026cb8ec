"""The raw ops, which take tensors from anyone: what could be read or written wrongly is refused."""

import pytest
import torch
import torch_ws
from torch_ws import Formula, reference, standardize, standardize_many

OPS = torch.ops.ws
FORMULA = (1e-5, 0, 0, True, 1.0)  # eps, eps_mode, correction, center, scale
REFUSED = (RuntimeError, ValueError)  # the library's terse check; the fake kernel's words


def call(op, *, formula=FORMULA, channel_dim=0, **tensors):
    """Calls an op of one weight, or of a list of two, of which the second has the tensors."""
    good = {"grad": torch.randn(4, 3), "weight": torch.randn(4, 3), "gain": torch.randn(4)}
    given = {**good, "shift": torch.randn(4), **tensors}
    names = ("grad", "weight", "gain") if "backward" in op else ("weight", "gain", "shift")
    last = {"forward": (None,), "forward_many": (None,), "backward_many": (True,)}.get(op, ())
    arguments = [given[name] for name in names]
    if "many" in op:
        first = [torch.randn(4, 3) if name in ("grad", "weight") else None for name in names]
        lists = [list(pair) for pair in zip(first, arguments, strict=True)]
        return getattr(OPS, op)(*lists, [0, channel_dim], [*FORMULA, *formula], *last)
    if op == "standardize":
        options = ("eps", "eps_mode", "correction", "center", "scale")
        keywords = dict(zip(options, formula, strict=True))
        return OPS.standardize(*arguments, channel_dim=channel_dim, **keywords)
    return getattr(OPS, op)(*arguments, channel_dim, *formula, *last)


FORWARD = ["standardize", "forward", "standardize_many", "forward_many"]
BACKWARD = ["backward", "backward_affine", "backward_many"]
EVERY = [(op, name) for op in FORWARD for name in ("weight", "gain", "shift")]
EVERY += [(op, name) for op in BACKWARD for name in ("grad", "weight", "gain")]
every_tensor = pytest.mark.parametrize(("op", "name"), EVERY)
every_op = pytest.mark.parametrize("op", FORWARD + BACKWARD)
list_ops = pytest.mark.parametrize("op", [op for op in FORWARD + BACKWARD if "many" in op])


def tensor_for(name, **options):
    return torch.randn((4,) if name in ("gain", "shift") else (4, 3), **options)


@every_op
def test_the_helper_calls_every_op_rightly(op):
    results = call(op)
    assert isinstance(results, torch.Tensor) or len(results) > 1


@every_tensor
def test_a_tensor_on_another_device(op, name):
    with pytest.raises(REFUSED, match="device"):
        call(op, **{name: tensor_for(name, device="meta")})


@pytest.mark.parametrize("name", ["grad", "weight", "gain"])
@pytest.mark.parametrize("op", BACKWARD)
def test_backward_on_meta_with_one_real_tensor(op, name):
    tensors = {n: tensor_for(n, device="meta") for n in ("grad", "weight", "gain")}
    with pytest.raises(ValueError, match="device"):
        call(op, **{**tensors, name: tensor_for(name)})


def freed(tensor):
    tensor.untyped_storage().resize_(0)
    return tensor


def cut(tensor):
    """One element short of what its shape and offset say."""
    tensor.untyped_storage().resize_((tensor.numel() - 1) * tensor.element_size())
    return tensor


def beyond(tensor):
    """Strides that reach past the storage, which itself has enough bytes for the elements."""
    every_second = tuple(slice(None, None, 2) for _ in tensor.shape)
    wide = torch.randn([2 * n for n in tensor.shape])[every_second]
    wide.untyped_storage().resize_(tensor.numel() * tensor.element_size())
    return wide


@pytest.mark.parametrize("spoil", [freed, cut, beyond])
@every_tensor
def test_a_tensor_whose_memory_is_gone(op, name, spoil):
    tensors = {name: spoil(tensor_for(name))}
    without_autograd = torch.inference_mode("standardize" in op)
    with pytest.raises(RuntimeError, match=f"ws: .*{name} must have memory"), without_autograd:
        call(op, **tensors)


@pytest.mark.parametrize("requires_grad", [False, True])  # two paths to the kernel
@pytest.mark.parametrize("name", ["weight", "gain", "shift"])
@pytest.mark.parametrize("function", [standardize, standardize_many, OPS.standardize])
def test_memory_that_is_gone_in_words(function, name, requires_grad):
    tensors = {n: tensor_for(n) for n in ("weight", "gain", "shift")}
    freed(tensors[name])
    tensors = {n: t.requires_grad_(requires_grad) for n, t in tensors.items()}
    arguments = [[t] if function is standardize_many else t for t in tensors.values()]
    with pytest.raises(ValueError, match=f"{name} must have memory for its .* elements"):
        function(*arguments)


@pytest.mark.parametrize("function", [standardize, lambda w, g: standardize_many([w], [g])[0]])
@pytest.mark.parametrize("name", ["weight", "gain"])
def test_memory_freed_between_forward_and_backward(function, name):
    tensors = {n: tensor_for(n, requires_grad=True) for n in ("weight", "gain")}
    out = function(*tensors.values())
    freed(tensors[name].detach())
    with pytest.raises(ValueError, match=f"{name} must have memory for its .* elements"):
        out.sum().backward()
    assert all(t.grad is None for t in tensors.values())


def test_a_view_that_ends_with_its_storage_is_used():
    buffer = torch.randn(4 * 3 + 1)
    weight, gain = buffer[1:].view(4, 3), torch.randn(8)[1::2]
    expected = reference.standardize(weight.double(), gain.double())
    assert torch.allclose(standardize(weight, gain).double(), expected, atol=1e-5)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    "shape",
    [
        (0,) * 65,  # the smallest number too many
        (1,) * 65,
        (2, 3, *(1,) * 98),
    ],
)
@every_op
def test_more_than_64_dimensions(op, shape, device):
    tensors = {
        "weight": torch.randn(shape, device=device),
        "grad": torch.randn(shape, device=device),
    }
    with pytest.raises(REFUSED, match="dimensions"):
        call(op, **tensors, gain=None, shift=None)


def test_64_dimensions_are_standardized():
    weight = torch.randn(4, 3, *(1,) * 62, requires_grad=True)
    flat = weight.detach().view(4, 3).requires_grad_()
    out, expected = standardize(weight), standardize(flat)
    assert torch.equal(out.view(4, 3), expected)
    out.square().sum().backward()
    expected.square().sum().backward()
    assert torch.equal(weight.grad.view(4, 3), flat.grad)


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize(
    "function",
    [standardize, reference.standardize, lambda w: standardize_many([w]), OPS.standardize],
)
def test_more_than_64_dimensions_in_words(function, requires_grad):
    weight = torch.randn((1,) * 65, requires_grad=requires_grad)
    with pytest.raises(ValueError, match="weight must have at most 64 dimensions, got 65"):
        function(weight)


GRADS = {
    "shape": torch.randn(3, 4),
    "fewer dimensions": torch.randn(4),
    "more dimensions": torch.randn(4, 3, 1),
    "empty": torch.randn(4, 0),
    "no dimension": torch.tensor(1.0),
    "float64": torch.randn(4, 3).double(),
    "integer": torch.ones(4, 3, dtype=torch.int32),
    "complex": torch.randn(4, 3, dtype=torch.complex64),
    "bool": torch.ones(4, 3, dtype=torch.bool),
    "sparse": torch.randn(4, 3).to_sparse(),
}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("op", BACKWARD)
@pytest.mark.parametrize("case", GRADS)
def test_a_gradient_that_does_not_fit(case, op, device):
    tensors = {"grad": GRADS[case], "weight": torch.randn(4, 3), "gain": torch.randn(4)}
    if device == "meta" and case == "sparse":
        tensors["grad"] = torch.empty(4, 3, layout=torch.sparse_coo, device=device)
    with pytest.raises((*REFUSED, NotImplementedError), match=r"grad|dtype|Sparse"):
        call(op, **{name: tensor.to(device) for name, tensor in tensors.items()})


FORMULAS = {
    "eps_mode 2.9": ((1e-5, 2.9, 0, 1, 1.0), "eps_mode"),
    "eps_mode -0.5": ((1e-5, -0.5, 0, 1, 1.0), "eps_mode"),  # truncated, it would be 0
    "eps_mode NaN": ((1e-5, float("nan"), 0, 1, 1.0), "eps_mode"),
    "correction 0.5": ((1e-5, 0, 0.5, 1, 1.0), "correction"),
    "correction NaN": ((1e-5, 0, float("nan"), 1, 1.0), "correction"),
    "correction inf": ((1e-5, 0, float("inf"), 1, 1.0), "correction"),
    "correction beyond an int64": ((1e-5, 0, 1e300, 1, 1.0), "correction"),
    "center 0.5": ((1e-5, 0, 0, 0.5, 1.0), "center"),
    "center 2": ((1e-5, 0, 0, 2, 1.0), "center"),
    "center NaN": ((1e-5, 0, 0, float("nan"), 1.0), "center"),
}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("case", FORMULAS)
@list_ops
def test_numbers_of_a_list_that_are_not_whole(op, case, device):
    formula, name = FORMULAS[case]
    tensors = {n: tensor_for(n, device=device) for n in ("grad", "weight", "gain", "shift")}
    if device == "meta":
        lists = [[tensors["weight"]], [tensors["gain"]]]
        arguments = (*lists, [tensors["shift"]], [0], list(formula))
        if op == "backward_many":
            arguments = ([tensors["grad"]], *lists, [0], list(formula), True)
        with pytest.raises(ValueError, match=name):
            getattr(OPS, op)(*arguments, *([None] if op == "forward_many" else []))
    else:
        with pytest.raises(REFUSED, match=name):
            call(op, formula=formula)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("length", [9, 11, 0, 5, 14])  # of 10; integer division would take 11, 14
@list_ops
def test_length_of_formulas(op, length, device):
    with pytest.raises(REFUSED, match="formulas"):
        list_call(op, device, formulas=[*FORMULA * 3][:length])


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("argument", ["channel_dims", "gains", "grads", "shifts"])
@list_ops
def test_lengths_of_lists(op, argument, device):
    if argument == ("shifts" if op == "backward_many" else "grads"):
        pytest.skip("the op has no such argument")
    entry = {"channel_dims": 0, "grads": torch.randn(4, 3, device=device)}.get(argument)
    for length in (0, 1, 3):
        with pytest.raises(REFUSED, match=f"{argument}|lists"):
            list_call(op, device, **{argument: [entry] * length})
    with pytest.raises(REFUSED, match=r"lists|one entry a weight"):
        tensors = "grads" if op == "backward_many" else "gains"
        list_call(op, device, weights=[], **{tensors: [torch.randn(4, device=device)]})


def list_call(op, device, **given):
    """A list op of two weights, with some of its lists replaced."""
    two = [torch.randn(4, 3, device=device) for _ in range(2)]
    lists = {"grads": two, "weights": two, "gains": [None] * 2, "shifts": [None] * 2}
    lists |= {"channel_dims": [0, 0], "formulas": [*FORMULA * 2]}
    unused, last = ("shifts", (True,)) if op == "backward_many" else ("grads", (None,))
    arguments = {name: value for name, value in lists.items() if name != unused} | given
    return getattr(OPS, op)(*arguments.values(), *last)


TOO_LARGE = {"eps": (1e39, 0, 0, True, 1.0), "scale": (1e-5, 0, 0, True, -1e39)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", TOO_LARGE)
@every_op
def test_numbers_too_large_for_the_statistics(op, name, dtype):
    tensors = {n: tensor_for(n).to(dtype) for n in ("grad", "weight", "gain", "shift")}
    with pytest.raises(REFUSED, match=f"{name} must be finite"):
        call(op, formula=TOO_LARGE[name], **tensors)
    doubles = {n: t.double() for n, t in tensors.items()}
    assert call(op, formula=TOO_LARGE[name], **doubles) is not None  # finite there


@pytest.mark.parametrize("formula", [Formula(gamma=1e39), Formula(eps=1e39)])
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("function", [standardize, reference.standardize, standardize_many])
def test_numbers_too_large_in_words(function, formula, requires_grad):
    weight = torch.randn(4, 3, requires_grad=requires_grad)
    name, origin = ("eps", "") if formula.eps > 1 else ("scale", ", from the formula's gamma")
    with pytest.raises(ValueError, match=f"{name} must be finite in float32.* got 1e.39{origin}"):
        function([weight] if function is standardize_many else weight, formula=formula)
    out = torch_ws.standardize(weight.double(), formula=formula)
    assert torch.isfinite(out).all()
