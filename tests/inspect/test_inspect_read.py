"""What torch_ws.inspect reads: formats, folders, indexes, and nothing that could run code."""

import argparse
import json
import pickle
import re
import zipfile
from collections import OrderedDict
from contextlib import ExitStack
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import nn
from torch_ws.inspect.read import KEYS, Unreadable, open_checkpoint

safetensors = pytest.importorskip("safetensors.torch")

STATE = OrderedDict([("z.weight", torch.randn(2, 3, 3)), ("a.bias", torch.randn(2))])


def read(path, key=None):
    with ExitStack() as files:
        checkpoint = open_checkpoint(path, key, files)
        whole = {
            name: stored.block(0, 0, stored.shape[0]).clone()
            for name, stored in checkpoint.tensors.items()
        }
    return checkpoint, whole


def test_safetensors_in_natural_order(tmp_path):
    names = ["blocks.10.weight", "blocks.2.weight", "a²1.weight", "10.weight", "9.weight", "weight"]
    tensors = {name: torch.randn(2, 3, dtype=torch.bfloat16) for name in names}
    safetensors.save_file(tensors, tmp_path / "w.safetensors")
    checkpoint, found = read(tmp_path / "w.safetensors")
    assert list(found) == [names[i] for i in (4, 3, 2, 1, 0, 5)]
    assert checkpoint.tensors["weight"].dtype == "bfloat16"
    assert checkpoint.tensors["weight"].bytes == 12
    assert all(torch.equal(found[name], tensors[name]) for name in names)


@pytest.mark.parametrize(
    "length",
    # which in the file's first bytes read as a pickle's, as a zip archive's, and as gzip's
    [0x80, 0x4B50, 0x8B1F],
)
def test_safetensors_that_begin_like_other_formats(tmp_path, length):
    entry = {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]}
    header = json.dumps({"w.weight": entry}).ljust(length).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + header + torch.ones(2).numpy().tobytes())
    assert read(path)[1]["w.weight"].tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("key", [None, *KEYS])
@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_torch_save(tmp_path, key, zipped):
    found = STATE if key is None else {"epoch": 3, "optimizer": {"state": {}}, key: STATE}
    path = tmp_path / "w.anything"  # the name says nothing
    torch.save(found, path, _use_new_zipfile_serialization=zipped)
    checkpoint, tensors = read(path)
    assert list(tensors) == list(STATE)  # in the order of the model
    assert all(torch.equal(tensors[name], STATE[name]) for name in STATE)
    assert checkpoint.what.endswith(
        f"key {key!r}"
        if key
        else "1.6, read into memory as a whole"
        if not zipped
        else "torch.save"
    )


def test_averaged_weights_only_by_key(tmp_path):
    path = tmp_path / "w.pt"
    averaged = {"z.weight": torch.zeros(2, 3, 3)}
    torch.save({"model_ema": averaged, "state_dict": STATE, 7: averaged}, path)
    assert list(read(path)[1]) == list(STATE)
    for key in ("model_ema", "7"):
        checkpoint, tensors = read(path, key)
        assert list(tensors) == ["z.weight"] and repr(key) in checkpoint.what


