"""group: what the layers compute one by one, to the last bit, from one launch each way."""

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
import torch_ws
from small_network import (
    BUCKETS,
    REACHED,
    SOME,
    Calls,
    assert_like,
    assert_same_gradients,
    batch,
    gradients,
    network,
    step,
)
from torch import nn
from torch_ws.training.batch import standardized_layers


@pytest.mark.parametrize("bucket_mb", BUCKETS)
def test_bitwise_what_the_layers_compute(pair, bucket_mb):
    model, judge, x = pair
    handle = torch_ws.group(model, bucket_mb)
    for _ in range(3):  # the first pass learns what is used
        assert_like(model, judge, x)
    handle.remove()
    with Calls() as calls:
        assert_like(model, judge, x)
    assert "forward_many" not in calls.counts


@pytest.mark.parametrize(("bucket_mb", "buckets"), [(None, 1), (SOME, 3), (1e-9, REACHED)])
def test_one_launch_forward_and_one_a_bucket_backward(pair, bucket_mb, buckets):
    model, _, x = pair
    torch_ws.group(model, bucket_mb)
    step(model, x)
    with Calls() as calls:
        step(model, x)
    assert calls.counts == {"forward_many": 1, "backward_many": buckets}


def test_buckets_are_in_the_order_of_first_use(pair):
    model, _, x = pair
    torch_ws.group(model, SOME)
    for child in reversed(list(model._modules)):  # registered in the opposite order
        model._modules[child] = model._modules.pop(child)
    step(model, x)
    with Calls() as calls:
        step(model, x)
    weights = [[w.shape[0] for w in args[1]] for name, args in calls.arguments if "back" in name]
    # as backward goes: down, whose input channels come first, and head; twice and up; stem
    assert weights == [[6, 5], [4, 6], [4]]


def test_no_bucket_exceeds_the_limit(pair):
    model, _, x = pair
    torch_ws.group(model, SOME)
    step(model, x)
    with Calls() as calls:
        step(model, x)
    for name, args in calls.arguments:
        if name == "backward_many":
            assert sum(8 * w.numel() for w in args[1]) <= SOME * 2**20


def test_gradients_appear_while_the_backward_pass_goes_on(pair):
    """With buckets, a layer's gradient is there before earlier layers run backward."""
    model, _, x = pair
    events = []
    model.head.weight.register_hook(lambda grad: events.append("head"))
    model.stem.weight.register_hook(lambda grad: events.append("stem"))
    model.norm.register_full_backward_hook(lambda *_: events.append("norm"))
    handle = torch_ws.group(model, 1e-9)
    step(model, x)
    assert events == ["head", "norm", "stem"]
    handle.remove()
    events.clear()
    torch_ws.group(model)
    step(model, x)
    assert events[0] == "norm" and set(events[1:]) == {"head", "stem"}


def test_unreached_layers_cost_nothing_once_known(pair):
    model, _, x = pair
    torch_ws.group(model)
    sizes = []
    for _ in range(3):
        with Calls() as calls:
            step(model, x)
        sizes.append([len(args[0]) for _, args in calls.arguments])
    assert sizes == [[REACHED + 1, REACHED], [REACHED] * 2, [REACHED] * 2]
    assert model.unreached.weight.grad is None


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_an_exception_in_forward(pair, kind):
    model, judge, x = pair
    torch_ws.group(model)
    step(model, x)

    def fail(*_):
        raise kind("mine")

    hook = model.down.register_forward_pre_hook(fail)
    with pytest.raises(kind, match="mine"):
        model(x)
    hook.remove()
    assert not any(m._is_provided_for() for m in standardized_layers(model))
    with Calls() as calls:
        step(model, x)
    assert calls.counts == {"forward_many": 1, "backward_many": 1}
    step(judge, x)
    assert_same_gradients(model, judge)


def test_parts_called_alone(pair):
    model, _, x = pair
    torch_ws.group(model)
    step(model, x)
    with Calls() as calls, pytest.warns(UserWarning, match="is not active"):
        model.stem(x).sum().backward()
    assert calls.counts == {"forward": 1, "backward_affine": 1}


