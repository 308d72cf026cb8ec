"""parametrize: the reference's values and gradients for any tensor, and torch's own handling."""

import copy
import pickle

import pytest
import torch
import torch_ws
from parametrized import (
    CASES,
    FAN_IN,
    RECURRENT,
    assert_follows_its_weights,
    flat,
    loss,
    parametrized,
    standardized_by_reference,
)
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrize as torch_parametrize
from torch.nn.utils.parametrize import remove_parametrizations

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


@pytest.mark.parametrize("options", [{}, {**FAN_IN, "gain": True, "shift": True}])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_the_references(case, options):
    module, plain, names, inputs, channel_dim = parametrized(case, **options)
    judged = standardized_by_reference(module, names, channel_dim)
    for _ in range(2):  # recurrent layers read their weights anew for the second pass
        module.zero_grad()
        actual = module(*inputs)
        loss(actual).backward()
    expected = functional_call(plain, {n: tensor for n, (_, tensor) in judged.items()}, inputs)
    torch.testing.assert_close(flat(actual), flat(expected))
    loss(expected).backward()
    for name, (leaves, tensor) in judged.items():
        held = module.parametrizations[name]
        torch.testing.assert_close(getattr(module, name), tensor)
        if not isinstance(held.original, nn.Parameter):
            continue  # a buffer: no gradient
        tensors = [held.original, held[0].gain, held[0].shift]
        for leaf, ours in zip(leaves, tensors, strict=True):
            assert (leaf is None) == (ours is None)
            if leaf is not None:
                torch.testing.assert_close(ours.grad, leaf.grad)


# one group in dimension 1; groups; depthwise; one output channel a group
@pytest.mark.parametrize(("inputs", "outputs", "groups"), [(4, 6, 1), (4, 6, 2), (4, 8, 4)])
def test_transposed_convolutions_as_the_layer(inputs, outputs, groups):
    options = {**FAN_IN, "gain": True}
    layer = torch_ws.WSConvTranspose2d(inputs, outputs, 3, groups=groups, **options)
    ours = nn.ConvTranspose2d(inputs, outputs, 3, groups=groups)
    torch_ws.parametrize(ours, **options)
    with torch.no_grad():
        layer.gain.normal_()
        ours.weight = layer.weight.clone()
        ours.parametrizations.weight[0].gain.copy_(layer.gain)
    assert torch.equal(ours.weight, layer.standardized_weight())
    plain = nn.ConvTranspose2d(inputs, outputs, 3, groups=groups)
    torch_ws.parametrize(plain, channel_dim=0)  # a dimension that is given is taken as it is
    original = plain.parametrizations.weight.original
    assert torch.equal(plain.weight, torch_ws.standardize(original))


@pytest.mark.parametrize("mode", ["grad", "no_grad", "cached"])
@pytest.mark.parametrize("case", RECURRENT)
def test_recurrent_layers_do_not_go_on_with_old_weights(case, mode):
    """RNNBase keeps a list of its weights, to be made anew after whatever changes one."""
    module, plain, names, inputs, dim = parametrized(case, **FAN_IN, gain=True)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)

    def judge():
        with torch.set_grad_enabled(mode != "no_grad"):
            if mode != "cached":
                return assert_follows_its_weights(module, plain, names, inputs, dim)
            with torch_parametrize.cached():
                return assert_follows_its_weights(module, plain, names, inputs, dim)

    judge()
    loss(module(*inputs)).backward()
    optimizer.step()
    judge()
    state = {key: torch.randn_like(tensor) for key, tensor in module.state_dict().items()}
    module.load_state_dict(state)
    judge()
    module.float(), plain.float()
    inputs = tuple(x.float() for x in inputs)
    judge()
    setattr(module, names[0], torch.randn_like(getattr(module, names[0])))
    judge()
    for name in names:
        kept = getattr(module, name).detach().clone()
        remove_parametrizations(module, name)
        assert torch.equal(getattr(module, name), kept)
    expected = functional_call(plain, dict(module.named_parameters()), inputs)
    torch.testing.assert_close(flat(module(*inputs)), flat(expected))


def test_cached_computes_once():
    module = nn.LSTM(4, 5)
    torch_ws.parametrize(module, "weight_hh_l0")
    calls = []
    module.parametrizations.weight_hh_l0[0].register_forward_hook(lambda *_: calls.append(1))
    x = torch.randn(3, 2, 4)
    expected = module(x)[0]
    calls.clear()
    with torch_parametrize.cached():
        for _ in range(2):
            assert torch.equal(module(x)[0], expected)
    assert len(calls) == 1


@pytest.mark.parametrize("leave", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_removed_by_torch(case, leave):
    module, plain, names, inputs, _ = parametrized(case, gain=True)
    originals = {name: module.parametrizations[name].original for name in names}
    weights = {name: getattr(module, name).detach().clone() for name in names}
    expected = flat(module(*inputs)) if leave else flat(plain(*inputs))
    for name in names:
        remove_parametrizations(module, name, leave_parametrized=leave)
    assert type(module) is type(plain) and set(module.state_dict()) == set(plain.state_dict())
    for name in names:
        assert getattr(module, name) is originals[name]  # the object that optimizers know
        assert torch.equal(getattr(module, name), weights[name] if leave else getattr(plain, name))
    torch.testing.assert_close(flat(module(*inputs)), expected)


@pytest.mark.parametrize("case", CASES)
def test_copies_and_state_dicts(case):
    module, _, names, inputs, _ = parametrized(case, gain=True, shift=True)
    twin = copy.deepcopy(module)  # of recurrent layers: before their first pass
    expected = flat(module(*inputs))
    assert all(torch.equal(a, b) for a, b in zip(flat(twin(*inputs)), expected, strict=True))
    other = parametrized(case, gain=True, shift=True)[0]
    other.load_state_dict(module.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(flat(other(*inputs)), expected, strict=True))
    with torch.no_grad():
        module(*inputs)
        copy.deepcopy(module)  # or after a pass without gradients
        twin.parametrizations[names[0]].original.add_(torch.randn(()))
        assert torch.equal(flat(module(*inputs))[0], expected[0])
    with pytest.raises(RuntimeError, match="only supported through state_dict"):
        pickle.dumps(module)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", ["linear", "embedding", "lstm", "cell", "attention"])
def test_the_tensor_keeps_its_dtype_under_autocast(case, dtype):
    make, names, inputs = CASES[case]
    module = make()
    plain = copy.deepcopy(module)
    for name in names:
        torch_ws.parametrize(module, name, FAN_IN["formula"])
    weights = {name: getattr(module, name).detach() for name in names}
    with torch.autocast("cpu", dtype=dtype), torch.no_grad():
        for name in names:
            assert torch.equal(getattr(module, name), weights[name])
        x = inputs()
        actual, expected = module(*x), functional_call(plain, weights, x)
    for ours, theirs in zip(flat(actual), flat(expected), strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


@pytest.mark.parametrize(
    "case", [case for case in CASES if case not in ("lstm", "gru", "rnn")]
)  # those torch.compile does not take
def test_compiled_whole(case):
    torch._dynamo.reset()
    module, _, names, inputs, _ = parametrized(case, gain=True)
    fast = torch.compile(module, fullgraph=True, backend="aot_eager")
    results = []
    for run in (module, fast):
        module.zero_grad()
        out = run(*inputs)
        loss(out).backward()
        held = [p for name in names for p in module.parametrizations[name].parameters()]
        results.append((flat(out), [p.grad for p in held if p.grad is not None]))
    torch.testing.assert_close(results[1], results[0])
