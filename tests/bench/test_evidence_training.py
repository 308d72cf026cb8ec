"""One run of the experiments: its training, its probes, its record."""

import copy
import itertools
import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
import torch_ws
from idx_files import random_parts, write_parts

from bench.evidence import panels
from bench.evidence import run as running
from bench.evidence.data import load
from bench.evidence.landscape import FACTORS, SHARES, Point, Probes
from bench.evidence.networks import convolutions, make
from bench.evidence.run import rounded, run
from bench.evidence.settings import Setting
from bench.evidence.training import BATCH, MOMENTUM, accuracy, batches, train

SHORT = Setting(steps=5)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return load(write_parts(tmp_path_factory.mktemp("images"), random_parts()))


def made(setting, dtype=torch.float32):
    return make(setting, 28, 10).to(dtype)


def test_batches_are_those_of_the_seed(data):
    """All images once before any comes again; half of them mirrored."""
    found = list(batches(data, Setting(steps=4)))
    again = list(batches(data, Setting(norm="bn", formula="paper", lr=1.0, steps=4)))
    other = next(batches(data, Setting(seed=1)))
    for (x, y), (x_again, y_again) in zip(found, again, strict=True):
        assert torch.equal(x, x_again) and torch.equal(y, y_again) and len(x) == BATCH
    assert not torch.equal(found[0][1], other[1])
    images = data.normalized(data.train.images)
    for first in (0, 2):  # an epoch is two batches
        x = torch.cat([found[first][0], found[first + 1][0]])
        same = (x[:, None] == images).flatten(2).all(2)
        mirrored = (x[:, None] == images.flip(-1)).flatten(2).all(2)
        assert torch.equal((same | mirrored).sum(0), torch.ones(64, dtype=torch.int64))
        assert 16 < mirrored.sum() < 48


def test_digits_are_not_mirrored(data):
    images = data.normalized(data.train.images)
    x, _ = next(batches(replace(data, mirrored=False), SHORT))
    assert (x[:, None] == images).flatten(2).all(2).sum() == BATCH


def plain_training(model, data, setting):
    """The same in a few lines: momentum, and the cosine, written out."""
    momentum = [torch.zeros_like(p) for p in model.parameters()]
    curve = []
    for step, (x, y) in enumerate(batches(data, setting)):
        loss = F.cross_entropy(model(x.double()), y)
        grads = torch.autograd.grad(loss, list(model.parameters()))
        lr = setting.lr * (1 + math.cos(math.pi * step / setting.steps)) / 2
        with torch.no_grad():
            for p, m, g in zip(model.parameters(), momentum, grads, strict=True):
                m.mul_(MOMENTUM).add_(g)
                p.sub_(lr * m)
        curve.append(loss.item())
    return curve


@pytest.mark.parametrize(
    "setting",
    [
        replace(SHORT, formula="paper"),
        replace(SHORT, norm="bn", micro_batch=2),
        replace(SHORT, norm="none", formula="nfnet", lr=0.03),
    ],
)
def test_training_is_sgd_with_momentum_and_a_cosine(setting, data):
    expected = plain_training(made(setting, torch.float64), data, setting)
    model = made(setting, torch.float64)
    found = train(model, setting, ((x.double(), y) for x, y in batches(data, setting)))
    assert found == pytest.approx(expected, rel=1e-9)


