"""``python -m bench step``: its networks, variants, checks and memory. Never its timings."""

import functools

import pytest
import torch
import torch_ws
from torch import nn

from bench.common.optimizers import CLIPS
from bench.step import checks as step_checks
from bench.step.measure import prepare
from bench.step.memory import allocated_bytes
from bench.step.networks import NETWORKS, ResNet50, UNet
from bench.step.variants import (
    FormulaConv2d,
    Settings,
    Trainer,
    Variant,
    make_data,
    variants,
)
from bench.weights.workloads import model_shapes

TINY = NETWORKS["tiny"]


def convolutions(model):
    return [module for module in model.modules() if isinstance(module, nn.Conv2d)]


def data(count=2, settings=None):
    return make_data(TINY, 2, 8, count, settings or Settings())


def take_gradients(trainer):
    found = {name: p.grad.clone() for name, p in trainer.model.named_parameters()}
    trainer.optimizer.zero_grad()
    return found


def judge(settings=None, count=2):
    settings = settings or Settings()
    return step_checks.Judge(TINY, data(count, settings), settings)


# --- the networks


def test_resnet50_is_resnet50():
    with torch.device("meta"):
        model = ResNet50()
    found = convolutions(model)
    assert [tuple(conv.weight.shape) for conv in found] == model_shapes("resnet50")
    assert len(found) == 53
    assert sum(conv.weight.numel() for conv in found) == 23_454_912
    # torchvision's resnet50: its BatchNorms have as many parameters as these GroupNorms
    assert sum(parameter.numel() for parameter in model.parameters()) == 25_557_032
    norms = [module for module in model.modules() if isinstance(module, nn.GroupNorm)]
    assert [norm.num_groups for norm in norms] == 53 * [32]
    assert model(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, 1000)


def test_resnet50_divides_the_image_by_32():
    sizes = []
    with torch.device("meta"):
        model = ResNet50()
    model.blocks.register_forward_hook(lambda module, args, out: sizes.append(out.shape))
    model(torch.empty(1, 3, 64, 64, device="meta"))
    assert sizes == [(1, 2048, 2, 2)]


def test_unet_is_a_unet():
    model = UNet()
    shapes = [tuple(conv.weight.shape[:2]) for conv in convolutions(model)]
    down = [(32, 3), (32, 32), (64, 32), (64, 64), (128, 64), (128, 128), (256, 128), (256, 256)]
    up = [(128, 384), (128, 128), (64, 192), (64, 64), (32, 96), (32, 32)]  # below and skip
    assert shapes == [*down, *up, (4, 32)]
    # a change of one pixel reaches every output through the deepest level
    x = torch.randn(1, 3, 16, 16)
    changed = x.clone()
    changed[0, :, 0, 0] += 1
    assert ((model(x) != model(changed)).any(1)).all()


def test_same_modules_and_weights_in_every_variant():
    states = {name: variant.build(TINY).state_dict() for name, variant in variants().items()}
    for name, state in states.items():
        assert list(state) == list(states["plain"]), name
        assert all(torch.equal(state[key], states["plain"][key]) for key in state), name


@pytest.mark.parametrize(("name", "count"), [("plain", 0), ("formula", 6), ("layer", 6)])
def test_all_but_the_head_are_standardized(name, count):
    model = variants()[name].build(TINY)
    found = [m for m in model.modules() if isinstance(m, (torch_ws.WSConv2d, FormulaConv2d))]
    assert len(found) == count and model.head not in found


# --- the variants


@pytest.mark.parametrize("name", ["layer", "grouped", "held", "fused"])
def test_computes_what_the_formula_does(name, monkeypatch):
    """In float64, where nothing hides: outputs of the layers, and all gradients."""
    convert = torch_ws.convert
    monkeypatch.setattr(torch_ws, "convert", functools.partial(convert, formula="qiao"))
    gradients = {}
    for variant in (variants()["formula"], variants()[name]):
        trainer = Trainer(variant, TINY, Settings())
        trainer.model.double()
        trainer.accumulate([(images.double(), labels) for images, labels in data()])
        gradients[variant.name] = take_gradients(trainer)
    for key, expected in gradients["formula"].items():
        torch.testing.assert_close(gradients[name][key], expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", variants())
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"autocast": True},
        {"channels_last": True},
        {"autocast": True, "channels_last": True, "clip": "agc"},  # stored in another layout
        {"optimizer": "adamw", "clip": "norm"},
        {"optimizer": "adamw", "clip": "agc"},
    ],
    ids=lambda options: "-".join(map(str, options.values())) or "plain",
)
def test_check_accepts(name, options):
    check = judge(Settings(**options)).check(variants()[name])
    assert check.passed and 0 < check.errors[torch.float32] < 1e-4
    assert (torch.bfloat16 in check.errors) == options.get("autocast", False)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "layer", "grouped", "held", "fused"])
def test_check_accepts_compiled(name, monkeypatch):
    # the graphs are what could go wrong; code for them would take minutes
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    torch.compiler.reset()
    assert judge(Settings(compile=True)).check(variants()[name]).passed


