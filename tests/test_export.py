"""Exported files: what the runtime computes, which versions they name, and that a bad file is refused before it can do harm."""
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from exported import NETWORKS, deployed, in_runtime, student
from networks import IMAGE, LAYER_TYPES, Residual, awaken, images, layer_and_norm
from test_fused import network as with_activations_in_norms

from zsq_lab import __version__
from zsq_lab.deploy import deploy
from zsq_lab.integer_program import exact

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from zsq_lab.export import describe, float_program, load_onnx, save_onnx  # noqa: E402
from zsq_lab.onnx_runtime import open_session, operators  # noqa: E402


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_full_precision_files_compute_what_the_model_computes(tmp_path, name):
    network = awaken(NETWORKS[name]())
    got = in_runtime(float_program(network, IMAGE), tmp_path / "f.onnx", images(5))
    expected = network(images(5)).numpy()
    np.testing.assert_allclose(got, expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("kind", [k for k, (_, _, shape) in LAYER_TYPES.items() if len(shape) in (1, 3)])
@torch.no_grad()
def test_all_kinds_of_layers(tmp_path, kind):
    network, shape = layer_and_norm(kind)
    x = images(8, shape)
    np.testing.assert_allclose(in_runtime(float_program(network, shape), tmp_path / "f.onnx", x), network(x).numpy(),
                               atol=1e-4)
    program = deploy(student(network, shape=shape), shape, x)
    step = max([float(q.scale) for q in program.quantizers if q.axis is None])
    assert np.abs(in_runtime(program, tmp_path / "q.onnx", x) - program(x).numpy()).max() < 1.01 * step


@torch.no_grad()
def test_activations_inside_of_batchnorms_stay(tmp_path):
    network = with_activations_in_norms()
    got = in_runtime(float_program(network, IMAGE), tmp_path / "f.onnx", images(5))
    np.testing.assert_allclose(got, network(images(5)).numpy(), atol=1e-5)


@pytest.mark.parametrize("bits", [8, 3])
@pytest.mark.parametrize("kind", ["transposed", "grouped transposed", "depthwise transposed"])
@torch.no_grad()
def test_weights_of_transposed_convolutions_are_stored_as_integers(tmp_path, kind, bits):
    """With the scales that they have, along whichever axis: the runtime computes with the very same weights."""
    network, shape = layer_and_norm(kind)
    x, quantized = images(8, shape), student(network, bits, shape=shape)
    program = deploy(quantized, shape, x)
    np.testing.assert_allclose(in_runtime(program, tmp_path / "q.onnx", x), program(x).numpy(), atol=1e-5)
    stored = [t.data_type for t in load_onnx(tmp_path / "q.onnx").graph.initializer if len(t.dims) == 4]
    assert stored == [onnx.TensorProto.INT8 if bits == 8 else onnx.TensorProto.INT4]


@pytest.mark.parametrize("bits, activation_bits", [(8, 8), (7, 8), (4, 4), (3, 5), (2, 8)])
@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_quantized_files_compute_what_the_exact_simulation_computes(tmp_path, name, bits, activation_bits):
    _, program = deployed(name, bits, activation_bits)
    x = images(16)
    got, expected = in_runtime(program, tmp_path / "q.onnx", x), exact(program)(x).numpy()
    size = np.abs(expected).max()
    differs = np.abs(got - expected) > 1e-5 * size
    if name == "branches":  # its gate and its upsampling are computed in floats by both, and rounded in another order
        assert differs.mean() < 0.2 and np.abs(got - expected).max() < 0.1 * size
    else:
        assert not differs.any()


def test_the_runtime_makes_integer_kernels_of_all_layers(tmp_path):
    for name, bits, convolutions in (("residual", 8, 3), ("mobile", 8, 3), ("residual", 4, 3), ("shapes", 8, 3),
                                     ("pooled", 8, 2)):
        save_onnx(deployed(name, bits)[1], tmp_path / "q.onnx")
        kinds = operators(tmp_path / "q.onnx", tmp_path, threads=1)
        assert kinds["QLinearConv"] == convolutions and kinds["QGemm"] == 1, kinds
        assert not {"Conv", "Gemm", "Add"} & set(kinds), kinds


def test_scales_and_zero_points_are_the_simulations_own(tmp_path):
    _, program = deployed("residual")
    save_onnx(program, tmp_path / "q.onnx")
    model = load_onnx(tmp_path / "q.onnx")
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    written = [constants[n.input[1]] for n in model.graph.node if n.op_type == "QuantizeLinear"]
    own = [s.quantizer.scale.numpy() for s in program.steps if s.quantizer is not None and s.quantizer.axis is None]
    assert [w.item() for w in written] == [o.item() for o in own]
    weights = [constants[n.input[0]] for n in model.graph.node if n.op_type == "DequantizeLinear"
               and n.input[0] in constants
               and constants[n.input[0]].dtype == np.int8]
    expected = [s.quantizer.integers(s.args[0]).numpy() for s in program.steps if s.quantizer is not None
                and s.quantizer.axis == 0]
    assert len(weights) == 4 and all(np.array_equal(w, e) for w, e in zip(weights, expected, strict=True))


@pytest.mark.parametrize("bits, int4, opset",
                         [(8, True, 17), (5, True, 17), (4, True, 21), (3, True, 21), (4, False, 17)])
def test_versions_and_facts_travel_in_the_file(tmp_path, bits, int4, opset):
    _, program = deployed("residual", bits)
    written = save_onnx(program, tmp_path / "q.onnx", {"recipe": "x"}, int4=int4)
    model = load_onnx(tmp_path / "q.onnx")
    assert written["opset"] == opset == model.opset_import[0].version
    assert written["ir_version"] == model.ir_version and written["bytes"] == (tmp_path / "q.onnx").stat().st_size
    (facts,) = [p.value for p in model.metadata_props if p.key == "facts"]
    assert json.loads(facts) == {"recipe": "x"} and model.producer_version == __version__
    assert describe(model)["operators"]["Conv"] == 3
    assert any(t.data_type == onnx.TensorProto.INT4 for t in model.graph.initializer) == (opset == 21)


@torch.no_grad()
def test_int4_and_int8_storage_of_the_same_weights_compute_the_same(tmp_path):
    _, program = deployed("residual", 4)
    a, b = (in_runtime(program, tmp_path / f"{int4}.onnx", images(6), int4=int4) for int4 in (True, False))
    assert np.array_equal(a, b)


def test_an_export_that_is_cut_off_leaves_the_old_file_and_nothing_else(file, monkeypatch):
    before = file.read_bytes()

    def cut_off(partial, content):
        partial.write_text("half")
        raise KeyboardInterrupt
    monkeypatch.setattr(Path, "write_bytes", cut_off)
    with pytest.raises(KeyboardInterrupt):
        save_onnx(deployed("residual")[1], file)
    assert file.read_bytes() == before and list(file.parent.iterdir()) == [file]


def test_an_operation_without_a_translation_is_named():
    class Odd(Residual):
        def forward(self, x):
            return super().forward(torch.fft.rfft(x).abs())
    with pytest.raises(ValueError, match="the operation .*fft.* cannot be exported|does not take"):
        save_onnx(float_program(awaken(Odd()), IMAGE), "never.onnx")


@pytest.fixture
def file(tmp_path):
    save_onnx(deployed("residual")[1], tmp_path / "q.onnx")
    return tmp_path / "q.onnx"


def test_truncated_and_changed_files_are_one_clear_error(file):
    content = file.read_bytes()
    for bad in (b"", content[:50], content[:len(content) // 2], content[:-1], b"not onnx at all",
                *(content[:i] + bytes([content[i] ^ 1]) + content[i + 1:]
                  for i in range(40, len(content), len(content) // 12))):
        file.write_bytes(bad)
        with pytest.raises(ValueError, match="q.onnx is not an ONNX file of this lab: .*Write it again"):
            open_session(file)
    with pytest.raises(ValueError, match="no model at"):
        load_onnx(file.with_name("none.onnx"))


def test_files_that_reach_outside_or_bring_operators_are_refused(file):
    model = load_onnx(file)
    tensor = model.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    file.write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match="wants to read other files"):
        load_onnx(file)
    model = onnx.ModelProto.FromString(model.SerializeToString())
    tensor.data_location = onnx.TensorProto.DEFAULT
    model.opset_import.add(domain="evil", version=1)
    model.graph.node[0].domain = "evil"
    file.write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match="operators that are not ONNX's own"):
        load_onnx(file)


class Trap:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


def test_loading_never_runs_code_from_the_file(file, tmp_path):
    harm = tmp_path / "harm"
    file.write_bytes(pickle.dumps(Trap(harm)))
    with pytest.raises(ValueError, match="not an ONNX file"):
        open_session(file)
    torch.save({"a": Trap(harm)}, file)
    with pytest.raises(ValueError, match="not an ONNX file"):
        open_session(file)
    assert not harm.exists()
