"""group: a pass writes to the memory of the pass before, and never to what has another user."""

import copy
import pickle
import threading
import weakref

import pytest
import torch
import torch_ws
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.dlpack import to_dlpack
from torch_ws.training import buffers


def network():
    """Rows that are the weight, a view of it and, with groups, a copy; affine and not."""
    return nn.Sequential(
        torch_ws.WSConv2d(3, 4, 3, gain=True),
        nn.ReLU(),
        torch_ws.WSConvTranspose2d(4, 6, 2, formula="bit"),
        nn.ReLU(),
        torch_ws.WSConvTranspose2d(6, 6, 2, groups=2, formula="qiao"),
        torch_ws.WSConv2d(6, 4, 3, formula="nfnet"),
        nn.Flatten(),
        torch_ws.WSLinear(64, 5, shift=True),
    )


WATCHED = (0, 2, 5, 7)  # whose standardized weights lie in the group's memory; 4 has a copy of it


@pytest.fixture
def grouped():
    """A grouped network, one to judge it by, an input, and the group's handle."""
    model, x = network(), torch.randn(2, 3, 6, 6, requires_grad=True)
    judge = copy.deepcopy(model)
    return model, judge, x, torch_ws.group(model)


def step(model, x):
    model.zero_grad()
    out = model(x)
    out.float().square().mean().backward()
    return out.detach()


def change(*models):
    """New values, without the version counter: backward through an old graph stays possible."""
    for i, parameters in enumerate(zip(*(model.parameters() for model in models), strict=True)):
        factor = torch.linspace(0.5, 2 + i, parameters[0].numel()).view(parameters[0].shape)
        for parameter in parameters:
            parameter.data.mul_(factor)


def memory_of(model, x, run=step):
    """The storages that the watched layers get in a pass, as weak references: others count."""
    storages = {}

    def note(layer, _):
        storages[layer] = weakref.ref(layer.standardized_weight().untyped_storage())

    hooks = [model[i].register_forward_pre_hook(note) for i in WATCHED]
    run(model, x)
    for hook in hooks:
        hook.remove()
    return list(storages.values())


def is_same(first, second):
    """True if the memory still exists and is one."""
    return all(a() is not None and a() is b() for a, b in zip(first, second, strict=True))


def is_gone(storages):
    return all(storage() is None for storage in storages)