class WithoutGradientOfStd(nn.Conv2d):
    def forward(self, x):
        std, mean = torch.std_mean(self.weight, (1, 2, 3), correction=0, keepdim=True)
        return self._conv_forward(x, (self.weight - mean) / (std.detach() + 1e-5), self.bias)


class WithoutGradientOfMean(nn.Conv2d):
    def forward(self, x):
        std, mean = torch.std_mean(self.weight, (1, 2, 3), correction=0, keepdim=True)
        return self._conv_forward(x, (self.weight - mean.detach()) / (std + 1e-5), self.bias)


class WithoutGradient(nn.Conv2d):
    def forward(self, x):
        weight = torch_ws.standardize(self.weight.detach())
        return self._conv_forward(x, weight, self.bias)


class Stale(nn.Conv2d):
    """The right gradient, but the weight that was standardized before the first step."""

    def forward(self, x):
        weight = torch_ws.standardize(self.weight)
        if not hasattr(self, "first"):
            self.first = weight.detach().clone()
        return self._conv_forward(x, self.first + (weight - weight.detach()), self.bias)


class Nan(FormulaConv2d):
    def forward(self, x):
        return super().forward(x) * float("nan")


@pytest.mark.parametrize(
    "conv", [WithoutGradientOfStd, WithoutGradientOfMean, WithoutGradient, Stale, Nan, nn.Conv2d]
)
@pytest.mark.parametrize("autocast", [False, True])
def test_check_refuses(conv, autocast):
    wrong = Variant("wrong", "", "paper", conv)
    assert not judge(Settings(autocast=autocast)).check(wrong).passed


@pytest.mark.parametrize("clip", ["norm", "agc"])
def test_check_refuses_a_step_without_clipping(clip, monkeypatch):
    fuse = torch_ws.fuse
    monkeypatch.setattr(torch_ws, "fuse", lambda model, optimizer, agc: fuse(model, optimizer))
    monkeypatch.setattr("bench.step.variants.CLIPS", dict.fromkeys(CLIPS, CLIPS["none"]))
    assert not judge(Settings(clip=clip)).check(variants()["fused"]).passed


def test_check_looks_at_more_than_the_first_micro_batch():
    the_judge = judge()
    assert the_judge.check(variants()["layer"]).passed
    the_judge.micro_batches = the_judge.micro_batches[:1]  # the reference has had both
    assert not the_judge.check(variants()["layer"]).passed


def test_micro_batches_are_one_large_batch():
    """GroupNorm knows no batch, so the mean loss of two micro-batches is that of both at once."""
    trainer = Trainer(variants()["plain"], TINY, Settings())
    trainer.model.double()
    micro_batches = [(images.double(), labels) for images, labels in data()]
    trainer.accumulate(micro_batches)
    found = take_gradients(trainer)
    trainer.accumulate([tuple(torch.cat(parts) for parts in zip(*micro_batches, strict=True))])
    torch.testing.assert_close(found, take_gradients(trainer), rtol=1e-10, atol=1e-13)


def test_step_is_sgd():
    trainer = Trainer(variants()["layer"], TINY, Settings())
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.accumulate(data())
    gradients = take_gradients(trainer)
    trainer.step(data())
    rate = trainer.optimizer.param_groups[0]["lr"]
    for name, parameter in trainer.model.named_parameters():
        # the first step with momentum is the one without
        update = gradients[name] + 5e-5 * before[name]
        torch.testing.assert_close(parameter.detach(), before[name] - rate * update)
        assert parameter.grad is None


# --- the memory


def test_allocated_bytes():
    before = torch.ones(1000)

    def run():
        kept = torch.ones(1000)
        both = kept + before  # 8000 bytes
        del kept, both
        again = torch.ones(500)
        del again

    assert allocated_bytes(run, "cpu") == (8000, 0)
    assert allocated_bytes(before.neg_, "cpu") == (0, 0)
    kept = []
    assert allocated_bytes(lambda: kept.append(before.neg()), "cpu") == (4000, 4000)


def test_what_is_kept_between_two_steps():
    kept = {}
    for name in ("plain", "layer", "fused"):
        made = []

        def begin(name=name, made=made):
            made.append(Trainer(variants()[name], TINY, Settings()))
            made[0].step(data(1))

        _, kept[name] = allocated_bytes(begin, "cpu")
    model = variants()["layer"].build(TINY)
    layers = [m for m in model.modules() if isinstance(m, torch_ws.WSConv2d)]
    assert kept["plain"] == kept["layer"] == 2 * sum(p.nbytes for p in model.parameters())
    assert kept["fused"] - kept["plain"] == sum(layer.weight.nbytes for layer in layers)


def test_standardized_weights_are_in_the_peak():
    """With images of a few pixels the weights are what a step allocates."""
    micro_batches = make_data(TINY, 1, 2, 1, Settings())
    peaks = {
        name: prepare(variants()[name], TINY, Settings(), micro_batches)[1]
        for name in ("plain", "layer")
    }
    weights = [conv.weight.nbytes for conv in convolutions(variants()["plain"].build(TINY))]
    assert 0 < peaks["layer"] - peaks["plain"] <= sum(weights)