def test_estimates_move_with_each_micro_batch(data):
    """Held over the micro-batches, and the gradient is that of the whole batch's mean loss."""
    setting = replace(SHORT, norm="bcn_estimated", formula="paper", micro_batch=2, steps=1)
    one, other = made(setting, torch.float64), made(setting, torch.float64)
    x, y = next(batches(data, setting))
    before = copy.deepcopy(one.state_dict())
    train(one, setting, iter([(x.double(), y)]))
    for part, labels in zip(x.double().split(2), y.split(2), strict=True):
        (F.cross_entropy(other(part), labels) / 16).backward()
    for (name, p), q in zip(one.named_parameters(), other.parameters(), strict=True):
        expected = before[name] - setting.lr * q.grad
        torch.testing.assert_close(p, expected, rtol=1e-9, atol=1e-12)
    for a, b in zip(one.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(a, b)
    assert one[1].bn.num_batches_tracked == 16


def test_accuracy_is_of_the_first_test_images(data):
    class Labels(torch.nn.Module):
        def forward(self, x):
            rows = [int((image == images).flatten(1).all(1).nonzero()[0, 0]) for image in x]
            return F.one_hot((data.test.labels[rows] + wrong[rows]) % 10, 10)

    images = data.normalized(data.test.images)
    wrong = torch.zeros(64, dtype=torch.int64)
    wrong[10:30] = 1
    assert accuracy(Labels(), data, 40) == 20 / 40
    assert accuracy(Labels(), data, 5_000) == 44 / 64


def test_a_run_is_the_same_again_and_probes_do_not_change_it(data):
    setting = replace(SHORT, formula="paper", norm="bn", steps=2)
    found = run(setting, data)
    again = run(replace(setting, measures="landscape"), data)
    assert found["curve"] == again["curve"] and found["accuracy"] == again["accuracy"]
    assert found["loss"] == found["curve"][-1]  # the last quarter of 2 is one
    json.dumps(found, allow_nan=False)


def test_a_run_that_diverges_ends(data):
    found = run(replace(SHORT, norm="none", lr=1e12), data)
    assert found["diverged"] and len(found["curve"]) < SHORT.steps
    assert found["loss"] == pytest.approx(math.log(10), abs=1e-4)


def test_long_runs_are_tested_on_more_images(data, monkeypatch):
    counts = []
    monkeypatch.setattr(running, "accuracy", lambda model, data, count: counts.append(count) or 0.5)
    monkeypatch.setattr(running, "train", lambda *args: [1.0] * 1200)
    for steps in (200, 1200):
        run(Setting(steps=steps), data)
    assert counts == [5_000, 10_000]


def test_what_is_not_finite_is_stored_as_nothing():
    assert rounded({"a": [1.23456789, math.nan], "b": {"c": math.inf, "d": 3}}) == {
        "a": [1.2346, None],
        "b": {"c": None, "d": 3},
    }


# --- the landscape


@pytest.fixture(scope="module")
def batch(data):
    return data.normalized(data.train.images).double(), data.train.labels


@pytest.mark.parametrize("kind", ["shares", "raw"])
def test_steps_and_their_measures(kind, batch):
    """Against the definitions, on vectors of all weights."""
    setting, lr = Setting(), 0.1
    model = made(setting, torch.float64)
    weights = [module.weight for module in convolutions(model)]

    def loss_and_gradient():
        loss = F.cross_entropy(model(batch[0]), batch[1])
        return loss.item(), torch.autograd.grad(loss, weights)

    loss, gradient = loss_and_gradient()
    start = [w.detach().clone() for w in weights]
    found = Point(copy.deepcopy(model), batch).measured(lr)
    assert found["loss"] == pytest.approx(loss, rel=1e-12)
    units = [w.norm() if kind == "shares" else torch.ones(()) for w in start]

    def whole(tensors):
        return torch.cat([unit * t.flatten() for unit, t in zip(units, tensors, strict=True)])

    sizes = SHARES if kind == "shares" else FACTORS
    for size in sizes:
        if kind == "shares":
            moved = [
                w - size * w.norm() * g / g.norm() for w, g in zip(start, gradient, strict=True)
            ]
            length = size * len(start) ** 0.5
        else:
            moved = [w - size * lr * g for w, g in zip(start, gradient, strict=True)]
            length = size * lr * whole(gradient).norm()
        with torch.no_grad():
            for w, to in zip(weights, moved, strict=True):
                w.copy_(to)
        after_loss, after = loss_and_gradient()
        at = found[kind][f"{size:g}"]
        assert at["loss"] == pytest.approx(after_loss, rel=1e-9)
        cosine = F.cosine_similarity(whole(gradient), whole(after), dim=0).item()
        assert at["cosine"] == pytest.approx(cosine, rel=1e-7)
        beta = ((whole(after) - whole(gradient)).norm() / length).item()
        assert at["beta"] == pytest.approx(beta, rel=1e-7)
    if kind == "shares":
        assert found["gradient"] == pytest.approx(whole(gradient).norm().item(), rel=1e-9)


def test_a_point_leaves_the_weights_where_they_were(batch):
    model = made(Setting(formula="paper"), torch.float64)
    before = copy.deepcopy(model.state_dict())
    Point(model, batch).measured(0.1)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_the_same_point_is_the_same_function_with_two_parts_less(data):
    """Loss equal; and |G|^2 of the standardized is that of the folded less what is taken off."""
    setting = Setting(formula="bit")  # an eps of 1e-10 leaves w_hat as it is, to 1e-10
    model = made(setting, torch.float64)
    probes = Probes(data, setting)
    probes.batch = probes.batch[0].double(), probes.batch[1]
    before = copy.deepcopy(model.state_dict())
    found = probes.same_point(model)
    folded, standardized = found["folded"], found["standardized"]
    assert folded["loss"] == pytest.approx(standardized["loss"], rel=1e-9)
    left = 1 - found["removed_by_mean"] - found["removed_by_std"]
    expected = left * folded["gradient"] ** 2
    assert standardized["gradient"] ** 2 == pytest.approx(expected, rel=1e-7)
    assert 0 < found["removed_by_std"] < found["removed_by_mean"] < 1
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert isinstance(model[0], torch_ws.Standardized)


def test_probes_are_spread_over_the_steps(data):
    setting = Setting(formula="paper", steps=200)
    probes = Probes(data, setting)
    probes.own = probes.same_point = lambda model: {}
    for step in range(200):
        probes(step, None)
    assert [at["step"] for at in probes.found["own"]] == [0, 25, 50, 75, 100, 125, 150, 175]
    assert [at["step"] for at in probes.found["same_point"]] == [20, 60, 100, 140, 180]
    plain = Probes(data, replace(setting, formula=None))
    plain.own = lambda model: {}
    plain(20, None)
    assert plain.found["same_point"] == []


# --- weight similarity


def test_similarity_knows_the_task_from_the_weights_alone(data):
    """After so few steps only an order can be asked."""
    setting = Setting(formula="paper", measures="similarity", steps=30)
    found = run(setting, data)["similarity"]
    assert list(found) == ["same_task", "other_task", "untrained"]
    for values in found.values():
        assert len(values) == 4 and all(0 <= value <= 1 for value in values)
    assert sum(found["same_task"]) > sum(found["untrained"])


# --- the panels


def test_panels_compare_what_differs_in_standardization_alone():
    for comparison in itertools.chain.from_iterable(panel() for panel in panels.PANELS.values()):
        if comparison.what.startswith("GN") and "against" not in comparison.what:
            for a, b in zip(comparison.without, comparison.with_, strict=True):
                assert a.formula is None and b == replace(a, formula="paper")


def test_the_default_runs():
    default = [name for name in panels.PANELS if name != panels.LONG]
    found = panels.settings(panels.comparisons(default, 200), 5)
    assert len(found) == len({setting.key for setting in found}) == 160
    assert {setting.seed for setting in found} == set(range(5))
    assert found[0].effort == max(setting.effort for setting in found)
    long = panels.settings(panels.comparisons([panels.LONG], 100), 1)
    assert {setting.steps for setting in long} == {600}
