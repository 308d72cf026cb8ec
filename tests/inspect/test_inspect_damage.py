"""torch_ws.inspect and damaged or crafted files: whatever a reader does then, it is one line."""

import json
import pickle
import random
import signal
import sys
import zipfile

import pytest
import torch
from inspections import refused, run
from torch_ws.inspect import limits
from torch_ws.inspect.command import main

safetensors = pytest.importorskip("safetensors.torch")
pytest.importorskip("rich")

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of Linux")


def save_pickle(path, pickled, **members):
    """An archive of torch.save around a pickle, with no storages but those given."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {"data.pkl": pickled, "version": "3\n", **members}.items():
            archive.writestr(f"archive/{name}", content)
    return path


GLOBAL = b"ccollections\nOrderedDict\n"


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b".",  # a list in a list in ...
        b"\x80\x02}q\x01(X\x01\x00\x00\x00ah\x01u.",  # a dict that has itself
        b"\x80\x02" + GLOBAL + b")R}(X\x05\x00\x00\x00itemsK\x03ub.",  # whose items() is 3
        b"\x80\x02" + GLOBAL + b")R}(X\x06\x00\x00\x00valuesK\x03ub.",
        b"\x80\x02h\x05.",  # what was not stored
        b"\x80\x02R.",
        b"\x80\x02X\x02\x00\x00\x00\xff\xfe.",  # no UTF-8
        b"\x80\x02(X\x07\x00\x00\x00storageK\x03tQ.",
        b"\x80\x02cnumpy\ndtype\n)R.",  # NumPy's, and no state dict
        b"",
    ],
)
def test_odd_pickles(tmp_path, capsys, pickled):
    refused(save_pickle(tmp_path / "w.pt", pickled), capsys)


@linux
@pytest.mark.parametrize("zipped", [True, False])
def test_memory_is_bounded(tmp_path, capsys, zipped):
    """A bytearray of 64 GiB, which is filled with 0 when it is made."""
    torch.save({"w.weight": torch.ones(2, 3, 3)}, tmp_path / "w.pt")
    huge = b"}(X\x01\x00\x00\x00acbuiltins\nbytearray\n(\x8a\x05\x00\x00\x00\x00\x10tRu."
    if zipped:
        path = save_pickle(tmp_path / "w.pt", b"\x80\x02" + huge)
    else:
        path = tmp_path / "w.pt"
        torch.save({}, path, _use_new_zipfile_serialization=False)
        head = path.read_bytes().partition(pickle.dumps({}, protocol=2))[0]
        path.write_bytes(head + b"\x80\x02" + huge)
    assert "cannot be loaded: MemoryError" in refused(path, capsys)


@pytest.mark.slow
@linux
def test_a_reader_that_crashes(tmp_path):
    """Tuple in tuple, a million deep, as a key: their hash overflows the stack of the process."""
    key = b")" + b"\x85" * 10**6
    path = save_pickle(tmp_path / "w.pt", b"\x80\x02}(" + key + b"Nu.")
    done = run(path)
    assert (done.returncode, done.stdout) == (2, "")
    message = f"{path}: cannot be read: its reader was ended by SIGSEGV"
    assert done.stderr == f"python -m torch_ws.inspect: error: {message}\n"
    torch.save({"w.weight": torch.ones(2, 3, 3)}, tmp_path / "other.pt")
    assert f"other.pt or {message}" in run(tmp_path / "other.pt", "--compare", path).stderr


@linux
def test_a_reader_that_does_not_end(tmp_path, monkeypatch):
    """A tuple that has itself before twice, 60 times over: hashing it takes 2^60 steps."""
    key = b")q\x00" + b"h\x00h\x00\x86q\x00" * 60
    path = save_pickle(tmp_path / "w.pt", b"\x80\x02}(" + key + b"Nu.")
    monkeypatch.setattr(limits, "SECONDS", 0.5)
    assert limits.in_a_process(lambda: main([str(path)])) == -signal.SIGXCPU


@linux
@pytest.mark.parametrize("status", [0, 2])
def test_limits_end_with_the_reading(status):
    import resource

    before = [resource.getrlimit(what) for what in (resource.RLIMIT_CPU, resource.RLIMIT_DATA)]
    with limits.limits(10**6):
        limited = [resource.getrlimit(what) for what in (resource.RLIMIT_CPU, resource.RLIMIT_DATA)]
    assert all(0 < soft < 2**40 for soft, hard in limited)
    after = [resource.getrlimit(what) for what in (resource.RLIMIT_CPU, resource.RLIMIT_DATA)]
    assert after == before
    assert limits.in_a_process(lambda: status) == status


def test_any_error_of_a_reader_is_one_line(tmp_path, monkeypatch, capsys):
    torch.save({"w.weight": torch.ones(2, 3, 3)}, tmp_path / "w.pt")

    def fail(*arguments, **options):
        raise AssertionError("first\nsecond")

    with monkeypatch.context() as patched:
        patched.setattr(torch, "load", fail)
        message = f"{tmp_path / 'w.pt'}: cannot be loaded: AssertionError: first\n"
        assert refused(tmp_path / "w.pt", capsys).endswith(f"error: {message}")
    monkeypatch.setattr(torch.Tensor, "narrow", fail)  # also later, when it is read
    assert refused(tmp_path / "w.pt", capsys).endswith(f"error: {message}")


# --- damage of all kinds, at random


def damage(content, chosen):
    content = bytearray(content)
    for _ in range(chosen.choice([1, 1, 2, 8])):
        at = chosen.randrange(len(content))
        kind = chosen.choice(["bit", "byte", "cut", "number", "repeat", "remove"])
        if kind == "bit":
            content[at] ^= 1 << chosen.randrange(8)
        elif kind == "byte":
            content[at] = chosen.randrange(256)
        elif kind == "cut":
            del content[at + 1 :]
        elif kind == "number":
            content[at : at + 4] = chosen.choice([b"\xff" * 4, bytes(4), b"\xff\xff\xff\x7f"])
        elif kind == "repeat":
            content[at:at] = content[at // 2 : at // 2 + 20]
        elif kind == "remove" and at:
            del content[at : at + 10]
    return bytes(content)


@pytest.mark.parametrize("kind", ["safetensors", "zip", "old", "index"])
@pytest.mark.parametrize("seed", range(40))
def test_damaged_files(tmp_path, capsys, kind, seed):
    state = {"a.weight": torch.randn(2, 3, 3), "b.weight": torch.randn(2, 2, 2).half()}
    safetensors.save_file(state, tmp_path / "shard")
    path = tmp_path / ("w.index.json" if kind == "index" else "w")
    if kind == "safetensors":
        safetensors.save_file(state, path)
    elif kind == "index":
        path.write_text(json.dumps({"weight_map": dict.fromkeys(state, "shard")}))
    else:
        torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=kind == "zip")
    path.write_bytes(damage(path.read_bytes(), random.Random(seed)))
    status = main([str(path)])
    out, err = capsys.readouterr()
    if status == 0:  # the damage was to values, or to nothing that is read
        assert err == "" and "layers with" in out
    else:
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert err.startswith(f"python -m torch_ws.inspect: error: {tmp_path}")
