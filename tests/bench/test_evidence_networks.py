"""The experiments' networks: sides of a comparison differ in what it says, and in nothing else."""

import copy

import pytest
import torch
import torch_ws
from torch import nn

from bench.evidence.networks import INITIAL, NORMS, MicroBatchNorm2d, convolutions, make, make_chain
from bench.evidence.settings import Setting


def made(setting, **options):
    return make(setting, 28, 10, **options)


@pytest.mark.parametrize(
    ("size", "micro_batch"),
    [
        (6, 6),  # one: nn.BatchNorm2d
        (6, 2),
        (6, 1),
    ],
)
def test_micro_batch_norm_is_a_loop_of_batch_norms(size, micro_batch):
    torch.manual_seed(0)
    plain = nn.BatchNorm2d(3).double()
    with torch.no_grad():
        plain.weight.uniform_(0.5, 2)
        plain.bias.uniform_(-1, 1)
    ours = MicroBatchNorm2d(3, micro_batch).double()
    ours.load_state_dict(plain.state_dict())
    for _ in range(2):  # the running statistics start from others the second time
        x = torch.randn(size, 3, 4, 5, dtype=torch.float64).mul_(3).add_(1)
        g = torch.randn_like(x)
        leaves = [x.clone().requires_grad_() for _ in range(2)]
        expected = torch.cat([plain(part) for part in leaves[0].split(micro_batch)])
        actual = ours(leaves[1])
        expected.backward(g)
        actual.backward(g)
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
        pairs = zip([leaves[1], *ours.parameters()], [leaves[0], *plain.parameters()], strict=True)
        for a, b in pairs:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-11, atol=1e-11)
        for name, buffer in plain.named_buffers():
            torch.testing.assert_close(ours.get_buffer(name), buffer, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.eval()(x), plain.eval()(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("formula", [None, "paper"])
def test_a_seed_has_the_same_weights_everywhere(norm, formula):
    of = {name: p for name, p in made(Setting()).named_parameters() if p.dim() > 1}
    found = dict(made(Setting(norm=norm, formula=formula)).named_parameters())
    assert all(torch.equal(found[name], p) for name, p in of.items())
    other = dict(made(Setting(norm=norm, formula=formula, seed=1)).named_parameters())
    assert not any(torch.equal(other[name], p) for name, p in of.items())


def test_it_is_a_resnet_8():
    model = made(Setting())
    assert len(convolutions(model)) == 9  # 7 in a row, 2 in shortcuts
    assert sum(p.numel() for p in model.parameters()) == 77_754


@pytest.mark.parametrize("make_network", [None, make_chain])
def test_all_convolutions_are_standardized_and_the_head_is_not(make_network):
    options = {"make_network": make_network} if make_network else {}
    model = made(Setting(formula="paper"), **options)
    assert all(isinstance(m, torch_ws.Standardized) for m in convolutions(model))
    assert type(model[-1]) is nn.Linear
    assert not any(isinstance(m, torch_ws.Standardized) for m in made(Setting()).modules())


def test_without_normalization_variance_is_kept_by_gain_and_gamma():
    model = made(Setting(norm="none", formula="nfnet"))
    for module in convolutions(model):
        n = module.weight[0].numel()
        w_hat = module.standardized_weight().flatten(1)
        assert module.gain is not None and module.bias is not None
        torch.testing.assert_close(
            w_hat.square().sum(1),
            torch.full((len(w_hat),), 2 / (1 - 1 / torch.pi)),
            rtol=1e-4,
            atol=0,
        )
        assert n * w_hat.mean(1).abs().max() < 1e-4


@pytest.mark.parametrize("initial", INITIAL)
def test_initial_weights(initial):
    he = convolutions(made(Setting()))
    for module, of in zip(convolutions(made(Setting(initial=initial))), he, strict=True):
        std = (2 / of.weight[0].numel()) ** 0.5
        if initial == "mean 1 std":
            expected = of.weight + std
        else:
            expected = float(initial.removeprefix("std x ")) * of.weight
        torch.testing.assert_close(module.weight, expected)
    wide = he[-2].weight.detach()  # of 36,864 values
    assert wide.std().item() == pytest.approx((2 / wide[0].numel()) ** 0.5, rel=0.02)


def test_group_norm_makes_the_network_independent_of_the_micro_batch():
    model = made(Setting(formula="paper")).double()
    x = torch.randn(6, 1, 28, 28, dtype=torch.float64)
    parts = torch.cat([model(part) for part in x.split(1)])
    torch.testing.assert_close(model(x), parts, rtol=1e-12, atol=1e-12)


def test_small_images_keep_several_positions():
    """Otherwise a batch of one would have one value a channel, which BatchNorm refuses."""
    model = make(Setting(norm="bn", micro_batch=1), 8, 10)
    shapes = []
    model[-3].register_forward_pre_hook(lambda module, args: shapes.append(args[0].shape[2:]))
    copy.deepcopy(model)(torch.randn(2, 1, 8, 8))
    assert shapes == [(2, 2)]
