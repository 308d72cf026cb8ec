"""``python -m torch_ws.inspect A --compare B``: similarities of the chosen tensors, or one line."""

import copy
import json
import re

import pytest
import torch
import torch_ws
from conversions import quietly
from inspections import refused, run
from torch import nn
from torch_ws.inspect import compare
from torch_ws.inspect.command import main

safetensors = pytest.importorskip("safetensors.torch")
pytest.importorskip("rich")


def network(width=8, seed=0):
    """A sequence with more layers than ten, whose order a name's text does not have."""
    torch.manual_seed(seed)
    first = [nn.Conv2d(3, width, 3), nn.GroupNorm(2, width), nn.ConvTranspose2d(width, 6, 2, 2)]
    rest = [m for _ in range(4) for m in (nn.Conv2d(6, 6, 3), nn.ReLU())]
    return nn.Sequential(*first, *rest, nn.Flatten(), nn.Linear(6 * 4, 5))


def saved(path, model):
    """As safetensors, which keep no order, or by torch.save."""
    save = safetensors.save_file if path.suffix == ".safetensors" else torch.save
    save(model.state_dict(), path)
    return str(path)


CHOSEN = ("--linear", "--transposed", "2.weight")


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
@pytest.mark.parametrize("formula", ["paper", "nfnet"])  # the default, and a scale by the fan-in
def test_what_weight_similarity_gives(tmp_path, capsys, ending, formula):
    models = [network(), network(width=12, seed=1)]
    a, b = (saved(tmp_path / f"{i}.{ending}", model) for i, model in enumerate(models))
    found = tmp_path / "found.json"
    options = [*CHOSEN, "--json", str(found), "--formula", formula, "qiao"]
    assert main([a, "--compare", b, *options]) == 0

    stored = torch_ws.weight_similarity(*models)
    standardizing = [quietly(m, formula, linear=True) for m in copy.deepcopy(models)]
    standardized = torch_ws.weight_similarity(*standardizing)
    comparison = json.loads(found.read_text())["comparison"]
    assert (comparison["checkpoint"], comparison["formula"]) == (b, formula)
    rows = comparison["layers"]
    names = [name for name, p in models[0].named_parameters() if p.dim() > 1]
    assert [row["name"] for row in rows] == [row["other"] for row in rows] == names
    assert [row["stored"] for row in rows] == pytest.approx(stored, rel=1e-12)
    assert [row["standardized"] for row in rows] == pytest.approx(standardized, rel=1e-5)

    table = capsys.readouterr().out.partition(f"weights to those of {b}")[2].splitlines()
    assert table[2].split() == ["as", "standardized"]
    assert table[3].split() == ["layer", "stored", "by", formula]
    for line, name, *values in zip(table[5:], names, stored, standardized, strict=False):
        assert line.split() == [name, *(f"{value:.3g}" for value in values)]


@pytest.mark.slow
def test_the_command_and_names_that_differ(tmp_path):
    model = network()
    a = saved(tmp_path / "a.pt", model)
    b = saved(tmp_path / "b.safetensors", nn.Sequential(model))
    done = run(a, "--compare", b, "--transposed", "*2.weight")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^ 9.weight / 0.9.weight +1 +1$", done.stdout, re.MULTILINE)


def test_a_formula_that_is_undefined_and_what_is_not_finite(tmp_path, capsys):
    tensors = {"a.weight": torch.randn(3, 2, 3), "b.weight": torch.randn(4, 3, 3)}
    tensors["c.weight"] = torch.randn(5, 4, 1)
    tensors["b.weight"][0, 0, 0] = torch.nan
    narrow = {"a.weight": torch.randn(3, 1, 1), "b.weight": torch.randn(2, 3, 1)}
    for name, state in (("nan.pt", tensors), ("narrow.pt", narrow)):
        torch.save(state, tmp_path / name)
    found = tmp_path / "found.json"

    def values(name, key):
        path = str(tmp_path / name)
        assert main([path, "--compare", path, "--formula", "qiao", "--json", str(found)]) == 0
        rows = json.loads(found.read_text())["comparison"]["layers"]
        assert re.search(r"^ b.weight +\S+ +-$", capsys.readouterr().out, re.MULTILINE)
        return [row[key] for row in rows]

    assert values("nan.pt", "stored") == [pytest.approx(1.0), None, None]
    assert values("narrow.pt", "stored") == pytest.approx([1.0, 1.0])
    assert values("narrow.pt", "standardized") == [None, None]  # no sample variance of one element


