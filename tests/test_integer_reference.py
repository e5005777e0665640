"""The NumPy reference: equal to PyTorch in whole numbers and to ONNX Runtime bit for bit,
one layer and whole networks."""
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from exported import deployed, student
from hypothesis import given
from hypothesis import strategies as st
from networks import IMAGE, awaken, images, teach
from torch import nn

from zsq_lab.deploy import deploy
from zsq_lab.integer_reference import convolve, requantize, run

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from zsq_lab.export import load_onnx, save_onnx  # noqa: E402
from onnx import TensorProto  # noqa: E402

from zsq_lab.onnx_runtime import open_session, session_of  # noqa: E402
from zsq_lab.onnx_runtime import run as in_runtime  # noqa: E402


@given(stride=st.integers(1, 3), pad=st.integers(0, 2), dilation=st.integers(1, 2), group=st.sampled_from([1, 2, 4]),
       kernel=st.integers(1, 3), seed=st.integers(0, 99))
def test_convolution_in_whole_numbers(stride, pad, dilation, group, kernel, seed):
    draw = np.random.default_rng(seed)
    x, w = draw.integers(-255, 256, (2, 4, 9, 8)), draw.integers(-128, 128, (8, 4 // group, kernel, kernel))
    bias = draw.integers(-10000, 10000, 8)
    expected = F.conv2d(*(torch.from_numpy(a).double() for a in (x, w, bias)), stride, pad, dilation, group)
    got = convolve(x, w, bias, strides=(stride, stride), pads=(pad,) * 4, dilations=(dilation, dilation), group=group)
    assert got.dtype == np.int32 and np.array_equal(got, expected.numpy())


def test_requantization_by_hand():
    total = np.array([[[-7, 0, 5, 1000, 10]]]).reshape(1, 1, 1, 5)
    half = np.array([0.25], np.float32)
    assert requantize(total, half, 3).ravel().tolist() == [1, 3, 4, 253, 5]  # 2.5 goes to the even 2
    assert requantize(total, half, 3, fixed_point=True).ravel().tolist() == [1, 3, 4, 253, 6]  # and here up
    assert requantize(total, np.array([10.0], np.float32), 3).ravel().tolist() == [0, 3, 53, 255, 103]


@given(seed=st.integers(0, 999))
def test_fixed_point_is_at_most_one_step_away(seed):
    draw = np.random.default_rng(seed)
    total, multiplier = draw.integers(-2**20, 2**20, (1, 8, 50)), draw.uniform(1e-6, 0.5, 8).astype(np.float32)
    a, b = (requantize(total, multiplier, 7, fixed_point=f).astype(int) for f in (True, False))
    assert np.abs(a - b).max() <= 1 and (a != b).mean() < 0.02


@pytest.mark.parametrize("name, bits", [("residual", 8), ("mobile", 8), ("residual", 4), ("mobile", 3)])
def test_a_whole_network_is_equal_to_onnx_runtime_bit_for_bit(tmp_path, name, bits):
    save_onnx(deployed(name, bits)[1], tmp_path / "q.onnx", int4=False)
    x, inside = images(16).numpy(), {}
    got = run(load_onnx(tmp_path / "q.onnx"), x, keep=inside)
    assert np.array_equal(got, in_runtime(open_session(tmp_path / "q.onnx", threads=1), x))
    kinds = {v.dtype.name for k, v in inside.items() if k.startswith("r")}
    assert "uint8" in kinds and "int32" not in kinds


def test_one_quantized_convolution_is_equal_to_onnx_runtime_bit_for_bit(tmp_path):
    layers = (nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU(), nn.AvgPool2d(1), nn.Conv2d(16, 4, 1))
    network = teach(awaken(nn.Sequential(*layers)), images(8))
    save_onnx(deploy(student(network), IMAGE, images(8)), tmp_path / "q.onnx")
    model, x, inside = load_onnx(tmp_path / "q.onnx"), 3 * images(32).numpy(), {}
    first = next(n.output[0] for n in model.graph.node if n.op_type == "QuantizeLinear" and n.input[0] in
                 {c.output[0] for c in model.graph.node if c.op_type == "Conv"})
    model.graph.output[0].name = first
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.UINT8
    del model.graph.node[next(i for i, n in enumerate(model.graph.node) if first in n.output) + 1:]
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    run(model, x, keep=inside)
    session = session_of(model.SerializeToString(), threads=1)
    assert np.array_equal(inside[first], session.run([first], {"images": x})[0]) and len(np.unique(inside[first])) > 200


def test_an_unknown_operator_is_named(tmp_path):
    save_onnx(deployed("branches")[1], tmp_path / "q.onnx")
    with pytest.raises(ValueError, match="does not know the operator"):
        run(load_onnx(tmp_path / "q.onnx"), images(1).numpy())
