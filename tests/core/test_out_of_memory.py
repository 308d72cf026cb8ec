"""Memory that runs out: PyTorch's own error arrives, and everything is as it was."""

import re
from pathlib import Path

import pytest
import torch
import torch_ws
from torch_ws import standardize, standardize_many

OPS = torch.ops.ws
FORMULA = (1e-5, 0, 0, True, 1.0)
WORDS = r"can't allocate memory: you tried to allocate \d+ bytes"
LIBRARIES = sorted(Path(torch_ws.__file__).parent.glob("*.so"))


def petabyte(requires_grad=False):
    """A weight of one element that looks like 2**48: its result cannot be allocated anywhere."""
    return torch.ones(1, requires_grad=requires_grad).expand(2**24, 2**24)


@pytest.mark.parametrize("requires_grad", [False, True])  # two paths to the kernel
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_forward(dtype, requires_grad):
    weight = petabyte(requires_grad)
    with pytest.raises(RuntimeError, match=f"^.*{WORDS}"):
        standardize(weight, dtype=dtype)
    small = torch.randn(4, 3)
    before = small.clone()
    with pytest.raises(RuntimeError, match=WORDS):
        standardize_many([small, weight], dtype=dtype)
    assert torch.equal(small, before) and (weight[:2, :2] == 1).all()


@pytest.mark.parametrize("requires_grad", [False, True])
def test_ops(requires_grad):
    weight = petabyte(requires_grad)
    with pytest.raises(RuntimeError, match=WORDS):
        OPS.standardize(weight)
    with pytest.raises(RuntimeError, match=WORDS):
        OPS.standardize_many([weight], [None], [None], [0], [*FORMULA])


@pytest.mark.parametrize("affine", [False, True])  # two ops
def test_backward(monkeypatch, affine):
    def forward(weight, *_):
        """One element in all, as if the forward pass had found the memory."""
        return weight.new_zeros(1).expand(weight.shape)

    monkeypatch.setattr(torch_ws.core.autograd, "raw_forward", forward)
    monkeypatch.setattr(
        torch_ws.core.many, "raw_forward_many", lambda ws, *_: [forward(w) for w in ws]
    )
    leaf = torch.ones(1, requires_grad=True)
    weight = leaf.expand(2**24, 2**24)
    gain = torch.ones(2**24, requires_grad=True) if affine else None
    outs = [standardize(weight, gain), standardize_many([weight], [gain])[0]]
    for out in outs:
        with pytest.raises(RuntimeError, match=WORDS):
            out.backward(torch.ones(1).expand(out.shape))
    assert leaf.grad is None and leaf.item() == 1


def test_the_raw_ops_say_what_failed():
    for call in (
        lambda w: OPS.forward(w, None, None, 0, *FORMULA, None),
        lambda w: OPS.backward(w, w, None, 0, *FORMULA),
        lambda w: OPS.backward_affine(w, w, None, 0, *FORMULA),
        lambda w: OPS.forward_many([w], [None], [None], [0], [*FORMULA], None),
        lambda w: OPS.backward_many([w], [w], [None], [0], [*FORMULA], True),
    ):
        with pytest.raises(RuntimeError, match="ws: PyTorch could not allocate a tensor") as error:
            call(petabyte())
        assert "site-packages" not in str(error.value)


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda path: path.name.split(".")[0])
def test_libraries_name_no_folder_of_the_machine_that_built_them(library):
    folders = rb"(?:/home|/root|/tmp|/work|/build|site-packages|dist-packages)/[ -~]*"
    found = set(re.findall(rb"[ -~]*" + folders, library.read_bytes()))
    found |= set(re.findall(rb"/[ -~]*/csrc/[ -~]*", library.read_bytes()))
    assert not found
