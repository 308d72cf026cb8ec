"""hold: what must not happen in a block is noticed, and nothing is added then."""

import copy

import pytest
import torch
import torch_ws
from small_network import (
    assert_close_gradients,
    assert_same_gradients,
    batch,
    loss_of,
    network,
    twins,
)
from torch import nn

# what must not happen between the passes of a block: how it is done, and what the error says
MISUSE = {
    "step": (lambda model, optimizer: optimizer.step(), "parameter.* changed inside"),
    "fused step": (  # which counts no version
        lambda model, _: torch.optim.AdamW(model.parameters(), fused=True).step(),
        "parameter.* changed inside",
    ),
    "zero_grad": (lambda model, optimizer: optimizer.zero_grad(), "gradients were changed inside"),
    "zero_grad to zeros": (
        lambda model, optimizer: optimizer.zero_grad(set_to_none=False),
        "gradients were changed inside",
    ),
    "clip": (
        lambda model, _: nn.utils.clip_grad_norm_(model.parameters(), 1e-3),
        "gradients were changed inside",
    ),
    "load": (
        lambda model, _: model.load_state_dict(network().state_dict()),
        "parameter.* changed inside",
    ),
    "weight": (
        lambda model, _: model.up.weight.detach().mul_(2),
        "parameter.* changed inside",
    ),
    "gain": (lambda model, _: model.stem.gain.detach().mul_(2), "parameter.* changed inside"),
    "memory": (lambda model, _: model.float(), "parameter.* changed inside"),
}


# With a pass after it, and at the end of the block.
@pytest.mark.parametrize("again", [True, False])
@pytest.mark.parametrize("case", MISUSE)
def test_misuse_is_noticed_and_nothing_added(case, again):
    misuse, message = MISUSE[case]
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def block():
        with torch_ws.hold(model):
            loss_of(model, batch()).backward()
            misuse(model, optimizer)
            if again:
                loss_of(model, batch(dtype=model.stem.weight.dtype)).backward()

    with pytest.raises(RuntimeError, match=message):
        block()
    assert model.stem.weight.grad is None and model.up.weight.grad is None
    model.zero_grad()
    judge = copy.deepcopy(model)
    x = batch(dtype=model.stem.weight.dtype)
    loss_of(model, x).backward()  # all as before the block
    loss_of(judge, x).backward()
    assert_same_gradients(model, judge)


def test_zero_grad_at_the_beginning_is_fine():
    model, judge = twins()
    x = batch()
    loss_of(model, x).backward()
    with torch_ws.hold(model):
        model.zero_grad()
        loss_of(model, x).backward()
    loss_of(judge, x).backward()
    assert_close_gradients(model, judge)


def test_an_exception_adds_nothing_and_ends_the_block():
    model = network()
    with pytest.raises(KeyError, match="mine"), torch_ws.hold(model):
        loss_of(model, batch()).backward()
        raise KeyError("mine")
    assert model.stem.weight.grad is None
    assert model.stem.standardized_weight().grad_fn is not None
    with torch_ws.hold(model):  # and another can begin
        loss_of(model, batch()).backward()
    assert model.stem.weight.grad is not None


def test_backward_after_the_block():
    model = network()
    with torch_ws.hold(model):
        loss = loss_of(model, batch())
    with pytest.raises(RuntimeError, match="call backward inside the block"):
        loss.backward()


def test_nesting():
    model = network()
    with torch_ws.hold(model):
        for inner in (model, model.stem):
            with pytest.raises(RuntimeError, match="cannot be nested"), torch_ws.hold(inner):
                pass
        with torch_ws.hold(network()):  # of another model: no nesting
            pass
        loss_of(model, batch()).backward()
    assert model.stem.weight.grad is not None
    block = torch_ws.hold(model)
    with block:
        pass
    with pytest.raises(RuntimeError, match="entered once"), block:
        pass


def test_only_modules():
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got list"):
        torch_ws.hold([nn.Linear(2, 2)])


def test_a_refused_wrapper_leaves_no_hook_on_the_others():
    """Of two models in DistributedDataParallel the second has an option that hold refuses."""
    wrappers = []
    for option in (False, True):
        wrapper = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
        nn.Module.__init__(wrapper)  # without a group of processes
        wrapper.module = network()
        wrapper.static_graph, wrapper.find_unused_parameters = False, option
        wrappers.append(wrapper)
    with pytest.raises(ValueError, match="find_unused_parameters=False"):
        torch_ws.hold(nn.ModuleList(wrappers)).__enter__()
    assert not any(wrapper._forward_pre_hooks for wrapper in wrappers)
