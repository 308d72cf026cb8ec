"""Clipping in a fused model: by the global norm, by units (AGC), and beside GradScaler."""

import pytest
import torch
import torch_ws
from fused import FUSED, Computed, assert_same, assert_same_state, assert_stored, fused_pair, make
from small_network import Calls, batch, loss_of, twins
from torch import nn
from torch_ws.training.standardized_grad import deferred_of


def clip_like_timm(parameters, clip, eps=1e-3):
    """timm.utils.agc.adaptive_clip_grad, from its formula."""
    for p in parameters:
        if p.grad is None:
            continue
        dims = None if p.dim() <= 1 else tuple(range(1, p.dim()))
        weight, grad = (
            torch.linalg.vector_norm(t, dim=dims, keepdim=dims is not None)
            for t in (p.detach(), p.grad)
        )
        limit = weight.clamp(min=eps) * clip
        clipped = p.grad * (limit / grad.clamp(min=1e-6))
        p.grad.copy_(torch.where(grad < limit, p.grad, clipped))


@pytest.mark.parametrize("name", ["SGD, momentum", "SGD, dampening", "AdamW", "AdamW, fused"])
@pytest.mark.parametrize("micro_batches", [1, 2])  # before a sum of gradients and after
@pytest.mark.parametrize("foreach", [False, True])  # two ways of clip_grad_norm_
def test_global_norm(name, micro_batches, foreach, monkeypatch):
    model, optimizer, _, judge, plain = fused_pair(name)
    computed = Computed(monkeypatch)
    for clip in (1e-3, 1e3, 0.5):  # far below the norm, above it, near it
        batches = [batch() for _ in range(micro_batches)]
        norms = []
        for net, opt in ((model, optimizer), (judge, plain)):
            for x in batches:
                loss_of(net, x).backward()
            computed.counts.clear()
            norms.append(nn.utils.clip_grad_norm_(net.parameters(), clip, foreach=foreach))
            if net is model:  # the norms of all in one call, and no gradient
                assert computed.counts == {"norms": 1}
                assert all(deferred_of(getattr(net, n).weight.grad) is not None for n in FUSED)
            opt.step()
            opt.zero_grad()
        torch.testing.assert_close(*norms, rtol=1e-12, atol=0)
        assert_same(model, judge)
        assert_same_state(optimizer, plain)


def test_clip_grad_value():
    """Not linear: the gradients are computed, and the step goes on with them."""
    model, optimizer, _, judge, plain = fused_pair("SGD, momentum")
    for _ in range(3):
        x = batch()
        for net, opt in ((model, optimizer), (judge, plain)):
            loss_of(net, x).backward()
            nn.utils.clip_grad_value_(net.parameters(), 0.01)
            opt.step()
            opt.zero_grad()
        assert_same(model, judge)


AGC = {  # agc, and which parameters it means
    "all": (0.02, lambda name: True),
    "some": ({"stem.weight": 0.02, "head.gain": 0.02}, {"stem.weight", "head.gain"}.__contains__),
    "not the head": (
        lambda name: None if name.startswith("head") else 0.02,
        lambda name: not name.startswith("head"),
    ),
}


@pytest.mark.parametrize("which", AGC)
@pytest.mark.parametrize("name", ["SGD, nesterov", "SGD, decay", "Adam", "AdamW, fused"])
def test_agc_is_timms(name, which):
    """Gains, shifts and biases as whole vectors; `down`, transposed, by its output channels."""
    agc, means = AGC[which]
    model, optimizer, _, judge, plain = fused_pair(name, agc=agc)
    for _ in range(4):
        x = batch()
        with Calls() as calls:
            loss_of(model, x).backward()
            optimizer.step()
        assert calls.counts["update_many"] == 1 and "backward" not in calls.counts
        loss_of(judge, x).backward()
        down = judge.down.weight
        chosen = [p for n, p in judge.named_parameters() if means(n) and p is not down]
        clip_like_timm(chosen, 0.02)
        if means("down.weight"):
            rows = nn.Parameter(down.detach().transpose(0, 1))
            rows.grad = down.grad.transpose(0, 1)
            clip_like_timm([rows], 0.02)
        plain.step()
        for opt in (optimizer, plain):
            opt.zero_grad()
        assert_same(model, judge)
        assert_same_state(optimizer, plain)
        assert_stored(model)


