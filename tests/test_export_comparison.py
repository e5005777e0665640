"""Exported files beside their simulation: agreement, kernels, sizes and times in one answer."""
import json

import pytest
import torch
from command_line import EXPORT, run
from exported import small_export  # noqa: F401 (a fixture)
from networks import images

from zsq_lab import QuantConfig, quantize
from zsq_lab.checkpoints import load_model, save_model
from zsq_lab.packed_file import load_packed

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.usefixtures("small_export")
PACKED = EXPORT[:-2]  # less --threads, which is for measurements in ONNX Runtime


def test_export_writes_compares_and_measures(capsys, tmp_path):
    status, out, _ = run(capsys, *EXPORT, "--out", str(tmp_path / "q.onnx"), "--json")
    answer = json.loads(out)
    assert status == 0
    assert answer["accuracy"] == answer["simulated_accuracy"] and answer["agreement"] == 100 and answer["n_test"] == 200
    assert answer["opset"] == 17 and answer["kernels"]["QLinearConv"] == 19 and answer["kernels"]["QLinearAdd"] == 9
    rows = {row["file"]: row for row in answer["measured"]}
    assert set(rows) == {"float", "exact", "fast"} and rows["exact"]["bytes"] < 0.27 * rows["float"]["bytes"]
    assert all(row["ms_batch_1"] > 0 and row["ms_batch_64"] > 0 for row in rows.values())
    status, out, _ = run(capsys, *EXPORT, "-w", "4", "-a", "4", "--out", str(tmp_path / "q.onnx"))
    assert status == 0 and "equal predictions" in out and "8-bit dot products" in out and "opset 21" in out


def test_packed_export(capsys, tmp_path):
    file = tmp_path / "small.safetensors"
    status, out, _ = run(capsys, *PACKED, "-w", "4", "-a", "4", "--out", str(file), "--json")
    answer = json.loads(out)
    assert status == 0 and answer["bytes"] == file.stat().st_size < 0.14 * answer["float_bytes"]
    loaded, facts = load_packed(file)
    assert facts["recipe"] == "rtn-bn" and loaded(images(1, (3, 32, 32))).shape == (1, 10)
    assert torch.equal(load_model("embedded/resnet20")[0].fc.bias, loaded.fc.layer.bias)


def test_mixed_precision_has_no_one_width(capsys, tmp_path):
    name, shape, mixed = "embedded/resnet20", (3, 32, 32), ["--quantized", str(tmp_path / "mixed.safetensors")]
    result = quantize(load_model(name)[0], QuantConfig(8, 8, layer_bits={"fc": 4}), "rtn-bn", image_shape=shape)
    save_model(result.model, tmp_path / "mixed.safetensors", result.report | {"model": name, "image_shape": list(shape)})
    for command, file in ((PACKED, "q.safetensors"), (EXPORT, "q.onnx")):
        status, out, _ = run(capsys, *command, *mixed, "--out", str(tmp_path / file), "--json")
        assert status == 0 and json.loads(out)["weight_bits"] is None and json.loads(out)["activation_bits"] == 8
    assert "resnet20, rtn-bn, mixed A8 deployable" in run(capsys, *PACKED, *mixed, "--out", str(tmp_path / "q.safetensors"))[1]
