"""State dicts on disk, whole models pickled, and what loads them without a GPU or torch_ws."""

import other_process
import pytest
import torch
from architectures import ARCHITECTURES, build
from conversions import converted, quietly
from safetensors.torch import load_file, load_model, save_file, save_model

OPTIONS = {"formula": "timm_nfnet", "gain": True, "shift": True}


def other(name):
    """The same architecture with other values."""
    model, _ = build(name)
    return quietly(model, linear=True, **OPTIONS)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_torch_save_loads_with_weights_only(name, tmp_path):
    model, x, expected = converted(name)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    loaded = other(name)
    loaded.load_state_dict(state)
    with torch.no_grad():
        assert torch.equal(loaded(x), expected)
    assign = other(name)  # the loaded tensors themselves become the parameters
    assign.load_state_dict(state, assign=True)
    with torch.no_grad():
        assert torch.equal(assign(x), expected)


# "tied" shares a tensor between two names, which save_file refuses for every model
@pytest.mark.parametrize("name", [n for n in ARCHITECTURES if n != "tied"])
def test_safetensors(name, tmp_path):
    model, x, expected = converted(name)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    loaded = other(name)
    loaded.load_state_dict(load_file(tmp_path / "model.safetensors"))
    with torch.no_grad():
        assert torch.equal(loaded(x), expected)


def test_safetensors_with_a_tied_weight(tmp_path):
    model, x, expected = converted("tied")
    save_model(model, str(tmp_path / "model.safetensors"))
    loaded = other("tied")
    assert load_model(loaded, str(tmp_path / "model.safetensors")) == (set(), [])
    with torch.no_grad():
        assert torch.equal(loaded(x), expected)


CODE = """
import sys, torch, torch_ws
model, x, expected = torch.load(sys.argv[1], weights_only=False)
with torch.no_grad():
    assert torch.equal(model(x), expected)
assert {p.device.type for p in model.parameters()} == {"cpu"}
"""


@pytest.mark.slow
@pytest.mark.parametrize("grouped", [False, True])  # whose class is made at run time
def test_a_whole_model_loads_in_a_process_without_a_gpu(grouped, tmp_path):
    torch.save(converted("unet 2-d", grouped), tmp_path / "model.pt")
    other_process.run(CODE, tmp_path / "model.pt")
