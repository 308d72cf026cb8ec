"""``python -m torch_ws.inspect``: what it prints of real files."""

import json
import re

import pytest
import torch
from architectures import build
from inspections import damaged, run, save
from torch import nn
from torch_ws.inspect.command import FORMULAS, main

safetensors = pytest.importorskip("safetensors.torch")
pytest.importorskip("rich")


@pytest.fixture
def resnet(tmp_path):
    model, _ = build("resnet")
    path = tmp_path / "resnet.safetensors"
    safetensors.save_file(model.state_dict(), path)
    return path, model


def rows(out, name):
    """The cells of a layer's lines: in the table of channels, and in that of formulas."""
    return [line.split() for line in out.splitlines() if line.split()[:1] == [name]]


@pytest.mark.slow
def test_the_command(resnet):
    path, model = resnet
    done = run(path, COLUMNS="40")  # of no terminal: nothing is folded or cut
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert all(line == line.rstrip() for line in done.stdout.splitlines())
    convolutions = {
        f"{name}.weight": layer.weight
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d)
    }
    for name, weight in convolutions.items():
        channels, deviations = rows(done.stdout, name)
        std, mean = torch.std_mean(weight.double(), (1, 2, 3), correction=0)
        expected = (
            *(
                "float32",
                "×".join(map(str, weight.shape)),
                str(len(weight)),
                str(weight[0].numel()),
            ),
            *(weight.double().mean(), weight.double().std(correction=0), std.min(), std.max()),
            *(std.max() / std.min(), (mean / std).abs().max(), "0"),
        )
        for cell, value in zip(channels[1:], expected, strict=True):
            assert cell == (value if isinstance(value, str) else f"{value.item():.3g}")
        assert len(deviations) == 1 + len(FORMULAS)
        paper = (1e-5 / (std + 1e-5)).max().item()
        assert deviations[1] == f"{100 * paper:.2g}%"
    lines = done.stdout.splitlines()
    assert lines[0] == f"{path} (safetensors)"
    elements = sum(weight.numel() for weight in convolutions.values())
    everything = sum(tensor.numel() for tensor in model.state_dict().values())
    assert f"{len(convolutions)} layers with {elements:,} of {everything:,} values" in done.stdout
    assert lines[-1] == "left out: 1 2-d (--linear adds them): 3.weight"


@pytest.mark.slow
def test_a_terminal_gets_a_bar_and_the_columns_that_fit(resnet):
    path, _ = resnet
    done = run(path, FORCE_COLOR="1", COLUMNS="90")
    assert done.returncode == 0
    assert "reading" in done.stderr and "kB" in done.stderr
    out = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
    table = out[out.index("channels\n") : out.index("deviation from")]
    assert max(map(len, table.splitlines())) <= 90 and "…" not in table
    header, first = (line.split() for line in table.splitlines() if re.search("layer|0.0.w", line))
    assert header == ["layer", "shape", "std", "std", "std", "tion", "/", "std", "dead"]
    assert first[:2] == ["0.0.weight", "8×3×7×7"] and len(first) == 8


def test_the_work_for_a_table_grows_with_its_layers(tmp_path, monkeypatch, capsys):
    """Thousands of layers: a cell is measured for its column's width and when it is filled up."""
    from torch_ws.inspect import table

    def calls(layers):
        count = 0

        def cell_len(text):
            nonlocal count
            count += 1
            return len(text)

        monkeypatch.setattr(table, "cell_len", cell_len)
        weights = {f"{i}__weight": torch.randn(2, 2, 2) for i in range(layers)}
        assert main([save(tmp_path, **weights)]) == 0
        return count

    cells = 20  # of a layer, in both tables
    assert calls(300) - calls(200) <= 100 * cells * 2


@pytest.mark.slow
def test_a_name_too_long_for_a_terminal_is_folded(tmp_path):
    path = save(tmp_path, **{"x" * 100 + "__weight": torch.randn(3, 3, 3)})
    done = run(path, FORCE_COLOR="1", COLUMNS="80")
    out = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
    table = out[out.index("channels\n") : out.index("deviation from")]
    assert max(map(len, table.splitlines())) <= 80
    assert "".join(re.findall("x+", table)) == "x" * 100


