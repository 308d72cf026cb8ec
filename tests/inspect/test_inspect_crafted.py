"""torch_ws.inspect and files made to harm it: one line on stderr and exit status 2, at once."""

import json
import os
import struct
import zipfile

import pytest
import torch
from inspections import refused, run
from torch_ws.inspect.command import LONGEST, main

safetensors = pytest.importorskip("safetensors.torch")
pytest.importorskip("rich")


# --- what is no regular file


def pipe(path):
    os.mkfifo(path)


def link_to_a_pipe(path):
    os.mkfifo(path.with_suffix(".pipe"))
    path.symlink_to(path.with_suffix(".pipe"))


def link_to_a_device(path):
    path.symlink_to("/dev/zero")


def folder(path):
    path.mkdir()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
@pytest.mark.parametrize("where", ["alone", "in a folder", "a shard", "an index"])
@pytest.mark.parametrize("make", [pipe, link_to_a_pipe, link_to_a_device, folder])
def test_only_regular_files_are_opened(tmp_path, capsys, make, where):
    path = tmp_path / ("w.index.json" if where == "an index" else "w.pt")
    make(path)
    given = path
    if where == "in a folder":
        given = tmp_path
    elif where == "a shard":
        given = tmp_path / "model.index.json"
        given.write_text('{"weight_map": {"a.weight": "w.pt"}}')
    if make is folder and where in ("alone", "an index"):
        assert "has no checkpoint" in refused(given, capsys)  # it is looked into
    else:
        assert ", not a file\n" in refused(given, capsys)