def test_agc_of_ordinary_gradients_and_large_eps():
    """After somebody has read them; and with an eps above the weights' norms."""
    model, optimizer, _, judge, plain = fused_pair("SGD", agc=0.01, agc_eps=10.0)
    x = batch()
    for net, opt in ((model, optimizer), (judge, plain)):
        loss_of(net, x).backward()
        net.stem.weight.grad.clamp_(-1, 1)
        if net is judge:
            clip_like_timm([p for p in net.parameters() if p is not net.down.weight], 0.01, 10.0)
            rows = nn.Parameter(net.down.weight.detach().transpose(0, 1))
            rows.grad = net.down.weight.grad.transpose(0, 1)
            clip_like_timm([rows], 0.01, 10.0)
        opt.step()
    assert_same(model, judge)


@pytest.mark.parametrize("name", ["SGD, momentum", "SGD, fused", "AdamW", "AdamW, fused"])
@pytest.mark.parametrize("unscale", [False, True])  # as before clipping, or all in the step
def test_grad_scaler(name, unscale):
    """Steps are taken, and left out where a gradient is not finite, as without fuse."""
    model, optimizer, _, judge, plain = fused_pair(name)
    scalers = [torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2) for _ in range(2)]
    sides = list(zip((model, judge), (optimizer, plain), scalers, strict=True))
    for i in range(6):
        x = batch()
        if i == 2:
            x[0, 0, 0, 0] = torch.inf
        for net, opt, scaler in sides:
            scaler.scale(loss_of(net, x)).backward()
            if unscale:
                scaler.unscale_(opt)
                nn.utils.clip_grad_norm_(net.parameters(), 0.5)
            scaler.step(opt)
            scaler.update()
            opt.zero_grad()
        assert scalers[0].get_scale() == scalers[1].get_scale()
        assert_same(model, judge)
        assert_same_state(optimizer, plain)
        assert_stored(model, made=False)
    assert scalers[0].get_scale() < 8 * 2**3  # the infinity was found


@pytest.mark.parametrize("name", ["SGD, fused", "AdamW"])
def test_grad_scaler_and_agc(name):
    """Units are clipped by unscaled norms; the scale is divided by before, or in the step."""
    model, optimizer, _, judge, plain = fused_pair(
        name, agc=lambda n: None if "down" in n else 0.02
    )
    scalers = [torch.amp.GradScaler("cpu", init_scale=64.0) for _ in range(2)]
    for _ in range(3):
        x = batch()
        for net, opt, scaler in ((model, optimizer, scalers[0]), (judge, plain, scalers[1])):
            scaler.scale(loss_of(net, x)).backward()
            if net is judge:
                scaler.unscale_(opt)
                clip_like_timm([p for n, p in net.named_parameters() if "down" not in n], 0.02)
            scaler.step(opt)
            scaler.update()
            opt.zero_grad()
        assert_same(model, judge)


def test_grad_scaler_with_autocast():
    """float16 gradients under a scale that their sums would leave the range of."""
    model, judge = twins(torch.float32)
    sides = []
    for net in (model, judge):
        optimizer = make("SGD, fused", net)
        sides.append((net, optimizer, torch.amp.GradScaler("cpu", init_scale=2.0**12)))
    torch_ws.fuse(*sides[0][:2])
    for _ in range(3):
        x = batch(dtype=torch.float32)
        for net, optimizer, scaler in sides:
            with torch.autocast("cpu", torch.float16):
                loss = net(x).float().square().sum()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    assert sides[0][2].get_scale() == sides[1][2].get_scale()
    assert_same(model, judge, 0.02)
