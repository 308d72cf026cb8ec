"""The eval cache and memory: written by others, by optimizers that count no version, given back."""

import copy
import gc
import weakref

import pytest
import torch
import torch.multiprocessing
import torch_ws
from torch import nn
from torch_ws import standardize


def network():
    model = nn.Sequential(torch_ws.WSConv2d(3, 8, 3), nn.ReLU(), torch_ws.WSConv2d(8, 4, 1))
    return model.eval()


def kept(layer):
    with torch.no_grad():
        return layer.standardized_weight() is layer.standardized_weight()


def assert_right(layer):
    with torch.no_grad():
        expected = standardize(layer.weight, layer.gain, layer.shift)
        assert torch.equal(layer.standardized_weight(), expected)


def write(weight):
    with torch.no_grad():
        weight.normal_()


def test_shared_memory_that_another_process_writes():
    layer = torch_ws.WSConv2d(3, 4, 3).share_memory().eval()
    assert_right(layer)
    before = layer.weight.clone()
    context = torch.multiprocessing.get_context("fork")
    process = context.Process(target=write, args=(layer.weight,))
    process.start()
    process.join()
    assert not torch.equal(layer.weight, before)
    assert_right(layer)
    assert not kept(layer)


def test_memory_that_is_shared_after_a_result_was_kept():
    layer = torch_ws.WSConv2d(3, 4, 3).eval()
    assert kept(layer)
    layer.share_memory()
    assert not kept(layer)


def by_utility(parameters):
    flat = nn.utils.parameters_to_vector(parameters).detach()
    nn.utils.vector_to_parameters(flat, parameters)
    return flat


def by_data(parameters):  # as large as the only parameter: its size does not tell
    parameter = parameters[0]
    flat = torch.randn(parameter.numel())
    parameter.data = flat.view_as(parameter)
    return flat


def by_views(parameters):  # one of whose neighbours is written
    flat = torch.randn(sum(p.numel() for p in parameters))
    begin = 0
    for parameter in parameters:
        parameter.data = flat[begin : begin + parameter.numel()].view_as(parameter)
        begin += parameter.numel()
    return flat


@pytest.mark.parametrize("make_flat", [by_utility, by_data, by_views])
def test_parameters_that_are_views_of_one_vector(make_flat):
    layer = torch_ws.WSConv2d(3, 4, 3).eval()
    assert kept(layer)
    flat = make_flat(list(layer.parameters()))
    for _ in range(2):
        assert_right(layer)
        flat.normal_()  # counts a version of its own
    assert_right(layer)
    assert not kept(layer)


def test_a_gain_of_shared_memory():
    layer = torch_ws.WSConv2d(3, 4, 3, gain=True).eval()
    values = torch.ones(4)
    layer.gain.data = values
    assert_right(layer)
    values.fill_(3)
    assert_right(layer)


def test_aliases_that_only_last_a_while():
    layer = torch_ws.WSConv2d(3, 4, 3).eval()
    state = layer.state_dict()
    assert not kept(layer)
    del state
    assert kept(layer)


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9, fused=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.5, fused=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.5, fused=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.5, fused=True),
    "foreach": lambda p: torch.optim.AdamW(p, lr=0.5, foreach=True),
}


class Raw(torch.optim.Optimizer):
    """Writes past the version counter, as extensions with kernels of their own do."""

    def __init__(self, parameters):
        super().__init__(parameters, {})

    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.sub_(parameter.grad)


@pytest.mark.parametrize("name", [*OPTIMIZERS, "raw"])
def test_a_step_of_an_optimizer_that_counts_no_version(name):
    model, x = network(), torch.randn(2, 3, 8, 8)
    optimizer = OPTIMIZERS.get(name, Raw)(model.parameters())
    for _ in range(2):
        with torch.no_grad():
            before = model(x)
        assert kept(model[0]) and kept(model[2])
        optimizer.zero_grad()
        (model(x) - 1).square().mean().backward()
        optimizer.step()
        with torch.no_grad():
            assert not torch.equal(model(x), before)
        assert_right(model[0])
        assert_right(model[2])


@pytest.fixture
def swapping():
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(before)


def test_tensors_that_pytorch_swaps(swapping):
    """It swaps none that somebody refers to weakly."""
    layer, other = torch_ws.WSConv2d(3, 4, 3).eval(), torch_ws.WSConv2d(3, 4, 3)
    assert kept(layer)
    layer.load_state_dict(other.state_dict())
    assert_right(layer)
    assert kept(layer)
    layer.double()
    assert_right(layer)
    assert layer.standardized_weight().dtype == torch.float64