def test_strides_of_torch_save_are_kept(tmp_path):
    weight = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)
    torch.save({"w.weight": nn.Parameter(weight)}, tmp_path / "w.pt")
    with ExitStack() as files:
        stored = open_checkpoint(tmp_path / "w.pt", None, files).tensors["w.weight"]
        for dim, block in ((0, weight[1:3]), (1, weight[:, 1:3])):
            assert torch.equal(stored.block(dim, 1, 3), block)
            assert not stored.block(dim, 1, 3).requires_grad


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])  # Hugging Face's two
def test_sharded(tmp_path, suffix):
    shards = [f"model-0000{i}-of-00002.{suffix}" for i in (1, 2)]
    save = safetensors.save_file if suffix == "safetensors" else torch.save
    tensors = {f"l.{i}.weight": torch.randn(2, 3) for i in range(3)}
    save(
        {"l.0.weight": tensors["l.0.weight"], "l.2.weight": tensors["l.2.weight"]},
        tmp_path / shards[1],
    )
    save({"l.1.weight": tensors["l.1.weight"]}, tmp_path / shards[0])
    index = {"weight_map": {f"l.{i}.weight": shards[i != 1] for i in (2, 1, 0)}}
    path = tmp_path / f"model.{suffix}.index.json"
    path.write_text(json.dumps(index))
    for where in (path, tmp_path):  # the file, or the folder
        checkpoint, found = read(where)
        assert checkpoint.path == path and checkpoint.what == "index of 2 files"
        assert list(found) == list(tensors)
        assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_folder_with_one_file(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    torch.save(STATE, tmp_path / "training.pt")
    assert read(tmp_path)[0].path.name == "training.pt"
    safetensors.save_file(STATE, tmp_path / "model.safetensors")  # preferred
    assert read(tmp_path)[0].path.name == "model.safetensors"


def test_nothing_from_a_pickle_is_run(tmp_path):
    class Run:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    for zipped in (True, False):
        torch.save({"a": Run()}, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
        with pytest.raises(
            Unreadable, match="open and not only tensors: loading that could run code"
        ):
            read(tmp_path / "w.pt")
    assert not (tmp_path / "ran").exists()


def in_the_spelling_of(numpy_version, path):
    """The file as another NumPy writes it: its module is numpy.core in 1.x, numpy._core in 2.x."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = b"cnumpy.core.multiarray" if numpy_version == 1 else b"cnumpy._core.multiarray"
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members.items():
            if member.endswith("data.pkl"):
                content = re.sub(rb"cnumpy\._?core\.multiarray", name, content)
            archive.writestr(member, content)


@pytest.mark.parametrize("numpy_version", [1, 2])
def test_numpys_values_beside_the_weights(tmp_path, numpy_version):
    """As nnU-Net's logs and mmcv's meta have them; nothing of NumPy is called for them."""
    path = tmp_path / "w.pt"
    beside = {
        "logging": {"train_losses": [np.float64(0.3), np.float32(0.2)], "lr": [np.float64(1e-2)]},
        "meta": {"iter": np.int64(7), "best": np.bool_(True), "name": np.str_("x")},
        "confusion": np.zeros((2, 2)),
        "names": np.array(["a", None], dtype=object),
        np.int64(3): "a key",
    }
    torch.save({"state_dict": STATE, **beside}, path)
    in_the_spelling_of(numpy_version, path)
    before = set(torch.serialization.get_safe_globals())
    with patch.object(np, "dtype", pytest.fail):
        checkpoint, found = read(path)
    assert set(torch.serialization.get_safe_globals()) == before  # also of the process
    assert checkpoint.what == "torch.save, key 'state_dict'"
    assert all(torch.equal(found[name], STATE[name]) for name in STATE)


def test_other_things_of_numpy_are_refused(tmp_path):
    torch.save({"state_dict": STATE, "rng": np.random.RandomState(0)}, tmp_path / "w.pt")
    message = refusal(tmp_path / "w.pt")
    assert "numpy.random" in message and "dtype" not in message and "scalar" not in message


# --- what cannot be read: in one line, whatever it is


def refusal(path, key=None):
    with pytest.raises(Unreadable) as raised:
        read(path, key)
    message = str(raised.value)
    assert message.startswith(str(path)) and "\n" not in message
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize("kind", ["safetensors", "zip", "old"])
def test_a_file_cut_off_anywhere(tmp_path, kind):
    path = tmp_path / "w"
    if kind == "safetensors":
        safetensors.save_file(STATE, path)
    else:
        torch.save(STATE, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    for size in {*range(0, 70, 7), *range(70, len(whole), 61), len(whole) - 1}:
        path.write_bytes(whole[:size])
        refusal(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_classes_are_named(tmp_path, zipped):
    found = {"state_dict": STATE, "args": argparse.Namespace(lr=0.1)}
    torch.save(found, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    message = refusal(tmp_path / "w.pt")
    assert message.startswith("holds argparse.Namespace and not only tensors")
    assert "save its state dict alone" in message


def test_whole_modules_are_named(tmp_path):
    torch.save(nn.Conv2d(3, 4, 3), tmp_path / "w.pt")
    assert "holds torch.nn.modules.conv.Conv2d and not only" in refusal(tmp_path / "w.pt")


def test_torchscript(tmp_path):
    torch.jit.script(nn.Conv2d(3, 4, 3)).save(str(tmp_path / "w.pt"))
    assert "is a TorchScript archive" in refusal(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"GGUF" + bytes(60), "is a GGUF file"),
        (b"\x89HDF\r\n\x1a\n" + bytes(60), "is an HDF5 file"),
        (b"\x1f\x8b\x08\x00" + bytes(60), "is compressed with gzip"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "is neither a safetensors file nor one of torch.save"),
        (bytes(8) + b"{" + bytes(60), "is damaged or incomplete"),  # a header of length 0
        (b"PK\x03\x04" + bytes(60), "is damaged or incomplete"),
        (pickle.dumps({"a": 1}, protocol=2), "cannot be loaded"),
        (pickle.dumps({"a": 1}, protocol=4), "cannot be loaded"),
    ],
)
def test_other_files(tmp_path, content, message):
    (tmp_path / "w.safetensors").write_bytes(content)
    assert refusal(tmp_path / "w.safetensors").startswith(message)


def test_zip_archives_of_others(tmp_path):
    np.savez(tmp_path / "w.npz", a=np.zeros(3))
    assert "not of torch.save but .npz" in refusal(tmp_path / "w.npz")


@pytest.mark.parametrize(
    ("found", "key", "message"),
    [
        (torch.zeros(3), None, "holds a Tensor, not a state dict"),
        ([STATE], None, "holds a list, not a state dict"),
        ({"epoch": 3}, None, "the keys of state dicts in it are none"),
        ({"g": STATE, "d": STATE}, None, "the keys of state dicts in it are g, d"),
        ({"state_dict": STATE}, "model", "no state dict under 'model'; the keys"),
    ],
)
def test_no_state_dict(tmp_path, found, key, message):
    torch.save(found, tmp_path / "w.pt")
    assert message in refusal(tmp_path / "w.pt", key)


def test_safetensors_have_no_keys(tmp_path):
    safetensors.save_file(STATE, tmp_path / "w.safetensors")
    assert "safetensors have no keys" in refusal(tmp_path / "w.safetensors", "model")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not JSON", "no weight_map"),
        ("{}", "no weight_map"),
        ('{"weight_map": [1]}', "no weight_map"),
        ('{"weight_map": {"a": "nowhere.bin"}}', "names nowhere.bin, which is not there"),
        ('{"weight_map": {"a": "w.pt"}}', "names 'a', which w.pt does not have"),
    ],
)
def test_broken_indexes(tmp_path, content, message):
    torch.save(STATE, tmp_path / "w.pt")
    (tmp_path / "model.index.json").write_text(content)
    assert message in refusal(tmp_path / "model.index.json")


def test_an_index_that_names_itself(tmp_path):
    path = tmp_path / "model.index.json"
    path.write_text('{"weight_map": {"a": "model.index.json"}}')
    assert "is neither a safetensors file" in refusal(path)


def test_missing(tmp_path):
    assert refusal(tmp_path / "nowhere.pt") == "there is no such file"


def test_folders(tmp_path):
    (tmp_path / "README.md").write_text("")
    assert refusal(tmp_path).startswith("has no checkpoint: no *.index.json, *.safetensors, *.pt")
    for name in ("b.pth", "a.pt"):
        torch.save(STATE, tmp_path / name)
    assert refusal(tmp_path) == "has several checkpoints, give one: a.pt, b.pth"
