"""``python -m torch_ws.inspect``: the files that it writes, and what it refuses in one line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch_ws
from inspections import damaged, run, save
from torch_ws import formulas
from torch_ws.inspect import channel_statistics
from torch_ws.inspect.command import main

safetensors = pytest.importorskip("safetensors.torch")
pytest.importorskip("rich")

PACKAGE = Path(torch_ws.__file__).parent


# --- files


def test_json_has_everything(tmp_path):
    path = tmp_path / "found.json"
    checkpoint = damaged(tmp_path)
    assert main([checkpoint, "--json", str(path), "--formula", "paper", "--dead", "1e-3"]) == 0
    found = json.loads(path.read_text(), parse_constant=pytest.fail)  # no NaN: null
    assert (found["schema"], found["checkpoint"], found["format"]) == (1, checkpoint, "safetensors")
    assert found["dead_below"] == 1e-3
    assert list(found["formulas"]) == list(formulas)
    assert found["formulas"]["timm"]["eps"] == 1e-6
    assert set(found["left_out"]) == {"none.weight", "quantized.weight", "small.weight"}
    bad, dead, one = found["layers"]
    assert (bad["nan"], bad["inf"], bad["nan_or_inf_channels"]) == (2, 1, [3, 5])
    assert (dead["dead_channels"], dead["constant_channels"]) == ([1, 4], [1])
    weight = safetensors.load_file(checkpoint)["dead.weight"]
    mean, std, _, _ = channel_statistics(weight)
    alive = torch.tensor([0, 2, 3, 5, 6, 7, 8, 9])
    ordered = std[alive].sort().values.tolist()
    assert dead["channel_std"]["min"] == ordered[0] and dead["channel_std"]["max"] == ordered[-1]
    assert dead["channel_std"]["median"] == pytest.approx((ordered[3] + ordered[4]) / 2)
    ratios = (mean / std)[alive]
    assert dead["channel_mean_over_std"]["max"] == ratios.max()
    assert list(dead["deviation"]) == list(formulas)  # whatever --formula says
    for value in (one["channel_std"], one["condition"], one["deviation"]["qiao"]):
        assert value is None


def test_picture(tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    weights = {f"{i}__weight": torch.randn(8, 4, 3) * 0.1 + 0.01 for i in range(20)}
    path, picture = save(tmp_path, **weights), tmp_path / "found.png"
    assert main([path, "--plot", str(picture), "--formula", "nfnet", "timm"]) == 0
    pixels = torch.from_numpy(imread(picture)[..., :3])
    assert pixels[0, 0].tolist() == [1, 1, 1]
    drawn = (pixels != 1).any(2)
    assert 0.01 < drawn.float().mean() < 0.3
    # The three panels lie side by side; before is blue and after vermilion in the first two.
    blue, vermilion = torch.tensor([[0x00, 0x72, 0xB2], [0xD5, 0x5E, 0x00]]) / 255
    width = pixels.shape[1]
    for panel in (pixels[:, width // 10 : width // 3], pixels[:, width * 2 // 5 : width * 2 // 3]):
        for color in (blue, vermilion):
            assert ((panel - color).abs().amax(2) < 0.02).sum() > 20
    assert not drawn[:, -2:].any() and not drawn[:, :2].any()  # nothing is cut off


def test_picture_of_nothing(tmp_path):
    """Logarithmic axes without a value, and a name that would be a formula to Matplotlib."""
    pytest.importorskip("matplotlib")
    picture = tmp_path / "found.png"
    path = save(tmp_path, **{r"$\nowhere$__weight": torch.ones(3, 1, 1)})
    assert main([path, "--plot", str(picture), "--formula", "qiao"]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("count", [1, 60, 300])  # one line, a usual network, more than have names
def test_pictures_of_few_and_many_layers(tmp_path, count):
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    weights = {f"stage{i}__conv__weight": torch.randn(3, 2, 2) for i in range(count)}
    picture = tmp_path / "found.png"
    assert main([save(tmp_path, **weights), "--plot", str(picture)]) == 0
    height, width, _ = imread(picture).shape
    assert width == 1320
    assert height == round(110 * (1.9 + 0.17 * min(max(count, 6), 130)))


# --- what it refuses


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no layers found; 1 2-d (--linear adds them): a.weight; other tensors (1): b.bias"),
        (["--include", "b.*"], "no layers found; other tensors (2): a.weight, b.bias"),  # 1-d
        (["--linear", "--exclude", "*"], "no layers found; other tensors (2)"),
        (["--include", "c*"], "--include 'c*' matches no tensor"),
        (["--exclude", "c*"], "--exclude 'c*' matches no tensor"),
        (["--linear", "--transposed", "c*"], "--transposed 'c*' matches no tensor"),
        (["--key", "model"], "safetensors have no keys to choose from"),
    ],
)
def test_nothing_to_show(tmp_path, capsys, arguments, message):
    path = save(tmp_path, a__weight=torch.randn(3, 3), b__bias=torch.randn(3))
    assert main([path, *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith(f"python -m torch_ws.inspect: error: {path}: {message}")


def test_only_quantized_weights(tmp_path, capsys):
    path = save(tmp_path, a__weight=torch.zeros(3, 3, 3, dtype=torch.int8))
    assert main([path]) == 2
    assert "no layers found; 1 I8, not floating-point: a.weight\n" in capsys.readouterr().err


@pytest.mark.slow
def test_unreadable_file_in_a_process_of_its_own(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"\x08" + bytes(7) + b"{}      and more")
    for path in (tmp_path / "w.safetensors", tmp_path / "nowhere"):
        done = run(path, "--json", tmp_path / "found.json")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.count("\n") == 1
        assert done.stderr.startswith(f"python -m torch_ws.inspect: error: {path}: ")
    assert not (tmp_path / "found.json").exists()


def test_no_permission(tmp_path, monkeypatch, capsys):
    path = save(tmp_path, a__weight=torch.randn(3, 3, 3))

    def refuse(self, *arguments):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    assert main([path]) == 2
    assert capsys.readouterr().err.endswith(f"error: [Errno 13] Permission denied: '{path}'\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--formula ours", "argument --formula: invalid choice: 'ours'"),
        ("--sort size", "argument --sort: invalid choice"),
        ("--dead 1", "argument --dead: invalid"),
        ("--dead nan", "argument --dead: invalid"),
        ("--json /nowhere/found.json", "argument --json: there is no folder /nowhere"),
        ("--json .", "argument --json: . cannot be written"),
        ("--json w.safetensors", "argument --json: w.safetensors should end in .json"),
        ("--json w.index.json", "argument --json: w.index.json should end in .json, and not in"),
        ("--plot found.svg", "argument --plot: found.svg should end in .png"),
        ("--include", "argument --include: expected at least one argument"),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["nowhere.pt", *arguments.split()])
    out, err = capsys.readouterr()
    assert stopped.value.code == 2 and out == ""
    assert message in err.splitlines()[-1]


@pytest.mark.parametrize("missing", ["rich", "safetensors", "matplotlib"])
def test_without_what_it_needs(tmp_path, monkeypatch, capsys, missing):
    path = save(tmp_path, a__weight=torch.randn(3, 3, 3))
    monkeypatch.setitem(sys.modules, missing, None)  # and what has imported it before:
    monkeypatch.delitem(sys.modules, "torch_ws.inspect.report", raising=False)
    monkeypatch.delattr(torch_ws.inspect, "report", raising=False)
    try:
        status = main([path, "--plot", str(tmp_path / "found.png")])
    except SystemExit as stopped:  # a wrong argument
        status = stopped.code
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert missing in err.splitlines()[-1]
    assert err.endswith("pip install 'torch-ws[inspect]'\n")


def test_importing_torch_ws_takes_none_of_it():
    script = """
import sys
sys.path.insert(0, "")
import torch_ws
names = ("rich", "matplotlib", "safetensors", "torch_ws.inspect", "torch_ws.inspect.read")
print([name for name in names if name in sys.modules])
import inspect
print(inspect.__name__, hasattr(inspect, "signature"))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\ninspect True\n"


def test_it_is_not_pythons_own_inspect():
    command = [sys.executable, "-c", "import dataclasses"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PACKAGE)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "hides Python's own inspect" in done.stderr
    assert "python -m torch_ws.inspect" in done.stderr