# --- sizes that no file can have


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("weight", "sharing"),
    [
        (torch.ones(1).expand(2**20, 2**10, 2**10), "all"),  # 4 TiB
        (torch.ones(1).expand(1, 1, 2**40), "one channel"),  # whose scratch memory alone is 8 TiB
        (torch.ones(2**10).as_strided((2**30, 8, 8), (0, 8, 1)), "channels"),
        (torch.ones(2**10).as_strided((2**9, 2**9, 1), (1, 1, 1)), "windows"),  # 256 times each
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_tensors_larger_than_their_file(tmp_path, capsys, weight, sharing, zipped):
    path = tmp_path / "w.pt"
    state = {"w.weight": weight}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    assert path.stat().st_size < 10_000
    assert "no layers found; 1 expanded, larger than the file: w.weight" in refused(path, capsys)
    state["ok.weight"] = torch.randn(3, 3, 3)  # others are shown
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    assert main([str(path)]) == 0
    assert "left out: 1 expanded, larger than the file: w.weight\n" in capsys.readouterr().out


def test_an_expanded_tensor_that_the_file_is_large_enough_for(tmp_path, capsys):
    """As a blur's kernel that all channels share, beside its network's weights."""
    kernel = torch.randn(1, 1, 3, 3)
    state = {"blur.weight": kernel.expand(8, 1, 3, 3), "other": torch.zeros(1000)}
    torch.save(state, tmp_path / "w.pt")
    found = tmp_path / "found.json"
    assert main([str(tmp_path / "w.pt"), "--json", str(found)]) == 0
    (layer,) = json.loads(found.read_text())["layers"]
    assert layer["std"] == pytest.approx(kernel.double().std(correction=0).item(), rel=1e-12)


def test_tensors_that_overlap(tmp_path, capsys):
    storage = torch.randn(40_000)
    state = {f"{i}.weight": storage[i : i + 30_000].view(100, 100, 3) for i in range(7)}
    torch.save(state, tmp_path / "w.pt")
    assert "has tensors that overlap, together 4 times its size" in refused(
        tmp_path / "w.pt", capsys
    )
    torch.save(dict(list(state.items())[:4]), tmp_path / "w.pt")  # a few may
    assert main([str(tmp_path / "w.pt")]) == 0


def test_a_tensor_with_many_names_is_read_once(tmp_path, monkeypatch, capsys):
    """Tied weights, as many as there are: not the same tensor again for each."""
    blocks = []
    narrow = torch.Tensor.narrow

    def count(tensor, *arguments):
        blocks.append(tensor.shape)
        return narrow(tensor, *arguments)

    weight = torch.randn(20, 30, 3)
    state = {f"{i}.weight": weight.detach() for i in range(50)}  # as state_dict() has them
    torch.save(state, tmp_path / "w.pt")
    monkeypatch.setattr(torch.Tensor, "narrow", count)
    found = tmp_path / "found.json"
    assert main([str(tmp_path / "w.pt"), "--json", str(found)]) == 0
    assert len(blocks) == 1
    layers = json.loads(found.read_text())["layers"]
    assert [layer["name"] for layer in layers] == list(state)
    assert len({layer["std"] for layer in layers}) == 1


def test_more_dimensions_than_pytorch_has(tmp_path, capsys):
    entry = {"dtype": "F32", "shape": [1] * 65, "data_offsets": [0, 4]}
    header = json.dumps({"w.weight": entry}).encode()
    (tmp_path / "w").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    assert "1 of more than 64 dimensions: w.weight" in refused(tmp_path / "w", capsys)


def test_compressed_archives(tmp_path, capsys):
    """The weights would be read from compressed bytes; and a pickle of 1 MB can become 1 GB."""
    torch.save({"w.weight": torch.ones(3, 3, 3)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "w.pt", "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for name in plain.namelist():
            archive.writestr(name, plain.read(name))
    assert "is compressed, which torch.save's archives are not" in refused(
        tmp_path / "w.pt", capsys
    )


# --- names


def test_numbers_in_names_of_any_length(tmp_path, capsys):
    names = ["2.weight", "010.weight", "1" + "0" * 5000 + ".weight", "2" + "0" * 5000 + ".weight"]
    state = {name: torch.randn(2, 3, 3) for name in reversed(names)}
    safetensors.save_file(state, tmp_path / "w.safetensors")
    found = tmp_path / "found.json"
    assert main([str(tmp_path / "w.safetensors"), "--json", str(found)]) == 0
    assert [layer["name"] for layer in json.loads(found.read_text())["layers"]] == names
    tables = capsys.readouterr().out.partition("4 layers with")[0]
    assert max(map(len, tables.splitlines())) < 1200  # the names are folded


@pytest.mark.slow
def test_names_that_no_encoding_has(tmp_path):
    torch.save({"a\ud800\x1b[2J.weight": torch.randn(2, 3, 3)}, tmp_path / "w.pt")
    done = run(tmp_path / "w.pt", PYTHONIOENCODING="ascii", COLUMNS="20")
    assert (done.returncode, done.stderr) == (0, "")
    assert "a??[2J.weight" in done.stdout


def test_names_that_are_the_same_in_print(tmp_path, capsys):
    state = {f"a{char}.weight": torch.randn(2, 3, 3) for char in "\x07\x1b"}
    torch.save(state, tmp_path / "w.pt")
    assert "has names that differ only in what cannot be printed" in refused(
        tmp_path / "w.pt", capsys
    )


def test_errors_are_short(tmp_path, capsys):
    torch.save({"a" * 10**6: torch.zeros(3)}, tmp_path / "w.pt")
    assert len(refused(tmp_path / "w.pt", capsys)) < LONGEST + 100


# --- indexes


@pytest.mark.parametrize(
    "content",
    [
        '{"weight_map": ' + "[" * 100_000 + "]" * 100_000 + "}",  # deeper than Python's stack
        '{"a":' * 100_000 + "1" + "}" * 100_000,
        '{"weight_map": {"a": ' + "9" * 10_000 + "}}",  # more digits than int() takes
        '{"weight_map": null}',
        '{"weight_map": NaN}',
        b"\xff\xfe",
    ],
    ids=["deep list", "deep map", "digits", "null", "NaN", "no UTF-8"],
)
def test_indexes_that_are_none(tmp_path, capsys, content):
    path = tmp_path / "model.index.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert "is no index of a sharded checkpoint: no weight_map" in refused(path, capsys)


@pytest.mark.parametrize("shard", ["a\0b", "\ud800", "", "..", "b\x1b[31m\n", ["w.pt"], None, 7])
def test_shards_that_are_none(tmp_path, capsys, shard):
    torch.save({"a.weight": torch.ones(2, 3, 3)}, tmp_path / "w.pt")
    (tmp_path / "model.index.json").write_text(json.dumps({"weight_map": {"a.weight": shard}}))
    message = refused(tmp_path / "model.index.json", capsys)
    assert "which is not there" in message or "is a folder, not a file" in message


def test_a_shard_is_opened_once_however_it_is_spelled(tmp_path, monkeypatch, capsys):
    loads = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **k: loads.append(a) or load(*a, **k))
    torch.save({f"{i}.weight": torch.ones(2, 3, 3) for i in range(9)}, tmp_path / "w.pt")
    where = {f"{i}.weight": "./" * i + "w.pt" for i in range(9)}
    (tmp_path / "model.index.json").write_text(json.dumps({"weight_map": where}))
    assert main([str(tmp_path / "model.index.json")]) == 0
    assert len(loads) == 1
