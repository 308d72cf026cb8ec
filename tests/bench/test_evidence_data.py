"""The images of the experiments: where they are looked for, what is read, what is refused."""

import gzip
import sys
import types

import numpy as np
import pytest
import torch
from idx_files import idx, random_parts, write_parts

from bench.evidence import data
from bench.evidence.data import FILES, NotFound, find, get, load

TRAIN_IMAGES = f"{FILES['train images'][0]}.gz"


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """No Fashion-MNIST in the usual places."""
    for name in ("PACKAGE", "KERAS"):
        monkeypatch.setattr(data, name, tmp_path / name)
    monkeypatch.delenv(data.VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("compressed", [True, False])  # as they are published; unpacked
def test_reads_what_was_written(compressed, tmp_path):
    parts = random_parts()
    found = load(write_parts(tmp_path, parts, compressed))
    for which, split in (("train", found.train), ("test", found.test)):
        assert torch.equal(split.images, parts[f"{which} images"])
        assert torch.equal(split.labels, parts[f"{which} labels"].long())
    assert found.side == 28 and set(found.hashes) == set(FILES)


def test_other_images_are_a_warning(tmp_path):
    folder = write_parts(tmp_path, random_parts())
    warnings = load(folder).warnings
    assert len(warnings) == 4
    assert warnings[0].startswith(f"{folder / TRAIN_IMAGES}: not Fashion-MNIST as published: ")


def test_normalized_pixels_have_mean_0_and_variance_1(tmp_path):
    found = load(write_parts(tmp_path, random_parts()))
    x = found.normalized(found.train.images)
    assert x.shape == (64, 1, 28, 28) and x.dtype == torch.float32
    assert abs(x.mean()) < 1e-5 and abs(x.std() - 1) < 1e-5


@pytest.mark.parametrize(
    ("place", "below"),
    [
        ("given", "."),
        ("given", data.TORCHVISION),  # the root that is given to torchvision
        ("variable", "."),
        ("PACKAGE", "."),
        ("data", data.TORCHVISION),  # where torchvision's examples put it
        ("KERAS", "."),
    ],
)
def test_places(place, below, nowhere, monkeypatch):
    folder = write_parts(nowhere / place / below, random_parts())
    if place == "variable":
        monkeypatch.setenv(data.VARIABLE, str(nowhere / place))
    found = find(nowhere / place if place == "given" else None)
    assert found.resolve() == folder.resolve()


def test_what_is_given_is_the_only_place(nowhere):
    write_parts(nowhere / "PACKAGE", random_parts())
    with pytest.raises(NotFound, match=r"not found in .*elsewhere\. On Debian"):
        find(nowhere / "elsewhere")


def test_not_found_says_where_and_how(nowhere, monkeypatch):
    monkeypatch.setenv(data.VARIABLE, "some/folder")
    with pytest.raises(NotFound) as error:
        get(None)
    assert "Fashion-MNIST not found in some/folder, " in str(error.value)
    assert "apt-get install dataset-fashion-mnist" in str(error.value)


def test_missing_files_are_named(nowhere):
    folder = write_parts(nowhere / "given", random_parts())
    (folder / TRAIN_IMAGES).unlink()
    with pytest.raises(NotFound, match=r"given has no train-images-idx3-ubyte \(or \.gz\)\."):
        find(folder)


def with_one_class_too_many(parts):
    parts["test labels"][3] = 10


def with_a_label_less(parts):
    parts["train labels"] = parts["train labels"][1:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_one_class_too_many, "test labels must be below 10, got 10"),
        (with_a_label_less, "has 64 train images, but 63 labels"),
        (lambda parts: parts.update(random_parts(side=32)), "must be 28x28, got 32x32"),
        (lambda parts: parts.update(random_parts(count=0)), "is empty"),
    ],
)
def test_parts_that_do_not_fit(change, message, tmp_path):
    parts = random_parts()
    change(parts)
    with pytest.raises(NotFound, match=message):
        load(write_parts(tmp_path, parts))


GOOD = idx(random_parts()["train images"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(GOOD)[:-500], "is damaged or incomplete"),  # truncated
        (gzip.compress(GOOD)[:200] + gzip.compress(GOOD)[300:], "is damaged or incomplete"),
        (GOOD, "is damaged or incomplete"),  # not compressed
        (b"", "is not an idx file of 3-dimensional bytes"),
        (gzip.compress(b"<!DOCTYPE html>"), "is not an idx file of 3-dimensional bytes"),
        (gzip.compress(idx(torch.zeros(4, dtype=torch.uint8))), "is not an idx file"),  # labels
        (gzip.compress(GOOD[:-1]), "has 50175 bytes where its head says 64x28x28"),
    ],
)
def test_damaged_files(content, message, tmp_path):
    folder = write_parts(tmp_path, random_parts())
    (folder / TRAIN_IMAGES).write_bytes(content)
    with pytest.raises(NotFound, match=message) as error:
        load(folder)
    assert str(folder / TRAIN_IMAGES) in str(error.value) and "\n" not in str(error.value)


def test_digits(monkeypatch):
    """With a stand-in for scikit-learn, which tests do not need."""
    images = np.arange(1797)[:, None, None] % 17 * np.ones((1, 8, 8))  # pixels are 0 to 16
    found = types.SimpleNamespace(images=images, target=np.arange(1797) % 17 % 10)
    module = types.SimpleNamespace(load_digits=lambda: found)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", module)
    digits = get("digits")
    assert len(digits.train.images) == 1500 and len(digits.test.images) == 297
    assert digits.side == 8 and not digits.mirrored  # a mirrored 2 is none
    for split in (digits.train, digits.test):  # pixels and labels were shuffled alike
        value = (split.images[:, 0, 0].float() * 16 / 255).round().long()
        assert torch.equal(value % 10, split.labels)


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(NotFound, match="pip install scikit-learn"):
        get("digits")