WEIGHTS = {"a.weight": torch.randn(4, 3, 3, 3), "b.weight": torch.randn(5, 4, 3, 3)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # as a ResNet's projection beside its block
        ({"side.weight": torch.randn(5, 4, 1, 1)}, "side.weight takes 4 channels, and b.weight"),
        # of two groups
        ({"c.weight": torch.randn(6, 5, 3, 3), "d.weight": torch.randn(6, 3, 3, 3)}, "d.weight ta"),
        (
            {"b.weight": torch.randn(5, 4, 5, 5)},
            "b.weight must have equal kernels, got",
        ),
        ({"a.weight": torch.randn(4, 1, 3, 3)}, "a.weight must take as many input channels"),
        ({"c.weight": torch.randn(2, 5, 1, 1)}, "got 2 up to b.weight and 3 up to c.weight"),
    ],
)
def test_what_is_no_chain_is_said_in_a_line(tmp_path, capsys, monkeypatch, changes, message):
    """Before the tensors are read."""
    a, b = tmp_path / "a.pt", tmp_path / "b.pt"
    torch.save(WEIGHTS, a)
    torch.save({**WEIGHTS, **changes}, b)
    monkeypatch.setattr(torch.Tensor, "narrow", None)
    line = refused(a, capsys, "--compare", str(b))
    assert message in line and str(b) in line
    assert "--include and --exclude choose one" in line


def test_include_and_exclude_choose_a_chain(tmp_path, capsys):
    """Of both checkpoints alike."""
    a, b = tmp_path / "a.pt", tmp_path / "b.pt"
    torch.save({**WEIGHTS, "side.weight": torch.randn(5, 3, 1, 1)}, a)
    torch.save({**WEIGHTS, "side.weight": torch.randn(5, 3, 1, 1)}, b)
    assert main([str(a), "--compare", str(b), "--exclude", "side.*"]) == 0
    assert main([str(a), "--compare", str(b), "--include", "a.*", "b.*"]) == 0
    assert "side" not in capsys.readouterr().out.rpartition("similarity")[2]
    torch.save(WEIGHTS, b)
    line = refused(a, capsys, "--compare", str(b), "--exclude", "side.*")
    assert f"{b}: --exclude 'side.*' matches no tensor" in line


def test_the_other_checkpoint_is_opened_as_carefully(tmp_path, capsys):
    a, b = tmp_path / "a.pt", tmp_path / "b.pt"
    torch.save(WEIGHTS, a)
    assert f"{b}: there is no such file" in refused(a, capsys, "--compare", str(b))
    b.write_bytes(b"\x89HDF\r\n")
    assert f"{b}: is an HDF5 file" in refused(a, capsys, "--compare", str(b))
    torch.save({"w.weight": torch.ones(1).expand(2**20, 2**10, 2**10)}, b)
    assert f"{b}: no layers found" in refused(a, capsys, "--compare", str(b))


def test_matrices_of_channels_are_bounded(tmp_path, capsys):
    """A file of 64 kB can have so many channels that their products take all memory."""
    path = tmp_path / "w.pt"
    torch.save({"w.weight": torch.ones(compare.MOST_CHANNELS + 1, 1, 1)}, path)
    line = refused(path, capsys, "--compare", str(path))
    assert f"w.weight has more than {compare.MOST_CHANNELS} output channels" in line


def test_many_positions_of_one_channel(tmp_path, capsys):
    """Taken together, and not one by one."""
    path = tmp_path / "w.pt"
    torch.save({"w.weight": torch.ones(1, 1, 2**22)}, path)
    assert main([str(path), "--compare", str(path)]) == 0
    assert re.search(r"^ w.weight +1 +0$", capsys.readouterr().out, re.MULTILINE)


def test_names_are_printable(tmp_path, capsys):
    a, b = tmp_path / "a.pt", tmp_path / "[red]b.pt"
    torch.save({"[red]a\x1b[2J.weight": torch.randn(2, 3, 3)}, a)
    torch.save({"[red]b\x1b[2J.weight": torch.randn(4, 3, 3)}, b)
    assert main([str(a), "--compare", str(b)]) == 0
    out = capsys.readouterr().out
    assert "those of " + str(b) in out
    assert re.search(r"^ \[red\]a\?\[2J.weight / \[red\]b\?\[2J.weight ", out, re.MULTILINE)
