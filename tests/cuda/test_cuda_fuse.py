"""A fused model on a GPU: its training is the plain one's, nothing waits for the GPU, and a CUDA
graph can have the step in it."""

import copy

import pytest
import torch
import torch_ws
from accuracy import relative_error
from cuda_check import needs_gpu
from fused import FUSED, OPTIMIZERS, make
from small_network import loss_of, network
from torch_ws.training.clipping import clip_by_unit
from torch_ws.training.standardized_grad import deferred_of

pytestmark = needs_gpu


@pytest.fixture(autouse=True)
def exact_products():
    with torch.backends.cudnn.flags(allow_tf32=False):
        yield


class Sides:
    """A fused network in float32, the same without fuse, and the latter in float64 as a judge."""

    def __init__(self, name, **options):
        model = network(torch.float32).cuda()
        self.models = model, copy.deepcopy(model), copy.deepcopy(model).double()
        self.optimizers = [make(name, model, lr=1e-2) for model in self.models]
        self.handle = torch_ws.fuse(model, self.optimizers[0], **options)

    def train(self, step, steps=3):
        for _ in range(steps):
            x = torch.randn(2, 3, 6, 6)
            for i, (model, optimizer) in enumerate(zip(self.models, self.optimizers, strict=True)):
                step(model, optimizer, x.to(next(model.parameters())), i)
                optimizer.zero_grad()

    def check(self):
        """The error of the plain float32 network is the measure; and what is stored is w_hat."""
        columns = zip(*(model.parameters() for model in self.models), strict=True)
        for ours, plain, exact in columns:
            allowed = 4 * relative_error(plain.detach(), exact.detach()) + 1e-6
            assert relative_error(ours.detach(), exact.detach()) <= allowed
        for name in FUSED:
            layer = getattr(self.models[0], name)
            options = {"formula": layer.formula, "channel_dim": layer.channel_dim}
            expected = torch_ws.standardize(layer.weight, layer.gain, layer.shift, **options)
            torch.testing.assert_close(layer.standardized_weight(), expected, rtol=1e-5, atol=1e-6)


def deferred(model):
    return [deferred_of(getattr(model, name).weight.grad) is not None for name in FUSED]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training(name):
    def step(model, optimizer, x, i):
        for scale in (1, 2):  # two backward passes, whose sum is stepped
            loss_of(model, x, scale).backward()
        assert i != 0 or all(deferred(model))
        optimizer.step()

    sides = Sides(name)
    sides.train(step)
    sides.check()


# Both ways of clipping, and what torch has in their place
@pytest.mark.parametrize("way", ["norm", "agc"])
def test_clipping(way):
    def step(model, optimizer, x, i):
        loss_of(model, x).backward()
        if way == "norm":
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        elif i != 0:
            for name, clip in agc.items():
                clip_by_unit(model.get_parameter(name), clip, 1e-3)
        optimizer.step()

    agc = {"stem.weight": 0.02, "head.weight": 0.03, "head.gain": 0.01, "norm.weight": 0.01}
    sides = Sides("SGD, momentum", agc=agc if way == "agc" else None)
    sides.train(step)
    sides.check()


# GradScaler unscales before the step, or leaves it to a fused one. The first has no infinity, at
# which torch's own fused SGD would leave its momentum without values.
@pytest.mark.parametrize("name", ["SGD, momentum", "SGD, fused", "AdamW", "AdamW, fused"])
def test_grad_scaler(name):
    scalers = [torch.amp.GradScaler("cuda", init_scale=8.0) for _ in range(3)]
    steps = [0, 0, 0]

    def step(model, optimizer, x, i):
        loss = loss_of(model, x) * (float("inf") if steps[i] == 1 else 1)
        steps[i] += 1
        scalers[i].scale(loss).backward()
        scalers[i].step(optimizer)
        scalers[i].update()

    sides = Sides(name)
    sides.train(step, steps=4)
    assert {scaler.get_scale() for scaler in scalers} == {4.0}
    sides.check()


# With torch's own steps of these nothing waits either
@pytest.mark.parametrize("name", ["SGD, momentum", "SGD, fused", "AdamW, fused"])
def test_a_step_does_not_wait_for_the_gpu(name):
    def step(model, optimizer, x, i):
        loss_of(model, x).backward()
        torch.cuda.set_sync_debug_mode("error" if i == 0 else "default")
        try:
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")

    sides = Sides(name)
    sides.train(step)
    sides.check()


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_cuda_graphs(kind):
    """Replays train like eager steps, by a learning rate that is written between them."""
    model = network(torch.float32).cuda()
    judge = copy.deepcopy(model)
    optimizers, rates = [], []
    for net in (model, judge):
        rates.append(torch.tensor(1e-2, device="cuda"))
        options = {"momentum": 0.9} if kind is torch.optim.SGD else {"capturable": True}
        parameters = [p for name, p in net.named_parameters() if "unreached" not in name]
        optimizers.append(kind(parameters, lr=rates[-1], fused=True, **options))
    torch_ws.fuse(model, optimizers[0])
    x = torch.randn(2, 3, 6, 6, device="cuda")

    def step(net, optimizer):
        optimizer.zero_grad()
        loss_of(net, x).backward()
        optimizer.step()

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            step(model, optimizers[0])
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    optimizers[0].zero_grad()
    with torch.cuda.graph(graph):
        step(model, optimizers[0])
    for _ in range(3):
        step(judge, optimizers[1])
    for lr in (1e-2, 3e-3, 1e-3):
        for rate in rates:
            rate.fill_(lr)
        x.copy_(torch.randn(2, 3, 6, 6))
        graph.replay()
        step(judge, optimizers[1])
    for ours, other in zip(model.parameters(), judge.parameters(), strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-3, atol=1e-5)
    with torch.no_grad():  # what is stored follows the replays
        torch.testing.assert_close(model(x), judge(x), rtol=1e-3, atol=1e-4)