def test_a_model_that_calls_itself():
    class Recursive(nn.Module):
        def __init__(self):
            super().__init__()
            self.before = torch_ws.WSLinear(3, 3)
            self.after = torch_ws.WSLinear(3, 3)

        def forward(self, x, depth=2):
            x = self.before(x)
            return self.after(self(x, depth - 1) if depth else x)

    model, x = Recursive(), torch.randn(2, 3)
    judge = copy.deepcopy(model)
    torch_ws.group(model)
    for _ in range(2):
        assert torch.equal(step(model, x), step(judge, x))
        for name, grad in gradients(judge).items():
            torch.testing.assert_close(gradients(model)[name], grad)
    assert not any(m._is_provided_for() for m in standardized_layers(model))


def test_the_class_while_grouped_and_after():
    model = network()
    before, text = type(model), repr(model)
    handle = torch_ws.group(model)
    assert isinstance(model, before) and type(model).__name__ == "Network" and repr(model) == text
    handle.remove()
    assert type(model) is before
    handle = torch_ws.group(model)
    model.__class__ = type("Wrapped", (type(model),), {})  # as fully_shard does
    handle.remove()
    assert type(model).__name__ == "Wrapped"
    with Calls() as calls:
        model(batch())
    assert "forward_many" not in calls.counts


def test_a_model_whose_forward_is_replaced():
    model = network()
    model.forward = lambda x: model.stem(x)
    with pytest.raises(ValueError, match="forward replaced on the instance; Network has"):
        torch_ws.group(model)


def test_grouping_twice():
    model = nn.Sequential(network(), network())
    inner = torch_ws.group(model[0])
    with pytest.raises(RuntimeError, match="Network, which is grouped already"):
        torch_ws.group(model)
    with pytest.raises(RuntimeError, match="group the outermost module, once"):
        torch_ws.group(model[0].stem)
    inner.remove()
    inner.remove()  # harmless
    outer = torch_ws.group(model)
    with pytest.raises(RuntimeError, match="Sequential, which is grouped already"):
        torch_ws.group(model[1])
    outer.remove()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.randn(3),), TypeError, "model must be a torch.nn.Module, got Tensor"),
        ((nn.Identity(), "25"), TypeError, "bucket_mb must be a number or None, got str"),
        ((nn.Identity(), True), TypeError, "bucket_mb must be a number or None, got bool"),
        ((nn.Identity(), 0), ValueError, "bucket_mb must be positive, got 0"),
        ((nn.Identity(), float("nan")), ValueError, "bucket_mb must be positive, got nan"),
    ],
)
def test_errors(arguments, error, message):
    with pytest.raises(error, match=message):
        torch_ws.group(*arguments)


def save_and_load(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, save_and_load, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_copies_are_not_grouped_and_hold_no_results(pair, duplicate):
    model, judge, x = pair
    keys = list(model.state_dict())
    handle = torch_ws.group(model)
    out = model(x)  # its graph is alive
    assert list(model.state_dict()) == keys
    other = duplicate(model)
    with Calls() as calls:
        assert torch.equal(other(x), out)
    assert "forward_many" not in calls.counts
    torch_ws.group(other)
    for _ in range(2):
        assert_like(other, judge, x)
    handle.remove()


def test_results_die_with_the_graph(pair):
    model, _, x = pair
    torch_ws.group(model)
    results = []
    model.stem.register_forward_hook(
        lambda layer, *_: results.append(weakref.ref(layer.standardized_weight()))
    )
    gc.disable()  # at once, and not when cycles are looked for
    try:
        with torch.no_grad():
            model(x)
        assert results.pop()() is None
        out = model(x)
        assert results[-1]() is not None
        out.square().sum().backward()
        del out
        assert results.pop()() is None
    finally:
        gc.enable()


def test_the_model_dies_with_its_last_reference():
    model = network()
    handle = torch_ws.group(model)
    step(model, batch())
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None
    handle.remove()  # harmless


def test_memory_is_the_standardized_weights(pair):
    """The launch's results are the only tensors of a weight's size that a pass adds."""
    model, _, x = pair
    torch_ws.group(model)
    step(model, x)
    sizes = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if function.namespace == "ws":
                sizes.extend(t.numel() for t in out)
            return out

    with Sizes():
        model(x)
    reached = [m for m in model.modules() if hasattr(m, "formula") and m is not model.unreached]
    assert sum(sizes) == sum(m.weight.numel() for m in reached)
