"""The standardized weight that eval mode keeps: reused while it is right, and only then."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
import torch_ws
from torch import nn
from torch_ws import standardize


def make(**options):
    layer = torch_ws.WSConv2d(4, 6, 3, **options).eval()
    for parameter in layer.parameters():
        parameter.requires_grad_(False)
    return layer


def expected(layer, **options):
    return standardize(layer.weight, layer.gain, layer.shift, formula=layer.formula, **options)


def test_reused_in_eval_mode_without_gradients():
    layer = torch_ws.WSConv2d(4, 6, 3).eval()
    with torch.no_grad():
        first = layer.standardized_weight()
        assert layer.standardized_weight() is first
        assert torch.equal(first, expected(layer))
    layer.requires_grad_(False)  # nothing to differentiate: grad mode may be on
    assert layer.standardized_weight() is first


@pytest.mark.parametrize("cls", [torch_ws.WSConvTranspose2d, torch_ws.WSLinear])
def test_every_kind_of_layer(cls):
    arguments = (4, 6) if cls is torch_ws.WSLinear else (4, 6, 3, 1, 0, 0, 2)
    layer = cls(*arguments)
    fresh = layer.standardized_weight()
    with torch.no_grad():
        layer.eval()
        assert torch.equal(layer.standardized_weight(), fresh)
        assert layer.standardized_weight() is layer.standardized_weight()


def test_not_in_train_mode_nor_with_gradients():
    layer = torch_ws.WSConv2d(4, 6, 3)
    with torch.no_grad():
        assert layer.standardized_weight() is not layer.standardized_weight()
    layer.eval()
    with torch.no_grad():
        kept = layer.standardized_weight()
    result = layer.standardized_weight()
    assert result is not kept and result.grad_fn is not None


def sgd_step(layer):
    layer.requires_grad_()
    (layer.standardized_weight() ** 3).sum().backward()
    torch.optim.SGD(layer.parameters(), lr=1.0).step()
    layer.requires_grad_(False)


def replaced(name):
    def change(layer):
        setattr(layer, name, nn.Parameter(torch.randn_like(getattr(layer, name)), False))

    return change


def in_place(name):
    return lambda layer: getattr(layer, name).mul_(torch.randn_like(getattr(layer, name)))


def other_state(layer):
    return {key: torch.randn_like(value) for key, value in layer.state_dict().items()}


def in_inference_mode(layer):
    with torch.inference_mode():
        layer.weight.add_(torch.randn_like(layer.weight))


def swapped_data(layer):
    layer.weight.data = torch.randn_like(layer.weight)


def swapped_data_at_a_reused_address(layer):
    for _ in range(20):  # the allocator would soon give the first address out again
        layer.weight.data = torch.randn_like(layer.weight)


def other_formula(layer):
    layer.formula = torch_ws.formulas["nfnet"]


# how a layer can come to another standardized weight: what must be noticed
CHANGES = {
    "an optimizer's step": sgd_step,
    "weight in place": in_place("weight"),
    "gain in place": in_place("gain"),
    "shift in place": lambda layer: layer.shift.add_(1),
    "through an alias": lambda layer: layer.weight.detach()[1].add_(torch.randn(4, 3, 3)),
    "in inference mode": in_inference_mode,
    "load_state_dict": lambda layer: layer.load_state_dict(other_state(layer)),
    "load_state_dict, assigned": lambda layer: layer.load_state_dict(
        other_state(layer), assign=True
    ),
    "another weight": replaced("weight"),
    "another gain": replaced("gain"),
    "another shift": replaced("shift"),
    "another memory": swapped_data,
    "other memory, many times": swapped_data_at_a_reused_address,
    "another formula": other_formula,
    "dtype": lambda layer: layer.double(),
    "memory format": lambda layer: layer.to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed(change):
    layer = make(gain=True, shift=True)
    before = layer.standardized_weight()
    CHANGES[change](layer)
    after = layer.standardized_weight()
    assert after is not before
    assert torch.equal(after, expected(layer))
    assert after.stride() == layer.weight.stride() and after.dtype == layer.weight.dtype
    assert layer.standardized_weight() is after


def test_autocast_is_part_of_the_key():
    layer = make()
    plain = layer.standardized_weight()
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            result = layer.standardized_weight()
            assert result is layer.standardized_weight()
        assert torch.equal(result, expected(layer, dtype=dtype))
    assert torch.equal(layer.standardized_weight(), plain)


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_train_and_eval_drop_it(mode):
    layer = make()
    kept = weakref.ref(layer.standardized_weight())
    gc.collect()
    assert kept() is not None
    nn.Sequential(layer).train(mode)  # from the root down
    assert kept() is None


def test_moving_the_module_lets_go_of_the_memory():
    layer = make()
    kept = weakref.ref(layer.standardized_weight())
    layer.double()
    assert kept() is None


def test_writes_through_data_need_eval():
    """PyTorch counts no version for them: the documented way is to call eval() again."""
    layer = make()
    layer.standardized_weight()
    layer.weight.data.mul_(torch.randn_like(layer.weight))
    assert not torch.equal(layer.standardized_weight(), expected(layer))
    layer.eval()
    assert torch.equal(layer.standardized_weight(), expected(layer))


def test_a_parameter_that_comes_back_with_other_values():
    """As fully_shard does it: the same parameter at the same address, and no version counted."""
    layer = make()
    gathered, sharded = layer.weight, nn.Parameter(torch.zeros(0), requires_grad=False)
    kept = weakref.ref(layer.standardized_weight())
    layer.weight = sharded
    assert kept() is None
    gathered.data.mul_(torch.randn_like(gathered))
    layer.weight = gathered
    assert torch.equal(layer.standardized_weight(), expected(layer))


def test_a_result_that_was_written_to_is_not_used_again():
    layer = make()
    layer.standardized_weight().zero_()
    assert torch.equal(layer.standardized_weight(), expected(layer))


def test_made_in_inference_mode_used_outside():
    layer = make()
    with torch.inference_mode():
        kept = layer.standardized_weight()
        assert layer.standardized_weight() is kept
    x = torch.randn(1, 4, 5, 5, requires_grad=True)
    layer(x).sum().backward()  # saves the kept weight for x's gradient
    assert layer.standardized_weight() is kept
    assert x.grad.abs().sum() > 0


def test_inference_tensors_have_no_version_and_are_not_kept():
    with torch.inference_mode():
        layer = torch_ws.WSConv2d(4, 6, 3).eval()
        layer.standardized_weight()
        layer.weight.mul_(torch.randn_like(layer.weight))
        assert torch.equal(layer.standardized_weight(), expected(layer))


def test_no_part_of_copies_and_checkpoints():
    layer = make()
    keys, size = list(layer.state_dict()), len(pickle.dumps(layer))
    layer.standardized_weight()
    assert list(layer.state_dict()) == keys
    assert len(pickle.dumps(layer)) == size
    other = copy.deepcopy(layer)
    assert "_cached" not in other.__dict__
    in_place("weight")(other)
    assert torch.equal(other.standardized_weight(), expected(other))


def test_functional_call_brings_its_own_weight():
    layer = make()
    x = torch.randn(1, 4, 5, 5)
    before = layer(x)
    kept = layer.standardized_weight()
    weights = torch.randn(3, *layer.weight.shape)

    def call(weight):
        return torch.func.functional_call(layer, {"weight": weight}, (x,))

    for weight in weights:
        out = torch.nn.functional.conv2d(x, standardize(weight), layer.bias)
        torch.testing.assert_close(call(weight), out)
    torch.testing.assert_close(
        torch.func.vmap(call)(weights), torch.stack([call(w) for w in weights])
    )
    assert layer.standardized_weight() is kept  # other weights do not displace it
    assert torch.equal(layer(x), before)


def test_a_parametrized_weight_is_computed_anew():
    class Twice(nn.Module):
        def forward(self, weight):
            return 2 * weight + torch.arange(3.0)

    layer = make()
    nn.utils.parametrize.register_parametrization(layer, "weight", Twice())
    layer.eval()
    layer.standardized_weight()
    layer.parametrizations.weight.original.data.mul_(torch.randn(6, 4, 3, 3))
    assert torch.equal(layer.standardized_weight(), standardize(layer.weight))


@pytest.mark.parametrize("capture", ["export", "trace"])
def test_captured_graphs_compute_it(capture):
    """What a tracer records must not have today's values in it."""
    layer = make()
    x = torch.randn(1, 4, 5, 5)
    layer(x)
    if capture == "export":
        program = torch.export.export(layer, (x,))
        captured = program.module()
        weight = captured.weight
    else:
        captured = torch.jit.trace(layer, x, check_trace=False)
        weight = captured.weight
    with torch.no_grad():
        weight.copy_(torch.randn_like(weight))
    out = torch.nn.functional.conv2d(x, standardize(weight.detach()), layer.bias)
    torch.testing.assert_close(captured(x), out)