def test_linear_layers_and_patterns(tmp_path, capsys):
    path = save(
        tmp_path,
        conv__weight=torch.randn(4, 3, 3),
        head__weight=torch.randn(5, 6),
        rnn__weight_hh_l0_reverse=torch.randn(8, 2),
        attention__in_proj_weight=torch.randn(9, 3),
        pruned__weight_orig=torch.randn(2, 3, 3),
        normed__weight_v=torch.randn(2, 3, 3),
        normed__weight_g=torch.randn(2, 1, 1),  # its magnitude
        ours__parametrizations__weight__original=torch.randn(2, 3, 3),
        theirs__parametrizations__weight__original0=torch.randn(2, 1, 1),  # its magnitude
        theirs__parametrizations__weight__original1=torch.randn(2, 3, 3),
        norm__weight=torch.randn(4),
        table=torch.randn(7, 3, 3),
    )

    def layers(*arguments):
        assert main([path, *arguments]) == 0
        table = capsys.readouterr().out.partition("deviation")[0]
        return {line.split()[0] for line in table.splitlines() if "float32" in line}

    convolutions = {
        "conv.weight",
        "pruned.weight_orig",
        "normed.weight_v",
        "ours.parametrizations.weight.original",
        "theirs.parametrizations.weight.original1",
    }
    linear = {"head.weight", "rnn.weight_hh_l0_reverse", "attention.in_proj_weight"}
    assert layers() == convolutions
    assert layers("--linear") == convolutions | linear
    assert layers("--include", "tab*", "head.*") == {"table", "head.weight"}
    assert layers("--include", "tab*", "--include", "head.*") == {"table", "head.weight"}
    assert layers("--linear", "--exclude", "*.parametrizations.*", "p*", "n*") == {
        "conv.weight",
        *linear,
    }


def test_transposed_convolutions(tmp_path, capsys):
    weight = torch.randn(6, 4, 3, 3)
    weight[:, 2] *= 10
    path = save(tmp_path, up__weight=weight, down__weight=weight.clone())
    found = tmp_path / "found.json"
    assert main([path, "--transposed", "up.*", "--json", str(found)]) == 0
    down, up = json.loads(found.read_text())["layers"]
    assert (down["channels"], down["fan_in"], down["channel_dim"]) == (6, 36, 0)
    assert (up["channels"], up["fan_in"], up["channel_dim"]) == (4, 54, 1)
    std = weight.double().std((0, 2, 3), correction=0)
    assert up["condition"] == pytest.approx((std.max() / std.min()).item(), rel=1e-12)
    out = capsys.readouterr().out
    assert "6×4×3×3 transposed" in out and " 6×4×3×3 " in out


def test_what_is_wrong_is_said(tmp_path, capsys):
    assert main([damaged(tmp_path), "--formula", "qiao", "timm"]) == 0
    out = capsys.readouterr().out
    assert [row[-1] for row in rows(out, "bad.weight")[:1]] == ["3"]  # NaN and Inf
    assert rows(out, "dead.weight")[0][-3:] == ["2", "(20%)", "0"]
    assert rows(out, "one.weight")[0][-6:] == ["-", "-", "-", "8", "(100%)", "0"]
    assert rows(out, "one.weight")[1][1:] == ["-", "-"]
    lines = out.splitlines()
    assert "bad.weight: 2 NaN and 1 Inf in 2 of 64 channels, which count nowhere else" in lines
    assert "dead.weight: 1 of 10 channels are constant: standardized, 0" in lines
    expected = "one element a channel: standardized, the weight is 0; no qiao: the sample variance"
    assert f"one.weight: {expected} needs N > 1" in lines
    assert "82 channels, 10 dead; 2 with NaN or Inf; largest condition" in out
    left_out = "1 empty: none.weight; 1 I8, not floating-point: quantized.weight; "
    assert lines[-1] == f"left out: {left_out}1 F8_E4M3, scaled by another tensor: small.weight"


def test_markup_and_control_characters_in_names(tmp_path, capsys):
    path = tmp_path / "w.pt"
    torch.save(
        {"[red]a[/].weight": torch.randn(2, 3, 3), "b\x1b[2J\n.weight": torch.ones(2, 3, 3)}, path
    )
    assert main([str(path)]) == 0
    out = capsys.readouterr().out
    assert "[red]a[/].weight" in out and "b?[2J?.weight: 2 of 2 channels are constant" in out


def test_sorted(tmp_path, capsys):
    weights = {f"{name}__weight": torch.randn(4, 3, 3) for name in "abcd"}
    weights["b__weight"][0] *= 50  # the largest condition
    weights["c__weight"][:2] = 1.0  # the most dead channels
    weights["d__weight"][:] = 0.0  # all, and so no condition
    path = save(tmp_path, **weights)

    def order(*arguments):
        assert main([path, *arguments]) == 0
        out = capsys.readouterr().out
        return [line[1] for line in out.splitlines() if "float32" in line]

    assert order() == ["a", "b", "c", "d"]
    assert order("--sort", "dead")[:2] == ["d", "c"]
    by_condition = order("--sort", "condition")
    assert (by_condition[0], by_condition[-1]) == ("b", "d")


def test_dead_threshold(tmp_path, capsys):
    weight = torch.randn(4, 3, 3)
    weight[0] *= 1e-3
    path = save(tmp_path, a__weight=weight)
    for threshold, dead in (("1e-4", "0"), ("0.1", "(25%)")):
        assert main([path, "--dead", threshold]) == 0
        assert rows(capsys.readouterr().out, "a.weight")[0][-1] == dead
