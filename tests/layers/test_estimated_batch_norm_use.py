"""EstimatedBatchNorm in use: compiled, exported, copied, and loaded from others' checkpoints."""

import copy
import pickle

import pytest
import torch
from batch_channel_cases import exported, varied
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch_ws import EstimatedBatchNorm

RATES = (0.1, 0.7, 0.0, 1.0)  # a step each: slow, fast, not at all, and nothing but the batch


def layer(channels=3, dtype=torch.float64, **options):
    return varied(EstimatedBatchNorm(channels, dtype=dtype, **options))


class NoWaiting(torch.utils._python_dispatch.TorchDispatchMode):
    """Fails where a tensor's value is read by Python, for which a device would be waited for."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        waits = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "item")
        assert function._schema.name.removeprefix("aten::") not in waits, function
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("training", [True, False])
def test_nothing_waits_for_the_device(training):
    made, x = layer().train(training), torch.randn(2, 3, 4, dtype=torch.float64)
    with NoWaiting():
        for rate in RATES:
            made.rate.fill_(rate)
            made(x.requires_grad_()).sum().backward()
        with pytest.raises(AssertionError, match="_local_scalar_dense"):
            made.rate.item()


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_once_for_all_rates(backend):
    torch._dynamo.reset()
    made = layer(dtype=torch.float32)
    twin = copy.deepcopy(made)
    counter = CompileCounterWithBackend(backend)
    fast = torch.compile(made, fullgraph=True, backend=counter)
    memory = {name: buffer.data_ptr() for name, buffer in made.named_buffers()}
    for rate in RATES:
        x = torch.randn(2, 3, 4, 4)
        results = []
        for net, call in ((made, fast), (twin, twin)):
            net.rate.fill_(rate)
            input = x.clone().requires_grad_()
            out = call(input)
            out.square().sum().backward()
            results.append((out, input.grad))
        torch.testing.assert_close(*results)
    assert counter.frame_count == 1
    torch.testing.assert_close(made.state_dict(), twin.state_dict())
    torch.testing.assert_close(made.weight.grad, twin.weight.grad)
    # recorded CUDA graphs write to this memory: it must stay the buffers'
    assert memory == {name: buffer.data_ptr() for name, buffer in made.named_buffers()}
    torch.testing.assert_close(fast.eval()(x), twin.eval()(x))
    torch._dynamo.reset()


@pytest.mark.parametrize("training", [True, False])
def test_export(training):
    """An exported program of a layer in training goes on updating its own estimates."""
    made = layer().train(training)
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    program = exported(copy.deepcopy(made), x)
    for rate in (0.1, 0.5):
        for net in (made, program):
            net.rate.fill_(rate)
        x = torch.randn(5, 3, 4, dtype=torch.float64)
        torch.testing.assert_close(program(x), made(x))
    for name, buffer in made.named_buffers():
        torch.testing.assert_close(program.get_buffer(name), buffer)


def test_copies_pickles_and_states():
    made, x = layer(rate=0.3), torch.randn(2, 3, 4, dtype=torch.float64)
    made.rate.fill_(0.25)
    fresh = EstimatedBatchNorm(3, dtype=torch.float64)
    fresh.load_state_dict(made.state_dict())
    copies = (copy.deepcopy(made), pickle.loads(pickle.dumps(made)), fresh)
    expected = made(x)
    for other in copies:
        assert torch.equal(other(x), expected)
        torch.testing.assert_close(other.state_dict(), made.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("counted", [True, False])  # False: of PyTorch before num_batches_tracked
def test_a_batch_norm_checkpoint_loads(counted):
    peer = nn.BatchNorm2d(3).double()
    peer(torch.randn(4, 3, 5, 5, dtype=torch.float64))
    nn.init.normal_(peer.weight)
    checkpoint = peer.state_dict()
    if not counted:
        del checkpoint["num_batches_tracked"]
    made = EstimatedBatchNorm(3, rate=0.2, dtype=torch.float64)
    made.load_state_dict(checkpoint)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(made.eval()(x), peer.eval()(x))
    assert made.rate == 0.2 and made.num_batches_tracked == int(counted)
    assert ("num_batches_tracked" in checkpoint) == counted  # the caller's is not changed
    deferred = EstimatedBatchNorm(3, rate=0.2, device="meta")
    deferred.load_state_dict(checkpoint, assign=True)
    torch.testing.assert_close(deferred.eval()(x), peer(x))
    assert deferred.rate == 0.2 and not deferred.num_batches_tracked.is_meta


def test_the_authors_checkpoint_loads():
    made = layer()
    theirs = {
        name: torch.randn(3, dtype=torch.float64).abs()
        for name in ("weight", "bias", "running_mean", "running_var")
    }
    theirs |= {"num_batches_tracked": torch.tensor(0), "estbn_moving_speed": torch.tensor([0.01])}
    nn.Sequential(made).load_state_dict({f"0.{name}": value for name, value in theirs.items()})
    assert made.rate.shape == () and made.rate.item() == pytest.approx(0.01)
    assert torch.equal(made.running_var, theirs["running_var"])
    assert "estbn_moving_speed" in theirs


def test_made_on_the_meta_device():
    made = EstimatedBatchNorm(3, rate=0.3, device="meta").to_empty(device="cpu")
    made.reset_parameters()
    fresh = EstimatedBatchNorm(3, rate=0.3)
    torch.testing.assert_close(made.state_dict(), fresh.state_dict(), rtol=0, atol=0)
    made(torch.randn(4, 3))
    made.rate.fill_(0.5)
    made.reset_running_stats()
    expected = fresh.state_dict() | {"rate": torch.tensor(0.5)}
    torch.testing.assert_close(dict(made.state_dict()), expected, rtol=0, atol=0)
