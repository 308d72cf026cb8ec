"""What fuse refuses before anything changes, and what it names."""

import pytest
import torch
import torch.distributed as dist
import torch_ws
from fused import FUSED, assert_same, fused_pair, train
from small_network import batch, loss_of, network
from torch import nn
from torch_ws.training.standardized_grad import deferred_of


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), lr=0.1, **options)


def refused(error, words, model, optimizer, **options):
    """fuse raises, and model and optimizer are as if it had not been called."""
    states = [vars(part).copy() for part in (model, optimizer) if hasattr(part, "__dict__")]
    with pytest.raises(error, match=words):
        torch_ws.fuse(model, optimizer, **options)
    parts = [part for part in (model, optimizer) if hasattr(part, "__dict__")]
    for part, before in zip(parts, states, strict=True):
        assert vars(part).keys() == before.keys()
    if isinstance(model, nn.Module):
        for layer in model.modules():
            assert "_provider" not in vars(layer)


def test_wrong_types():
    model = network()
    refused(TypeError, "model must be a torch.nn.Module, got list", [model], sgd(model))
    refused(TypeError, "optimizer must be a torch.optim.Optimizer, got float", model, 0.1)
    refused(TypeError, "got generator", model, model.parameters())


def test_nothing_to_fuse():
    model, plain = network(), nn.Sequential(nn.Conv2d(3, 3, 3))
    refused(ValueError, "a layer of torch_ws.*Sequential has none", plain, sgd(plain))
    refused(
        ValueError, "unreached: its weight is not in the optimizer", model, sgd(nn.Linear(2, 2))
    )
    vectors = torch.optim.SGD([p for p in model.parameters() if p.dim() == 1], lr=0.1)
    refused(ValueError, "whose weight is in the optimizer", model, vectors)


def test_a_parameter_in_two_groups():
    model = network()
    optimizer = sgd(model)
    optimizer.param_groups.append({**optimizer.param_groups[0], "params": [model.head.weight]})
    refused(
        ValueError, r"each parameter once; one of shape \(5, 3\) is in group 1", model, optimizer
    )


@pytest.mark.parametrize(
    "agc, error, words",
    [
        (0.0, ValueError, "agc of 'unreached.weight' must be positive and finite, got 0.0"),
        (float("nan"), ValueError, "must be positive and finite, got nan"),
        (True, TypeError, "agc of 'unreached.weight' must be a float, got bool"),
        ("0.01", TypeError, "must be a float, got str"),
        ({"nobody.weight": 0.1}, ValueError, "it has no 'nobody.weight'"),
        ({"head.weight": -1}, ValueError, "agc of 'head.weight' must be positive"),
        (lambda name: "much", TypeError, "must be a float, got str"),
        ([0.01], TypeError, "must be a float, got list"),
    ],
)
def test_wrong_agc(agc, error, words):
    model = network()
    refused(error, words, model, sgd(model), agc=agc)


def test_wrong_agc_eps():
    model = network()
    refused(ValueError, "agc_eps must be positive and finite, got 0", model, sgd(model), agc_eps=0)
    refused(TypeError, "agc_eps must be a float, got None", model, sgd(model), agc_eps=None)


def test_agc_without_a_kernel():
    model = network()
    optimizer = torch.optim.RMSprop(model.parameters())
    refused(ValueError, "agc must be None for RMSprop", model, optimizer, agc=0.01)

    class OwnSGD(torch.optim.SGD):
        """A subclass may step differently."""

    optimizer = OwnSGD(model.parameters(), lr=0.1)
    refused(ValueError, "agc must be None for OwnSGD", model, optimizer, agc=0.01)


def test_fused_twice():
    model, optimizer, _, judge, plain = fused_pair("SGD")
    with pytest.raises(RuntimeError, match="optimizer is fused already"):
        torch_ws.fuse(model, optimizer)
    with pytest.raises(RuntimeError, match="unreached is fused already: call remove"):
        torch_ws.fuse(model, sgd(model))
    x = batch()
    train(model, optimizer, [x])
    train(judge, plain, [x])
    assert_same(model, judge)


def test_two_optimizers_of_one_model():
    """Each has its layers."""
    model, judge = network(), network()
    judge.load_state_dict(model.state_dict())
    x = batch()
    for net in (model, judge):
        first = torch.optim.SGD([*net.stem.parameters(), *net.norm.parameters()], lr=0.1)
        rest = [p for n, p in net.named_parameters() if not n.startswith(("stem", "norm"))]
        second = torch.optim.AdamW(rest, lr=0.01)
        if net is model:
            handles = [torch_ws.fuse(net, first), torch_ws.fuse(net, second)]
            assert "twice" in handles[0].unfused and "twice" not in handles[1].unfused
        for _ in range(2):
            loss_of(net, x).backward()
            first.step()
            second.step()
            first.zero_grad()
            second.zero_grad()
    assert_same(model, judge)


