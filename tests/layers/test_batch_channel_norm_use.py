"""Batch-channel normalization in use: checkpoints, compilation, processes, convert, fold."""

import copy
import pickle
import warnings

import pytest
import torch
import torch_ws
from batch_channel_cases import exported, varied
from small_network import in_two_processes
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch_ws import BatchChannelNorm2d, EstimatedBatchNorm

CHANNELS, GROUPS = 6, 3
MODES = {"batch": {}, "estimated": {"estimated": True}}


def make(dtype=torch.float64, **options):
    return varied(BatchChannelNorm2d(CHANNELS, GROUPS, dtype=dtype, **options))


@pytest.mark.parametrize("estimated", [False, True])
def test_state(estimated):
    """Names and shapes are those of the authors' BCNorm, but for (G,) instead of (1, G, 1)."""
    made = make(estimated=estimated)
    shapes = {key: tuple(value.shape) for key, value in made.state_dict().items()}
    of_channels = ("bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
    expected = {"weight": (GROUPS,), "bias": (GROUPS,), "bn.num_batches_tracked": ()}
    expected |= dict.fromkeys(of_channels, (CHANNELS,))
    assert shapes == (expected | {"bn.rate": ()} if estimated else expected)
    fresh = BatchChannelNorm2d(CHANNELS, GROUPS, dtype=torch.float64, estimated=estimated)
    fresh.load_state_dict(made.state_dict())
    x = torch.randn(2, CHANNELS, 3, 3, dtype=torch.float64)
    expected = made(x)
    for other in (fresh, copy.deepcopy(fresh), pickle.loads(pickle.dumps(fresh))):
        assert torch.equal(other(x), expected)


# "pbn": the ImageNet and DeepLab code; "bn": the README
@pytest.mark.parametrize("child", ["pbn", "bn"])
@pytest.mark.parametrize("estimated", [False, True])
def test_the_authors_checkpoints_load(child, estimated):
    model = nn.Sequential(make(estimated=estimated))
    theirs = {"0.weight": torch.randn(1, GROUPS, 1), "0.bias": torch.randn(1, GROUPS, 1)}
    for key in ("weight", "bias", "running_mean", "running_var"):
        theirs[f"0.{child}.{key}"] = torch.randn(CHANNELS).exp()
    theirs[f"0.{child}.num_batches_tracked"] = torch.tensor(7)
    if estimated and child == "bn":
        theirs["0.bn.estbn_moving_speed"] = torch.tensor([0.5])
    before = dict(theirs)
    model.load_state_dict(theirs)
    assert theirs == before
    assert torch.equal(model[0].weight, theirs["0.weight"].double().view(-1))
    assert torch.equal(model[0].bn.running_var, theirs[f"0.{child}.running_var"].double())
    assert model[0].bn.num_batches_tracked == 7
    if estimated:
        assert model[0].bn.rate == (0.5 if child == "bn" else 0.1)


def test_micro_batches_from_a_large_batch_checkpoint():
    large, micro = make(), make(estimated=True)
    large(torch.randn(8, CHANNELS, 3, 3, dtype=torch.float64))
    micro.load_state_dict(large.state_dict())
    x = torch.randn(1, CHANNELS, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(micro.eval()(x), large.eval()(x))


def test_wrong_shapes_in_a_checkpoint_are_refused():
    made = make(channel_affine=True)
    with pytest.raises(RuntimeError, match=r"size mismatch for weight"):
        made.load_state_dict(make().state_dict())


@pytest.mark.parametrize("mode", MODES)
def test_compiled_once(mode):
    torch._dynamo.reset()
    made = make(dtype=torch.float32, **MODES[mode])
    twin = copy.deepcopy(made)
    counter = CompileCounterWithBackend("aot_eager")
    fast = torch.compile(made, fullgraph=True, backend=counter)
    for rate in (0.1, 0.5):
        x = torch.randn(2, CHANNELS, 4, 4)
        for net, call in ((made, fast), (twin, twin)):
            if mode == "estimated":
                net.bn.rate.fill_(rate)
            call(x).square().sum().backward()
        torch.testing.assert_close(made.state_dict(), twin.state_dict())
        for ours, theirs in zip(made.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad)
    assert counter.frame_count == 1
    torch._dynamo.reset()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_export(mode, training):
    made = make(**MODES[mode]).train(training)
    x = torch.randn(3, CHANNELS, 3, 3, dtype=torch.float64)
    program = exported(copy.deepcopy(made), x)
    for x in torch.randn(2, 5, CHANNELS, 3, 3, dtype=torch.float64):
        torch.testing.assert_close(program(x), made(x))
    for name, buffer in made.named_buffers():
        torch.testing.assert_close(program.get_buffer(name), buffer)


def test_conversion_to_sync_batch_norm():
    """PyTorch's finds the first step of large batches, and leaves estimates alone."""
    model = nn.Sequential(make(), make(estimated=True)).eval()
    before = dict(model.named_parameters())
    x = torch.randn(2, CHANNELS, 3, 3, dtype=torch.float64)
    expected = model(x)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert type(converted[0].bn) is nn.SyncBatchNorm
    assert type(converted[1].bn) is EstimatedBatchNorm
    assert {name: id(p) for name, p in converted.named_parameters()} == {
        name: id(p) for name, p in before.items()
    }
    torch.testing.assert_close(converted(x), expected)


def _data_parallel(rank):
    """Two passes before each backward, between which rank 0's buffers are sent to rank 1."""
    torch.manual_seed(1)
    source = nn.Sequential(make(estimated=True, momentum=0.5))
    data = torch.randn(3, 2, 2, 1, CHANNELS, 2, 2, dtype=torch.float64)  # (step, pass, rank, ...)
    model = nn.parallel.DistributedDataParallel(copy.deepcopy(source))
    for first, second in data:
        (model(first[rank]).pow(3).sum() + model(second[rank]).pow(3).sum()).backward()
    return source, data, [p.grad for p in model.parameters()], model.module.state_dict()


@pytest.mark.slow
def test_data_parallel():
    """As in one process that keeps both ranks' estimates: rank 1 begins each pass with rank 0's."""
    results = in_two_processes(_data_parallel)
    source, data, *_ = results[0]
    for first, second in data:
        total = 0
        for batches in (first, second):
            state = copy.deepcopy(source.state_dict())
            total = total + source(batches[0]).pow(3).sum()
            other = copy.deepcopy(source)
            with torch.no_grad():
                for name, buffer in other.named_buffers():
                    buffer.copy_(state[name])
            parameters = dict(source.named_parameters())
            out = torch.func.functional_call(other, parameters, (batches[1],))
            total = total + out.pow(3).sum()
        (total / 2).backward()
    for rank, net in enumerate((source, other)):
        *_, grads, state = results[rank]
        for parameter, grad in zip(source.parameters(), grads, strict=True):
            torch.testing.assert_close(grad, parameter.grad)
        torch.testing.assert_close(state["0.bn.running_var"], net[0].bn.running_var)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_convert_takes_it_for_the_normalization_that_it_is(mode, affine):
    """No warning that standardization takes the scale off the output."""
    model = nn.Sequential(nn.Conv2d(3, CHANNELS, 3), make(affine=affine, **MODES[mode]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch_ws.convert(model)
    assert type(model[0]) is torch_ws.WSConv2d


def test_fold_names_it():
    model = nn.Sequential(torch_ws.WSConv2d(3, CHANNELS, 3), make(dtype=torch.float32)).eval()
    x = torch.randn(2, 3, 5, 5)
    expected = model(x)
    with pytest.warns(UserWarning, match=r"fold leaves '1' \(BatchChannelNorm2d\)"):
        torch_ws.fold(model)
    assert torch.equal(model(x), expected)
