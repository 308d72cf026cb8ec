"""parametrize: what is registered under which names, and what is refused."""

import pytest
import torch
import torch_ws
from torch import nn
from torch.nn.utils import parametrizations


def test_the_parameter_stays_and_keys_are_as_documented():
    module = nn.Conv2d(3, 4, 3)
    weight = module.weight
    torch_ws.parametrize(module, gain=True, shift=True)
    assert module.parametrizations.weight.original is weight
    assert sorted(module.state_dict()) == [
        "bias",
        "parametrizations.weight.0.gain",
        "parametrizations.weight.0.shift",
        "parametrizations.weight.original",
    ]
    gain = module.parametrizations.weight[0].gain
    assert torch.equal(gain, torch.ones(4)) and gain.requires_grad
    assert "formula='paper', channel_dim=0, gain=True, shift=True" in repr(module)
    frozen = nn.Linear(3, 4, dtype=torch.float64).requires_grad_(False)
    torch_ws.parametrize(frozen, gain=True)
    gain = frozen.parametrizations.weight[0].gain
    assert not gain.requires_grad and gain.dtype == torch.float64


def test_assignment_sets_what_is_standardized():
    module = torch_ws.parametrize(nn.Linear(4, 3), formula="timm")
    weight = torch.randn(3, 4)
    module.weight = weight
    assert torch.equal(module.parametrizations.weight.original, weight)
    assert torch.equal(module.weight, torch_ws.standardize(weight, formula="timm"))


def test_among_other_parametrizations():
    module = nn.Linear(4, 3)
    parametrizations.orthogonal(module)
    torch_ws.parametrize(module, gain=True)
    assert module.parametrizations.weight[1].gain.requires_grad
    orthogonal = module.parametrizations.weight[0](module.parametrizations.weight.original)
    torch.testing.assert_close(module.weight, torch_ws.standardize(orthogonal))
    module(torch.randn(2, 4)).square().sum().backward()
    assert module.parametrizations.weight.original.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("module", "arguments", "kind", "message"),
    [
        (torch.ones(2, 2), {}, TypeError, "module must be a torch.nn.Module, got Tensor"),
        (nn.Linear(3, 4), {"name": 1}, TypeError, "name must be a str, got int"),
        (nn.Linear(3, 4), {"formula": "papers"}, ValueError, "formula must be one of"),
        (nn.Linear(3, 4), {"gain": 1}, TypeError, "gain must be a bool, got int"),
        (nn.Linear(3, 4), {"shift": None}, TypeError, "shift must be a bool"),
        (nn.Linear(3, 4), {"channel_dim": 2}, ValueError, r"'weight' of Linear: channel_dim"),
        (nn.Linear(3, 4), {"channel_dim": 0.0}, TypeError, "channel_dim must be an int"),
        (
            nn.Linear(3, 4),
            {"name": "wight"},
            ValueError,
            r"it has 'weight', 'bias'\), got 'wight'$",
        ),
        (nn.ReLU(), {}, ValueError, "it has none"),
        (nn.Linear(3, 4), {"name": "bias"}, ValueError, "'bias' of Linear: .*2 dimensions"),
        (nn.Linear(3, 4, bias=False), {"name": "bias"}, ValueError, "got 'bias'; .* is None"),
        (nn.utils.weight_norm(nn.Linear(3, 4)), {}, ValueError, "got 'weight'; .*weight_norm"),
        (nn.Linear(1, 4), {"formula": "qiao"}, ValueError, "'weight' of Linear: correction"),
        (nn.Linear(3, 4, dtype=torch.complex64), {}, ValueError, "complex64"),
        (nn.LazyLinear(3), {}, ValueError, "'weight' of LazyLinear is not initialized"),
        (torch_ws.WSConv2d(3, 4, 3), {}, ValueError, "of WSConv2d would be standardized twice"),
        (torch_ws.parametrize(nn.Linear(3, 4)), {}, ValueError, "is standardized already"),
    ],
)
def test_what_is_refused_changes_nothing(module, arguments, kind, message):
    before = None if isinstance(module, torch.Tensor) else (type(module), repr(module))
    with pytest.raises(kind, match=message):
        torch_ws.parametrize(module, **arguments)
    if before:
        assert (type(module), repr(module)) == before


def test_sharded_with_a_gain_is_refused():
    module = nn.Linear(3, 4)
    module.weight.device_mesh = "as a DTensor has"
    with pytest.raises(ValueError, match="'weight' is sharded"):
        torch_ws.parametrize(module, gain=True)
    assert type(module) is nn.Linear
