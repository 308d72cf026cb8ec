"""ONNX: exported as it is or folded first, a model gives the same numbers in onnxruntime."""

import copy

import pytest
import torch
import torch_ws
from architectures import ARCHITECTURES, UNet
from conversions import close, converted, quietly
from torch import nn

pytestmark = pytest.mark.slow

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
onnxscript = pytest.importorskip("onnxscript")

# what standardization consists of, and the rest of these models does not contain
STANDARDIZATION = {"ReduceSum", "Sqrt", "Where"}


def export(model, x):
    return torch.onnx.export(model, (x,), dynamo=True, verbose=False)


def operations(program):
    onnx.checker.check_model(program.model_proto)
    return {node.op_type for node in program.model_proto.graph.node}


def run(program, x, tmp_path):
    program.save(str(tmp_path / "model.onnx"))
    return run_file(tmp_path / "model.onnx", x)


def run_file(path, x):
    """The result for x; what onnxruntime made of the file is beside it, in optimized.onnx."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path.with_name("optimized.onnx"))
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return torch.from_numpy(out)


# The transformer has such operations of its own.
@pytest.mark.parametrize("name", [n for n in ARCHITECTURES if n != "transformer"])
def test_the_exporter_knows_our_ops_and_folds_them_into_constants(name, tmp_path):
    model, x, expected = converted(name)
    program = export(model, x)
    assert not operations(program) & STANDARDIZATION
    close(run(program, x, tmp_path), expected)


@pytest.mark.parametrize("grouped", [False, True])  # the op and its list form
def test_from_an_exported_program(grouped, tmp_path):
    model, x, expected = converted("unet 2-d", grouped)
    exported = torch.export.export(model, (x,)).run_decompositions(torch_ws.decompositions())
    program = torch.onnx.export(exported, (x,), dynamo=True, verbose=False)
    assert not operations(program) & STANDARDIZATION
    close(run(program, x, tmp_path), expected)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::UserWarning")
@pytest.mark.parametrize("dynamo", [False, True])  # the older exporter, and today's
def test_a_grouped_model(dynamo, tmp_path):
    model, x, expected = converted("unet 2-d", grouped=True)
    if dynamo:
        close(run(export(model, x), x, tmp_path), expected)
        return
    torch.onnx.export(model, (x,), str(tmp_path / "older.onnx"), dynamo=False)
    close(run_file(tmp_path / "older.onnx", x), expected)


def test_a_transformer(tmp_path):
    model, x, expected = converted("transformer")
    close(run(export(model, x), x, tmp_path), expected)


def large():
    """A weight of 2**13 + 2**10 elements: the exporter computes with constants of up to 2**13."""
    model = nn.Sequential(nn.Conv2d(72, 128, 1), nn.GroupNorm(4, 128)).eval()
    return quietly(model, "timm"), torch.randn(1, 72, 4, 4)


def test_large_weights_are_folded_where_the_optimizer_is_told_to(tmp_path):
    model, x = large()
    program = export(model, x)
    assert operations(program) & STANDARDIZATION
    close(run(program, x, tmp_path), model(x).detach())
    at_run_time = {node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node}
    assert not at_run_time & STANDARDIZATION  # onnxruntime has done it, once, when it loaded
    everything = 2**40  # elements
    onnxscript.optimizer.optimize_ir(
        program.model, input_size_limit=everything, output_size_limit=everything
    )
    assert not operations(program) & STANDARDIZATION
    close(run(program, x, tmp_path), model(x).detach())


def test_folded_before_it_is_a_plain_model(tmp_path):
    model, x = large()
    program = export(torch_ws.fold(copy.deepcopy(model)), x)
    assert not operations(program) & STANDARDIZATION
    close(run(program, x, tmp_path), model(x).detach())


def test_strided_same_padding_that_fold_refuses_is_exported(tmp_path):
    model = nn.Sequential(torch_ws.WSConv2d(1, 4, 3, stride=2, padding="same"), nn.ReLU()).eval()
    x = torch.randn(1, 1, 9, 8)
    with pytest.raises(ValueError, match="same"):
        torch_ws.fold(copy.deepcopy(model))
    close(run(export(model, x), x, tmp_path), model(x).detach())


def test_a_bfloat16_result_of_a_float32_weight(tmp_path):
    """Autocast's dtype, which the op writes directly, becomes a cast."""
    model, x = quietly(UNet(2)).eval(), torch.randn(2, 1, 16, 16)
    with torch.autocast("cpu", dtype=torch.float16), torch.no_grad():
        expected = model(x).float()
        program = export(model, x)
    assert "Cast" in operations(program)
    out = run(program, x, tmp_path).float()
    assert (out - expected).abs().max() <= 2**-7 * expected.abs().max()