@pytest.mark.parametrize("bucket_mb", [None, 1e-9])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])  # of autocast
def test_training_is_bitwise_that_of_the_layers_alone(dtype, bucket_mb):
    model, x = network(), torch.randn(2, 3, 6, 6)
    judge = copy.deepcopy(model)
    torch_ws.group(model, bucket_mb)
    sgd = [torch.optim.SGD(net.parameters(), 1e-7, momentum=0.9) for net in (model, judge)]
    storages = []
    for _ in range(4):
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            storages.append(memory_of(model, x))
            assert torch.equal(step(model, x), step(judge, x))
        for ours, theirs in zip(model.parameters(), judge.parameters(), strict=True):
            assert torch.equal(ours.grad, theirs.grad)
        for optimizer in sgd:
            optimizer.step()
    parameters = zip(model.parameters(), judge.parameters(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in parameters)
    assert all(is_same(each, storages[0]) for each in storages)


def test_gradients_lie_where_those_of_the_results_did(grouped):
    """But for what a linear layer's backward gives, a view of a tensor that nobody else has."""
    model, judge, x, _ = grouped
    addresses, convolutions = {}, (model[0], model[5])  # whose results are no views

    def note(layer, _):
        weight = layer.standardized_weight()
        weight.register_hook(lambda grad: addresses.update({layer: grad.data_ptr()}))

    for layer in convolutions:
        layer.register_forward_pre_hook(note)
    for _ in range(2):
        assert torch.equal(step(model, x), step(judge, x))
        assert addresses == {layer: layer.weight.grad.data_ptr() for layer in convolutions}


def test_one_launch_for_all_layers(grouped, monkeypatch):
    model, _, x, _ = grouped
    written, into = [], buffers.raw_forward_into

    def write(outs, *arguments):
        written.append(len(outs))
        into(outs, *arguments)

    monkeypatch.setattr(buffers, "raw_forward_into", write)
    for _ in range(3):
        step(model, x)
    assert written == [5] * 3


def test_graphs_that_live(grouped):
    """Several passes before a backward pass; the first one's weights are needed at its end."""
    model, judge, x, _ = grouped
    step(model, x)
    outs, expected = [], []
    for _ in range(3):
        outs.append(model(x))
        expected.append(torch.autograd.grad(judge(x).sum(), x)[0])
        change(model, judge)
    for out, grad in zip(outs, expected, strict=True):
        assert torch.equal(torch.autograd.grad(out.sum(), x)[0], grad)


def test_a_graph_that_is_retained(grouped):
    model, judge, x, _ = grouped
    step(model, x)
    out = model(x)
    [expected] = torch.autograd.grad(judge(x).sum(), x)
    for _ in range(2):
        assert torch.equal(torch.autograd.grad(out.sum(), x, retain_graph=True)[0], expected)
        change(model, judge)
        assert torch.equal(step(model, x), step(judge, x))


def saved(weight):
    """A graph that refers to the very tensor, of which Python then knows nothing."""
    return (weight * torch.ones((), requires_grad=True)).sum()


HOLDERS = {
    "the tensor": lambda weight: weight,
    "another tensor": lambda weight: weight.detach(),
    "a view": lambda weight: weight.detach()[:1],
    "a graph": saved,
    "the storage": lambda weight: weight.untyped_storage(),
    "an array": lambda weight: weight.detach().numpy(),
    "a buffer": lambda weight: memoryview(weight.detach().numpy()),
    "DLPack": lambda weight: to_dlpack(weight.detach()),
}


@pytest.mark.parametrize("layer", [0, 2, 7])
@pytest.mark.parametrize("holder", HOLDERS)
def test_what_the_user_keeps(grouped, holder, layer):
    model, judge, x, _ = grouped
    memory_of(model, x)
    held = []
    hook = model[layer].register_forward_hook(
        lambda layer, *_: held.append(HOLDERS[holder](layer.standardized_weight()))
    )
    storage = memory_of(model, x)[WATCHED.index(layer)]
    hook.remove()
    values = bytes(storage())
    change(model, judge)
    assert torch.equal(step(model, x), step(judge, x))
    assert bytes(storage()) == values  # nobody wrote
    held.clear()
    assert storage() is None  # and the group had let go
    assert is_same(memory_of(model, x), memory_of(model, x))


def test_memory_that_another_process_reads(grouped):
    """Sent through a queue of torch.multiprocessing, for example, it has no reference here."""
    model, judge, x, _ = grouped
    sent = []
    hook = model[0].register_forward_hook(
        lambda layer, *_: sent.append(layer.standardized_weight().share_memory_().data_ptr())
    )
    shared, *others = memory_of(model, x)
    hook.remove()
    assert shared().is_shared() and shared().data_ptr() == sent[0]
    assert not is_same(memory_of(model, x)[:1], [shared]) and is_gone([shared])
    assert is_same(memory_of(model, x)[1:], others)
    assert torch.equal(step(model, x), step(judge, x))


def test_memory_that_was_taken_away(grouped):
    model, judge, x, _ = grouped
    memory_of(model, x)[0]().resize_(0)
    assert torch.equal(step(model, x), step(judge, x))


def test_passes_without_gradients(grouped):
    """The memory of a pass in training mode is used again; in eval mode it is let go of."""
    model, judge, x, _ = grouped
    before = memory_of(model, x)
    change(model, judge)
    with torch.no_grad():
        assert torch.equal(model(x), judge(x))
        assert is_same(memory_of(model, x, run=lambda model, x: model(x)), before)
        model.eval()
        assert torch.equal(model(x), judge.eval()(x))
    assert is_gone(before)


def test_a_thread_that_runs_between_the_question_and_the_write(grouped, monkeypatch):
    model, _, x, _ = grouped
    step(model, x)
    addresses, is_free = [], buffers._is_free
    model[0].register_forward_hook(
        lambda layer, *_: addresses.append(layer.standardized_weight().data_ptr())
    )
    outs, threads = [], [threading.Thread(target=lambda: outs.append(model(x)))]

    def ask(buffer):
        free = is_free(buffer)
        if threads:
            thread = threads.pop()
            thread.start()
            thread.join()
        return free

    monkeypatch.setattr(buffers, "_is_free", ask)
    outs.append(model(x))
    assert len(set(addresses)) == len(outs) == 2


class Recursive(nn.Module):
    """Passes within a pass: each needs its weight after the inner one has ended."""

    def __init__(self):
        super().__init__()
        self.layer = torch_ws.WSLinear(3, 3)
        self.seen = []

    def forward(self, x, depth=2):
        weight = self.layer.standardized_weight()
        self.seen.append(weight.data_ptr())
        return (self(x, depth - 1) if depth else x) @ weight


def test_passes_within_passes():
    model, x = Recursive(), torch.randn(2, 3)
    torch_ws.group(model)
    for _ in range(2):
        model.seen.clear()
        model(x).sum().backward()
        assert len(set(model.seen)) == 3


def replace(model):
    for i in WATCHED:
        model[i] = copy.deepcopy(model[i])


CHANGES = {
    "dtype": lambda model: model.double(),
    "memory format": lambda model: model.to(memory_format=torch.channels_last),  # 0 and 5 have one
    "layers": replace,
    "device": lambda model: model.to("meta"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_changed_model_has_new_memory(grouped, kind):
    model, _, x, _ = grouped
    before = memory_of(model, x)
    CHANGES[kind](model)
    x = x.detach().to(model[0].weight)
    step(model, x)
    assert is_gone(before[::2] if kind == "memory format" else before)
    if kind != "device":
        assert is_same(memory_of(model, x), memory_of(model, x))


def test_remove_lets_go(grouped):
    model, _, x, handle = grouped
    storages = memory_of(model, x)
    assert not any(storage() is None for storage in storages)
    handle.remove()
    assert is_gone(storages)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_carry_none(grouped, duplicate):
    model, judge, x, _ = grouped
    size = len(pickle.dumps(model))
    before = memory_of(model, x)
    model.zero_grad()
    assert len(pickle.dumps(model)) == size
    other = duplicate(model)
    torch_ws.group(other)
    after = memory_of(other, x)
    assert is_same(memory_of(model, x), before) and not is_same(after, before)
    assert is_same(memory_of(other, x), after) and torch.equal(step(other, x), step(judge, x))


def test_a_trace_has_no_memory_of_the_group(grouped):
    """Else the traced graph would write to a constant, which the group might use meanwhile."""
    model, judge, x, _ = grouped
    step(model, x)
    with torch.no_grad():
        traced = make_fx(model)(x)
        change(model, judge)
        assert torch.equal(traced(x), judge(x))
    assert "_tensor_constant" not in traced.code and "forward_many" in traced.code
    assert torch.equal(step(model, x), step(judge, x))