def test_group_and_hold():
    model = network()
    handle = torch_ws.group(model)
    with pytest.raises(RuntimeError, match="model is grouped"):
        torch_ws.fuse(model, sgd(model))
    handle.remove()
    with torch_ws.hold(model), pytest.raises(RuntimeError, match="inside a block"):
        torch_ws.fuse(model, sgd(model))
    torch_ws.fuse(model, sgd(model))
    with pytest.raises(RuntimeError, match="is fused"):
        torch_ws.group(model)


def test_hold_does_nothing():
    model, optimizer, _, judge, plain = fused_pair("SGD, momentum")
    batches = [batch(), batch()]
    with torch_ws.hold(model):
        for x in batches:
            loss_of(model, x).backward()
    for x in batches:
        loss_of(judge, x).backward()
    optimizer.step()
    plain.step()
    assert_same(model, judge)


def test_compiled_steps():
    model = network()
    optimizer = sgd(model)
    optimizer.step = torch.compile(optimizer.step)
    with pytest.raises(RuntimeError, match=r"optimizer\.step must not be compiled"):
        torch_ws.fuse(model, optimizer)


@pytest.mark.slow
@pytest.mark.parametrize("when", ["after", "before"])  # fuse
def test_a_step_compiled_aside(when, fresh_compiler):
    model, optimizer, handle, _, _ = fused_pair("SGD")
    step = torch.compile(optimizer.step)
    if when == "before":
        handle.remove()
        loss_of(model, batch()).backward()
        step()
        optimizer.zero_grad()
        torch_ws.fuse(model, optimizer)
    before = [p.clone() for p in model.parameters()]
    loss_of(model, batch()).backward()
    with pytest.raises(Exception, match=r"optimizer\.step must not be compiled"):
        step()
    assert all(map(torch.equal, before, model.parameters()))


def test_an_error_in_the_step_changes_nothing():
    """torch refuses a parameter, or the kernel an argument: gradients are still there."""
    model, optimizer, _, judge, plain = fused_pair("Adam")
    x = batch()
    for net in (model, judge):
        loss_of(net, x).backward()
    kept = optimizer.param_groups[0]["betas"]
    optimizer.param_groups[0]["betas"] = (0.5, float("nan"))
    weights = {name: getattr(model, name).weight.detach().clone() for name in FUSED}
    with pytest.raises(ValueError, match="finite"):
        optimizer.step()
    for name, weight in weights.items():
        layer = getattr(model, name)
        assert torch.equal(layer.weight, weight) and optimizer.state[layer.weight]["step"] == 0
        assert deferred_of(layer.weight.grad) is not None and layer.weight.grad.norm() > 0
    optimizer.param_groups[0]["betas"] = kept
    model.load_state_dict(judge.state_dict())
    optimizer.state.clear()
    optimizer.zero_grad()
    loss_of(model, x).backward()
    optimizer.step()
    plain.step()
    assert_same(model, judge)


def test_an_error_in_a_closure():
    model, optimizer, _, judge, plain = fused_pair("SGD, momentum")

    def closure():
        raise ZeroDivisionError

    x = batch()
    for net, opt in ((model, optimizer), (judge, plain)):
        loss_of(net, x).backward()
        with pytest.raises(ZeroDivisionError):
            opt.step(closure)
        opt.step()
    assert_same(model, judge)


@pytest.fixture
def one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available(), reason="this PyTorch has no distributed")
@pytest.mark.filterwarnings("ignore:FSDP is switching", "ignore:FSDP will not all-gather")
def test_sharded_parameters_and_states(one_process):
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
    from torch.distributed.optim import ZeroRedundancyOptimizer

    model = network()
    zero = ZeroRedundancyOptimizer(model.parameters(), torch.optim.SGD, lr=0.1)
    with pytest.raises(ValueError, match="must not be a ZeroRedundancyOptimizer"):
        torch_ws.fuse(model, zero)
    flat = FullyShardedDataParallel(network(), device_id=torch.device("cpu"))
    refused(ValueError, r"must not be sharded by .* \(FSDP1\)", flat, sgd(flat))
    sharded = fully_shard(network(), mesh=dist.init_device_mesh("cpu", (1,)))
    refused(ValueError, "stem: its weight is a DTensor", sharded, sgd(sharded))
