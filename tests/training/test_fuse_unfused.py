"""What has no kernel trains as it would without fuse, and the handle says why."""

import pytest
import torch
import torch_ws
from fused import assert_same, fused_pair, train
from small_network import batch, loss_of, network
from torch import nn


def test_unfused_layers_and_why():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.fused = torch_ws.WSLinear(4, 4)
            self.half = torch_ws.WSLinear(4, 4, dtype=torch.bfloat16)
            self.tied = torch_ws.WSLinear(4, 4)
            self.tied_too = torch_ws.WSLinear(4, 4)
            self.tied_too.weight = self.tied.weight
            self.groups = torch_ws.WSConvTranspose2d(4, 4, 3, groups=2)
            self.frozen = torch_ws.WSLinear(4, 4)
            self.flat = torch_ws.WSLinear(4, 4)
            memory = torch.randn(32)
            self.flat.weight.data, self.flat.other = memory[:16].view(4, 4), memory[16:]
            self.computed = torch_ws.WSLinear(4, 4)
            nn.utils.parametrizations.orthogonal(self.computed)

    model = Model()
    parameters = [p for n, p in model.named_parameters() if not n.startswith("frozen")]
    handle = torch_ws.fuse(model, torch.optim.SGD(parameters, lr=0.1))
    assert handle.unfused == {
        "half": "no kernel for dtype bfloat16 on cpu",
        "tied": "two layers share its weight",
        "tied_too": "two layers share its weight",
        "groups": "a transposed convolution with groups has its channels in pieces",
        "frozen": "its weight is not in the optimizer",
        "flat": "its memory is shared with other tensors or processes",
        "computed": "its weight is computed (torch.nn.utils.parametrize)",
    }
    assert repr(handle) == "Fused(Model: 1 layers in SGD.step, 7 unfused)"


BETAS = torch.tensor(0.9), torch.tensor(0.99)


@pytest.mark.parametrize(
    "cls, options, why",
    [
        (torch.optim.RMSprop, {}, "no kernel for RMSprop: SGD, Adam and AdamW have one"),
        (torch.optim.Adagrad, {}, "no kernel for Adagrad: SGD, Adam and AdamW have one"),
        (torch.optim.Adam, {"betas": BETAS}, "no kernel for options as tensors, but for lr"),
    ],
)
def test_what_has_no_kernel_steps_the_ordinary_way(cls, options, why):
    model, judge = network(), network()
    judge.load_state_dict(model.state_dict())
    sides = [(net, cls(net.parameters(), lr=0.01, **options)) for net in (model, judge)]
    handle = torch_ws.fuse(*sides[0])
    assert set(handle.unfused.values()) >= {why} and handle.unfused["stem"] == why
    for _ in range(3):
        x = batch()
        for net, optimizer in sides:
            train(net, optimizer, [x])
        assert_same(model, judge)


def test_an_optimizer_that_calls_its_closure_often():
    model, judge = network(), network()
    judge.load_state_dict(model.state_dict())
    x = batch()
    for net in (model, judge):
        optimizer = torch.optim.LBFGS(net.parameters(), lr=0.1, max_iter=4)
        if net is model:
            torch_ws.fuse(net, optimizer)

        def closure(net=net, optimizer=optimizer):
            optimizer.zero_grad()
            loss = loss_of(net, x)
            loss.backward()
            return loss

        for _ in range(2):
            optimizer.step(closure)
    assert_same(model, judge, 1e-9)


def test_options_change_between_steps():
    """A step with options that have no kernel computes the gradients that were deferred."""
    model, optimizer, handle, judge, plain = fused_pair("Adam")
    for betas in ((0.9, 0.99), BETAS, BETAS, (0.9, 0.99), (0.9, 0.99)):
        x = batch()
        for net, opt in ((model, optimizer), (judge, plain)):
            opt.param_groups[0]["betas"] = betas
            train(net, opt, [x])
        assert ("stem" in handle.unfused) == (betas is BETAS)
        assert_same(model, judge, 1e-7)  # the betas are float32
