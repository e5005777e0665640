"""The graph of a program: which constants it stores, on which grids, under which names;
another interpreter runs it too."""
import numpy as np
import pytest
import torch
from exported import NETWORKS, Function, deployed, student
from networks import IMAGE, Residual, awaken, images
from torch import nn

from zsq_lab.deploy import deploy, is_weight
from zsq_lab.program import QUANTIZE

onnx = pytest.importorskip("onnx")

from onnx.reference import ReferenceEvaluator  # noqa: E402

from zsq_lab.export import float_program  # noqa: E402
from zsq_lab.onnx_graph import GraphWriter  # noqa: E402


def constants(model) -> dict[str, np.ndarray]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


@pytest.mark.parametrize("name", ["residual", "mobile", "shapes"])
@torch.no_grad()
def test_onnx_own_reference_computes_the_same(name):
    network = awaken(NETWORKS[name]())
    model = GraphWriter(float_program(network, IMAGE)).model({})
    got = ReferenceEvaluator(model).run(None, {"images": images(4).numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(got), network(images(4)), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_onnx_own_reference_dequantizes_the_same_weights_and_activations():
    """In floats, so that a tie may fall to the other side: few numbers differ, none by more than a step."""
    _, program = deployed("residual", 4, 8)  # the reference has no kernels of the older version that 8 bits ask for
    got = ReferenceEvaluator(GraphWriter(program).model({})).run(None, {"images": images(6).numpy()})[0]
    expected = program(images(6)).numpy()
    differs = np.abs(got - expected) > 1e-4 * np.abs(expected).max()
    assert differs.mean() < 0.2 and np.abs(got - expected).max() < 0.05 * np.abs(expected).max()


def test_equal_small_constants_are_stored_once_and_large_ones_each():
    writer = GraphWriter(float_program(Function(lambda x: x), IMAGE))
    assert writer.constant(0.5, np.float32) == writer.constant(torch.tensor(0.5)) != writer.constant(0.25, np.float32)
    assert writer.constant(1, np.uint8) != writer.constant(1, np.int8), "another type is another constant"
    assert writer.constant([1, 2]) != writer.constant([[1, 2]]), "and so is another shape"
    assert writer.constant(np.zeros(17)) != writer.constant(np.zeros(17))
    assert writer.constant(3, np.int8, share=False) != writer.constant(3, np.int8, share=False)
    assert writer.constants[0].dims == [3, 1, 1] and all(name.name.startswith("c") for name in writer.constants)


@pytest.mark.parametrize("bits, int4, stored", [(8, True, onnx.TensorProto.INT8), (5, True, onnx.TensorProto.INT8),
                                               (4, True, onnx.TensorProto.INT4), (2, True, onnx.TensorProto.INT4),
                                               (4, False, onnx.TensorProto.INT8)])
def test_weights_are_stored_as_the_integers_that_they_are(bits, int4, stored):
    _, program = deployed("residual", bits, 8)
    model = GraphWriter(program, int4=int4).model({})
    weights = [step.quantizer.integers(step.args[0]).numpy() for step in program.steps if is_weight(step)]
    found = [(tensor.data_type, onnx.numpy_helper.to_array(tensor).astype(int)) for tensor in model.graph.initializer
             if len(tensor.dims) > 1]
    assert [kind for kind, _ in found] == [stored] * 4
    assert all(np.array_equal(mine, theirs) for (_, mine), theirs in zip(found, weights, strict=True))
    assert (model.opset_import[0].version, model.ir_version) == ((21, 10)
                                                                 if stored == onnx.TensorProto.INT4 else (17, 8))


@pytest.mark.parametrize("activation_bits", [3, 6, 8])
def test_a_grid_of_less_than_8_bits_is_ended_by_a_clip(activation_bits):
    _, program = deployed("residual", 8, activation_bits)
    model = GraphWriter(program).model({})
    values, made = constants(model), {name: node for node in model.graph.node for name in node.output}
    grids = [step.quantizer for step in program.steps if step.name == QUANTIZE and not is_weight(step)]
    clips = [node for node in model.graph.node if node.op_type == "Clip"
             and made[node.input[0]].op_type == "QuantizeLinear"]
    assert [values[node.input[2]].item() for node in clips] == [q.quant_max for q in grids if q.bits < 8]
    assert all(values[node.input[1]] == 0 and values[node.input[1]].dtype == np.uint8 for node in clips)
    assert bool(clips) == (activation_bits < 8)


def test_biases_are_whole_numbers_on_the_grid_of_the_sum():
    _, program = deployed("residual")
    model = GraphWriter(program).model({})
    values, made = constants(model), {name: node for node in model.graph.node for name in node.output}
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(layers) == 4
    for node in layers:
        x, weight, bias = (made[name] for name in node.input)
        assert values[bias.input[0]].dtype == np.int32 and len(bias.input) == 2, "symmetric: no zero point"
        np.testing.assert_array_equal(values[bias.input[1]], values[x.input[1]] * values[weight.input[1]])


def test_outputs_and_batches_are_named():
    two = GraphWriter(float_program(Function(lambda x: {"a": x.relu(), "b": x[:, 0]}), IMAGE)).model({"facts": "f"})
    assert [output.name for output in two.graph.output] == ["output_0", "output_1"]
    assert [d.dim_param or d.dim_value for d in two.graph.output[1].type.tensor_type.shape.dim] == ["N", 8, 8]
    assert [d.dim_param or d.dim_value for d in two.graph.input[0].type.tensor_type.shape.dim] == ["N", 3, 8, 8]
    assert [(p.key, p.value) for p in two.metadata_props] == [("facts", "f")]
    one = GraphWriter(float_program(awaken(Residual()), IMAGE)).model({})
    assert [output.name for output in one.graph.output] == ["output"] and one.graph.input[0].name == "images"


def test_a_layer_without_a_bias_has_none():
    network = awaken(nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.ReLU(), nn.Conv2d(4, 2, 1, bias=False)))
    model = GraphWriter(deploy(student(network), IMAGE, images(8))).model({})
    assert [len(node.input) for node in model.graph.node if node.op_type == "Conv"] == [2, 2]
