"""examples/train.py: resumed, folded, in micro-batches, on folders of images; what it refuses."""

import importlib.util

import pytest
import torch
import torch_ws
from example_programs import NO_PEERS, PEERS, run_example
from idx_files import random_parts, write_parts

from examples import train

SHORT = ["--epochs", "3", "--batch", "16", "--workers", "0", "--lr", "0.05"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_parts(tmp_path_factory.mktemp("images"), random_parts())


@pytest.fixture
def run(images, tmp_path, monkeypatch, capsys):
    """Runs it on the images with a folder's name for --out; gives the losses and the folder."""
    monkeypatch.setenv("FASHION_MNIST", str(images))

    def run(name, *arguments):
        train.main([*SHORT, "--out", str(tmp_path / name), *arguments])
        lines = capsys.readouterr().out.splitlines()
        epochs = [line.replace(",", "").split() for line in lines if line.startswith("epoch")]
        return [float(line[3]) for line in epochs], tmp_path / name

    return run


def load(path):
    return torch.load(path, weights_only=True)


def equal(a, b):
    """Of nested states, to the last bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def test_resumed_is_as_if_nothing_had_happened(run, monkeypatch, capsys):
    losses, whole = run("whole")
    assert losses[-1] < 0.7 * losses[0]
    evaluate, calls = train.evaluate, []

    def killed_in_the_last_epoch(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return evaluate(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "evaluate", killed_in_the_last_epoch)
        run("stopped")
    assert capsys.readouterr().out.count("epoch") == 2
    rest, stopped = run("stopped", "--resume")
    assert rest == losses[2:]
    assert equal(load(stopped / "last.pt"), load(whole / "last.pt"))
    assert equal(load(stopped / "plain.pt"), load(whole / "plain.pt"))


def test_plain_weights_are_the_best_ones_standardized(run):
    _, out = run("run")
    best, plain = load(out / "best.pt"), load(out / "plain.pt")
    assert best.keys() == plain.keys() == train.make_small(10).state_dict().keys()
    for name, weight in best.items():
        expected = torch_ws.reference.standardize(weight) if weight.dim() == 4 else weight
        torch.testing.assert_close(plain[name], expected, rtol=1e-5, atol=1e-5)


def test_micro_batches_add_up_to_the_batch(run):
    """GN has no statistics of a batch, so the losses differ by rounding alone."""
    losses, _ = run("whole")
    of_one, _ = run("ones", "--micro-batch", "1")
    assert of_one == pytest.approx(losses, abs=2e-3)


def test_without_ws_and_with_autocast(run, monkeypatch):
    fused = []
    monkeypatch.setattr(torch_ws, "fuse", lambda *args: fused.append(args))
    losses, out = run("plain", "--no-ws", "--bf16")
    assert losses[-1] < losses[0] and fused == []
    assert equal(load(out / "plain.pt"), load(out / "best.pt"))


def test_weight_decay_is_of_what_has_a_direction(run, monkeypatch):
    fuse, fused = torch_ws.fuse, []
    monkeypatch.setattr(torch_ws, "fuse", lambda *args: fused.append(args[1]) or fuse(*args))
    run("run")
    decayed, others = fused[0].param_groups
    assert decayed["weight_decay"] == 1e-4 and {p.dim() for p in decayed["params"]} == {2, 4}
    assert others["weight_decay"] == 0 and {p.dim() for p in others["params"]} == {1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--micro-batch", "5"], "--micro-batch must divide --batch 16, got 5"),
        (["--epochs", "0"], "--epochs must be at least 1"),
        (["--lr", "nan"], "--lr must be positive"),
        (["--seed", "-1"], "--seed a number from 0 on"),
        (["--limit", "8"], "8 training images are fewer than --batch"),
        (["--resume"], "--resume: there is no"),
    ],
)
def test_refuses(arguments, message, run, tmp_path, capsys):
    with pytest.raises(SystemExit) as status:
        run("run", *arguments)
    assert status.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run" / "last.pt").exists()


def test_a_loss_that_is_not_finite_ends_the_run(run, capsys):
    with pytest.raises(SystemExit) as status:
        run("run", "--lr", "1e9")
    assert status.value.code == 2
    assert "the loss is not finite any more: try a lower --lr" in capsys.readouterr().err


def test_a_run_is_not_written_over_nor_continued_otherwise(run, capsys):
    _, out = run("run")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for arguments, message in (
        ([], "has a run: --resume goes on with it"),
        (["--resume", "--lr", "0.2", "--no-ws"], "had another ws, lr"),
    ):
        with pytest.raises(SystemExit) as status:
            run("run", *arguments)
        assert status.value.code == 2 and message in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="it is there")
def test_a_folder_without_torchvision(tmp_path, capsys):
    with pytest.raises(SystemExit) as status:
        train.main([str(tmp_path), "--out", str(tmp_path / "run")])
    assert status.value.code == 2
    assert "DATA needs torchvision (No module named" in capsys.readouterr().err


# --- with torchvision, on folders of images


def draw_folder(root, classes=("dark", "light"), count=12):
    """Pictures of noise, those of a class about one brightness."""
    image = pytest.importorskip("PIL.Image")
    generator = torch.Generator().manual_seed(0)
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(count):
            size = (40 + i, 50, 3)  # not all of one size
            pixels = torch.randint(0, 60, size, generator=generator) + 150 * number
            image.fromarray(pixels.to(torch.uint8).numpy()).save(root / name / f"{i}.png")
    return root


pictured = [
    pytest.mark.slow,
    pytest.mark.skipif(not PEERS.exists(), reason=NO_PEERS),
]


class TestFolders:
    pytestmark = pictured
    options = ("--size", 32, "--batch", 8, "--micro-batch", 2, "--workers", 0, "--lr", 0.02)

    def losses(self, *arguments):
        lines = run_example("train.py", *arguments, *self.options, peers=True)
        assert lines[-1].endswith("plain torch.nn layers, the same outputs")
        return [float(line.split()[3].rstrip(",")) for line in lines[:-1]]

    def test_a_split_folder_and_a_resnet_18(self, tmp_path):
        draw_folder(tmp_path / "images" / "train")
        draw_folder(tmp_path / "images" / "val", count=4)
        losses = self.losses(tmp_path / "images", "--out", tmp_path / "run", "--epochs", 4)
        assert losses[-1] < losses[0]
        assert load(tmp_path / "run" / "last.pt")["best"] > 0.7

    def test_a_folder_that_is_split_here_and_a_network_of_timm(self, tmp_path):
        draw_folder(tmp_path / "images")
        model = ("--model", "timm:test_resnet")
        losses = self.losses(tmp_path / "images", "--out", tmp_path / "run", "--epochs", 2, *model)
        assert len(losses) == 2

    @pytest.mark.parametrize(
        ("model", "message"),
        [
            ("timm:no_such", "--model timm:no_such: timm has no such model"),
            ("vgg11", "--model vgg11: its normalization is not ours to choose"),
        ],
    )
    def test_refuses_models(self, model, message, tmp_path, images):
        arguments = ("--out", tmp_path / "run", "--model", model)
        errors = run_example(
            "train.py", *arguments, peers=True, status=2, FASHION_MNIST=str(images)
        )
        assert message in errors[-1]
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(
        ("classes", "message"),
        [
            (("light",), "must have two classes or more, got light"),
            ((), "Couldn't find any class folder"),  # torchvision's words
        ],
    )
    def test_refuses(self, classes, message, tmp_path):
        root = tmp_path / "images"
        root.mkdir()
        draw_folder(root, classes)
        arguments = (root, "--out", tmp_path / "run")
        errors = run_example("train.py", *arguments, peers=True, status=2)
        assert message in errors[-1]
        assert not (tmp_path / "run").exists()
