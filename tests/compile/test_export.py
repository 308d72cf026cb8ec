"""Programs made from models: torch.export, AOTInductor, TorchScript; elsewhere without torch_ws."""

import other_process
import pytest
import torch
import torch_ws
from architectures import ARCHITECTURES
from conversions import RTOL, close, converted
from torch_ws.training.batch import standardized_layers


def called(program):
    return {str(n.target) for n in program.graph.nodes if n.op == "call_function"}


# traced through Python, or through its bytecode
@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_export_keeps_the_op_and_computes_the_same(name, strict, tmp_path):
    model, x, expected = converted(name)
    program = torch.export.export(model, (x,), strict=strict)
    assert "ws.standardize.default" in called(program)
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    close(
        loaded(x), expected
    )  # a transformer's attention is another one where gradients are needed
    for key, parameter in model.named_parameters():
        assert torch.equal(loaded.get_parameter(key), parameter)
    below_autograd = program.run_decompositions()
    assert "ws.forward.default" in called(below_autograd)
    close(below_autograd.module()(x), expected)


def test_export_of_a_grouped_model_has_one_call_and_sees_the_parameters_it_is_given():
    model, x, expected = converted("unet 2-d", grouped=True)
    program = torch.export.export(model, (x,))
    ours = [n for n in program.graph.nodes if "ws." in str(n.target)]
    assert [str(n.target) for n in ours] == ["ws.standardize_many.default"]
    loaded = program.module()
    assert torch.equal(loaded(x), expected)
    with torch.no_grad():
        for net in (loaded, model):
            net.get_parameter("head.gain").mul_(2)
        assert torch.equal(loaded(x), model(x)) and not torch.equal(loaded(x), expected)
    assert not any(m._is_provided_for() for m in standardized_layers(model))


def test_export_with_a_batch_of_any_size():
    model, x, _ = converted("resnet")
    sizes = ({0: torch.export.Dim("batch", min=1, max=64)},)
    program = torch.export.export(model, (x,), dynamic_shapes=sizes)
    more = torch.cat([x, x + 1, x - 1])
    close(program.module()(more), model(more))


def test_an_exported_program_can_be_trained():
    model, x, _ = converted("unet 2-d")
    trained = torch.export.export(model, (x,)).module()
    expected = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    grads = torch.autograd.grad(trained(x).square().sum(), list(trained.parameters()))
    for grad, other in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad, other)


@pytest.mark.slow
@pytest.mark.parametrize("grouped", [False, True])  # the op and its list form
@pytest.mark.parametrize("below_autograd", [False, True])  # ws::standardize, or ws::forward
def test_decomposed_it_runs_where_torch_ws_is_not(grouped, below_autograd, tmp_path):
    model, x, expected = converted("unet 2-d", grouped)
    program = torch.export.export(model, (x,))
    if below_autograd:
        program = program.run_decompositions()
    plain = program.run_decompositions(torch_ws.decompositions())
    assert not any("ws." in target for target in called(plain))
    torch.export.save(plain, tmp_path / "model.pt2")
    torch.save((x, expected), tmp_path / "expected.pt")
    code = """
import sys, torch
x, expected = torch.load(sys.argv[2])
out = torch.export.load(sys.argv[1]).module()(x)
print(((out - expected).abs().max() / expected.abs().max()).item())
"""
    (error,) = other_process.run(
        code, tmp_path / "model.pt2", tmp_path / "expected.pt", torch_ws=False
    )
    assert float(error) <= RTOL


def test_the_table_of_decompositions_is_a_copy():
    torch_ws.decompositions().clear()
    assert torch.ops.ws.standardize.default in torch_ws.decompositions()


@pytest.mark.slow
def test_aotinductor_packages_and_loads(tmp_path, monkeypatch):
    # where inductor refuses ops that PyTorch's own table has a decomposition of
    monkeypatch.setenv("CI", "true")
    model, x, expected = converted("unet 2-d")
    with torch.no_grad():
        program = torch.export.export(model, (x,))
        path = torch._inductor.aoti_compile_and_package(
            program, package_path=str(tmp_path / "model.pt2")
        )
    torch.save((x, expected), tmp_path / "expected.pt")
    code = """
import sys, torch, torch_ws  # the package calls its kernels
x, expected = torch.load(sys.argv[2])
out = torch._inductor.aoti_load_package(sys.argv[1])(x)
print(((out - expected).abs().max() / expected.abs().max()).item())
"""
    (error,) = other_process.run(code, path, tmp_path / "expected.pt")
    assert float(error) <= RTOL


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # sizes become constants
@pytest.mark.parametrize("grouped", [False, True])  # whose list op TorchScript has no type for
@pytest.mark.parametrize("trainable", [False, True])  # without and with an autograd node
def test_torchscript_traces_save_and_load(grouped, trainable, tmp_path):
    model, x, expected = converted("unet 2-d", grouped)
    model.requires_grad_(trainable)
    torch.jit.trace(model, x).save(tmp_path / "model.ts")
    loaded = torch.jit.load(tmp_path / "model.ts")
    assert "ws::standardize" in {node.kind() for node in loaded.inlined_graph.nodes()}
    assert torch.equal(loaded(x), expected)
    if trainable:  # the traced program has our derivative
        loaded(x).square().sum().backward()
        model(x).square().sum().backward()
        for (name, ours), traced in zip(model.named_parameters(), loaded.parameters(), strict=True):
            torch.testing.assert_close(traced.grad, ours.grad, msg=name)
