"""`export` and the folder of `synthesize` as a user meets them."""
import json
from functools import partial

import pytest
import torch
from command_line import run
from networks import images

from zsq_lab import job, onnx_runtime
from zsq_lab.calibration_set import read_calibration_set
from zsq_lab.checkpoints import load_model
from zsq_lab.job import Budget
from zsq_lab.packed_file import load_packed

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
EXPORT = ["export", "--model", "embedded/resnet20", "--recipe", "rtn-bn", "--n-test", "200", "--threads", "1"]


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    monkeypatch.setitem(job.BUDGETS, "quick", Budget("quick", 8, 3, 3, 3, 8, 8))
    monkeypatch.setattr("zsq_lab.data.cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(onnx_runtime, "measure", partial(onnx_runtime.measure, rounds=2))


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


def test_a_quantized_file_and_a_calibration_set_go_in_and_the_same_model_comes_out(capsys, tmp_path):
    written = tmp_path / "q.safetensors"
    assert run(capsys, "quantize", "--model", "embedded/resnet20", "--recipe", "rtn-bn", "-w", "3", "--n-test", "50", "--out",
               str(written))[0] == 0
    made = ["synthesize", "--model", "embedded/resnet20", "-n", "8", "--budget", "quick", "--out", str(tmp_path / "set")]
    assert run(capsys, *made)[0] == 0 and len(read_calibration_set(tmp_path / "set")) == 8
    status, out, _ = run(capsys, *EXPORT, "--quantized", str(written), "--images", str(tmp_path / "set"), "--json", "--out",
                         str(tmp_path / "q.onnx"))
    assert status == 0 and json.loads(out)["weight_bits"] == 3 and not (tmp_path / "cache").exists()


def test_packed_export(capsys, tmp_path):
    file = tmp_path / "small.safetensors"
    status, out, _ = run(capsys, *EXPORT, "-w", "4", "-a", "4", "--out", str(file), "--json")
    answer = json.loads(out)
    assert status == 0 and answer["bytes"] == file.stat().st_size < 0.14 * answer["float_bytes"]
    loaded, facts = load_packed(file)
    assert facts["recipe"] == "rtn-bn" and loaded(images(1, (3, 32, 32))).shape == (1, 10)
    assert torch.equal(load_model("embedded/resnet20")[0].fc.bias, loaded.fc.layer.bias)


@pytest.mark.parametrize("arguments, message", [
    (["--out", "model.pt"], "expected a file that ends in .onnx or .safetensors"),
    (["--out", "q.onnx", "-w", "9"], "at most 8 bits"), (["--out", "q.onnx", "--recipe", "magic"], "unknown recipe"),
    (["--out", "q.onnx", "--recipe", "real-ranges"], "needs real images"), (["--out", "q.onnx", "--budget", "vast"], "unknown budget")])
def test_wrong_arguments(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    status, out, err = run(capsys, *EXPORT, *arguments)
    assert status == 2 and out == "" and message in err and len(err.strip().splitlines()) == 1
