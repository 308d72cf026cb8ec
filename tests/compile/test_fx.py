"""torch.fx: a traced graph reads the parameters, calls the op once a layer, and can be trained."""

import copy

import pytest
import torch
import torch_ws
from every_layer import LAYERS, make
from torch import fx, nn


def changed(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()


def assert_follows(traced, model, x):
    """Same values after the parameters have changed, and the same gradients, twice."""
    changed(model)
    for parameter in model.parameters():
        parameter.grad = None
    judge = copy.deepcopy(model)
    for _ in range(2):
        y, expected = traced(x), judge(x)
        torch.testing.assert_close(y, expected)
        y.square().sum().backward()
        expected.square().sum().backward()
    assert dict(traced.named_parameters()).keys() == dict(model.named_parameters()).keys()
    for name, parameter in judge.named_parameters():
        torch.testing.assert_close(traced.get_parameter(name).grad, parameter.grad)


def calls(traced):
    return [n for n in traced.graph.nodes if n.target is torch.ops.ws.standardize]


# nfnet's eps and scale depend on a channel's size, which a traced weight does not tell
@pytest.mark.parametrize("formula", ["paper", "nfnet"])
@pytest.mark.parametrize("name", LAYERS)
def test_every_layer(name, formula):
    layer, _, x = make(name, formula=formula, gain=True, shift=True)
    model = nn.Sequential(layer)
    traced = fx.symbolic_trace(model)
    assert len(calls(traced)) == 1
    assert not any(n.op == "get_attr" and "tensor_constant" in n.target for n in traced.graph.nodes)
    assert not [
        n for n in traced.graph.nodes if n.op != "output" and not n.users and n.op != "placeholder"
    ]
    assert_follows(traced, model, x)


# in eval mode without gradients the layer would keep a result, in train mode it would make one
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("grad", [True, False])
def test_modes_while_tracing(training, grad):
    model = nn.Sequential(torch_ws.WSConv2d(4, 6, 3), nn.ReLU(), torch_ws.WSConv2d(6, 2, 1))
    model.train(training)
    with torch.set_grad_enabled(grad):
        model(torch.randn(2, 4, 9, 9))
        traced = fx.symbolic_trace(model)
    assert_follows(traced, model, torch.randn(2, 4, 9, 9))


@pytest.mark.parametrize("mode", ["zeros", "reflect"])  # torch.nn pads the two differently
def test_same_padding_with_a_stride_for_inputs_of_any_size(mode):
    layer = torch_ws.WSConv2d(4, 6, 4, stride=(2, 3), padding="same", padding_mode=mode)
    traced = fx.symbolic_trace(layer)
    for size in (9, 10, 11):
        x = torch.randn(1, 4, size, size)
        assert torch.equal(traced(x), layer(x))


def test_a_weight_standardized_by_hand():
    class Model(nn.Module):
        def __init__(self, formula):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5, 4))
            self.formula = formula

        def forward(self, x):
            one = torch_ws.standardize(self.weight, formula=self.formula)
            [many] = torch_ws.standardize_many([self.weight], formula=self.formula)
            return x @ (one + many).t()

    for formula in ("paper", "nfnet"):
        model = Model(formula)
        assert_follows(fx.symbolic_trace(model), model, torch.randn(3, 4))


@pytest.mark.parametrize("options", [{}, {"estimated": True}, {"channel_affine": True}])
def test_batch_channel_norm_is_called_as_a_module(options):
    model = nn.Sequential(torch_ws.BatchChannelNorm2d(4, 2, **options))
    traced, x = fx.symbolic_trace(model), torch.randn(3, 4, 5, 5)
    assert [n.op for n in traced.graph.nodes] == ["placeholder", "call_module", "output"]
    assert_follows(traced, model, x)
    judge = copy.deepcopy(model).eval()
    torch.testing.assert_close(traced.eval()(x), judge(x))  # statistics of the batches so far


def test_parametrized():
    model = nn.Sequential(torch_ws.parametrize(nn.Linear(4, 6), gain=True))
    assert_follows(fx.symbolic_trace(model), model, torch.randn(3, 4))


@pytest.mark.parametrize("formula", ["paper", "nfnet"])
def test_a_layer_parametrized_by_others(formula):
    layer = nn.utils.parametrizations.weight_norm(torch_ws.WSLinear(4, 6, formula=formula))
    model = nn.Sequential(layer)
    assert_follows(fx.symbolic_trace(model), model, torch.randn(3, 4))


def test_grouped():
    layers = torch_ws.WSConv2d(4, 6, 3), nn.GroupNorm(2, 6), torch_ws.WSConv2d(6, 2, 1)
    model = nn.Sequential(*layers)
    torch_ws.group(model)
    x = torch.randn(2, 4, 9, 9)
    model(x).sum().backward()
    assert_follows(fx.symbolic_trace(model), model, x)


def test_quantization_aware_training_reaches_the_weights():
    from torch.ao.quantization import get_default_qat_qconfig_mapping, quantize_fx

    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    torch_ws.convert(model, gain=True).train()
    x = torch.randn(2, 3, 8, 8)
    prepared = quantize_fx.prepare_qat_fx(model, get_default_qat_qconfig_mapping("x86"), (x,))
    prepared(x).square().sum().backward()
    for name in ("0.weight", "0.gain", "3.weight"):
        assert prepared.get_parameter(name).grad.abs().max() > 0
    with torch.no_grad():
        before = prepared.eval()(x)
        changed(prepared)
        assert (prepared(x) - before).abs().max() > 0.1