def test_a_step_leaves_graphs_of_other_parameters_alone():
    model, other = network(), nn.Linear(3, 3)
    optimizer = torch.optim.SGD([*model.parameters(), *other.parameters()], lr=0.1, fused=True)
    with torch.no_grad():
        model(torch.randn(2, 3, 8, 8))
    loss = model(torch.randn(2, 3, 8, 8)).sum()
    other(torch.randn(2, 3)).sum().backward()
    optimizer.step()  # which changes nothing of the model's: it has no gradients
    loss.backward()
    assert model[0].weight.grad is not None


@pytest.mark.parametrize("replace", ["parameter", "data", "layer"])
def test_nothing_keeps_what_was_replaced(replace):
    layer = torch_ws.WSConv2d(3, 4, 3).eval()
    with torch.no_grad():
        result = weakref.ref(layer.standardized_weight())
    memory = weakref.ref(layer.weight.untyped_storage())
    assert result() is not None
    gc.disable()  # at once, not at the next collection
    try:
        if replace == "parameter":
            layer._parameters["weight"] = nn.Parameter(torch.empty(4, 3, 3, 3, device="meta"))
        elif replace == "data":
            layer.weight.data = torch.empty(0)
        else:
            del layer
        assert result() is None and memory() is None
    finally:
        gc.enable()


def test_other_memory_at_the_same_address():
    layer, memory = torch_ws.WSConv2d(3, 4, 3).eval(), bytearray(4 * 3 * 3 * 3 * 4)
    address = None
    for value in (1.0, 2.0):
        values = torch.arange(108.0).pow(value)
        memory[:] = values.numpy().tobytes()
        layer.weight.data = torch.frombuffer(memory, dtype=torch.float32).view(4, 3, 3, 3)
        assert address in (None, layer.weight.data_ptr())
        address = layer.weight.data_ptr()
        assert_right(layer)
        assert kept(layer)


def test_frozen_layers_in_train_mode():
    model = network().train()
    model[0].requires_grad_(False)
    result = model[0].standardized_weight()
    assert model[0].standardized_weight() is result  # with gradients enabled
    assert not kept(model[2])
    write(model[0].weight)
    assert_right(model[0])
    model[0].requires_grad_()
    assert model[0].standardized_weight().requires_grad


# a gain that is trained over a frozen weight, and the other way round
@pytest.mark.parametrize("name", ["weight", "gain", "shift"])
def test_layers_frozen_in_part_are_standardized_in_every_pass(name):
    layer = torch_ws.WSConv2d(3, 4, 3, gain=True, shift=True).requires_grad_(False)
    assert layer.standardized_weight() is layer.standardized_weight()
    getattr(layer, name).requires_grad_()
    assert layer.standardized_weight() is not layer.standardized_weight()
    assert layer.standardized_weight().requires_grad


def test_frozen_layers_in_a_group_and_in_hold():
    model, x = network().train(), torch.randn(2, 3, 8, 8)
    model[0].requires_grad_(False)
    judge = network().train()
    judge.load_state_dict(model.state_dict())
    torch_ws.group(model)
    for _ in range(2):
        assert torch.equal(model(x), judge(x))
        write(model[0].weight)
        judge.load_state_dict(model.state_dict())
    with torch_ws.hold(model):
        model(x).sum().backward()
    judge(x).sum().backward()
    torch.testing.assert_close(model[2].weight.grad, judge[2].weight.grad)
    assert model[0].weight.grad is None


class TestSwitch:
    @pytest.fixture(autouse=True)
    def restore(self):
        yield
        torch_ws.eval_cache(True)

    def test_of_a_layer(self):
        model = network()
        model[0].eval_cache = False
        assert not kept(model[0]) and kept(model[2])

    def test_of_a_model(self):
        model = network()
        with torch.no_grad():
            model(torch.randn(1, 3, 8, 8))
        torch_ws.eval_cache(False, model)
        assert not kept(model[0]) and not kept(model[2]) and kept(network()[0])
        model[0].weight.data.normal_()  # which nothing counts
        assert_right(model[0])
        torch_ws.eval_cache(True, model)
        assert kept(model[0])

    def test_of_the_process(self):
        model = network()
        assert kept(model[0])
        torch_ws.eval_cache(False)
        assert not kept(model[0]) and not kept(network()[0])
        torch_ws.eval_cache(True, model[0])  # a layer's own setting goes first
        assert kept(model[0]) and not kept(model[2])

    def test_it_stays_in_copies_and_leaves_with_fold(self):
        model = network()
        torch_ws.eval_cache(False, model)
        assert not kept(copy.deepcopy(model)[0])
        assert "eval_cache" not in vars(torch_ws.fold(model)[0])

    @pytest.mark.parametrize(("arguments", "name"), [((1,), "enabled"), ((True, "m"), "model")])
    def test_wrong_types(self, arguments, name):
        with pytest.raises(TypeError, match=f"{name} must be"):
            torch_ws.eval_cache(*arguments)
