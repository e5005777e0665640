"""`export` as a user meets it: what may go in, and what is refused before the work."""
import json
import shutil

import pytest
from command_line import EXPORT, one_line, run
from exported import Function, small_export  # noqa: F401 (a fixture)
from networks import images

from zsq_lab import QuantConfig, distill, export_command, export_comparison, quantize, recipes
from zsq_lab.calibration_set import read_calibration_set, save_npz
from zsq_lab.checkpoints import load_model, save_model
from zsq_lab.data import find_dataset
from zsq_lab.resume import RunState

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.usefixtures("small_export")


def test_a_quantized_file_and_a_calibration_set_go_in_and_the_same_model_comes_out(capsys, tmp_path):
    written = tmp_path / "q.safetensors"
    assert run(capsys, "quantize", "--model", "embedded/resnet20", "--recipe", "rtn-bn", "-w", "3", "--n-test", "50",
               "--out", str(written))[0] == 0
    made = ["synthesize", "--model", "embedded/resnet20", "-n", "8", "--budget", "quick", "--out", str(tmp_path / "set")]
    assert run(capsys, *made)[0] == 0 and len(read_calibration_set(tmp_path / "set")) == 8
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    status, out, _ = run(capsys, *EXPORT, "--quantized", str(written), "--images", str(tmp_path / "set"), "--json",
                         "--out", str(tmp_path / "q.onnx"))
    assert status == 0 and json.loads(out)["weight_bits"] == 3 and not (tmp_path / "cache").exists(), "images were made anew"


def test_what_is_interrupted_after_the_recipe_is_not_begun_anew(capsys, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt
    monkeypatch.setattr(RunState.__init__, "__defaults__", (None, 0.0))
    command = [*EXPORT[:-2], "--recipe", "distilled", "--budget", "quick", "--out", str(tmp_path / "q.safetensors")]
    with monkeypatch.context() as patched:
        patched.setattr(export_comparison, "write_packed", interrupt)
        assert run(capsys, *command)[0] == 130
    monkeypatch.setattr(distill.FineTuning, "step", lambda *_: pytest.fail("it was trained already"))
    assert run(capsys, *command)[0] == 0 and not list(tmp_path.rglob("distilled_*"))


@pytest.mark.parametrize("config, message", [
    (QuantConfig(8, 8, convention="literature"), "(convention 'literature'): integer runtimes want convention 'deployable'"),
    (QuantConfig(4, 9), "a quantizer has 9 bits"), (QuantConfig(4, 8, layer_bits={"fc": 10}), "a quantizer has 10 bits")])
def test_a_file_that_no_integer_runtime_takes_is_refused_before_the_work(capsys, tmp_path, monkeypatch, config, message):
    monkeypatch.setattr(export_comparison, "calibration_images", lambda *_, **__: pytest.fail("work was begun"))
    file, facts = tmp_path / "q.safetensors", {"model": "embedded/resnet20", "image_shape": [3, 32, 32]}
    result = quantize(load_model(facts["model"])[0], config, "rtn-bn", image_shape=(3, 32, 32))
    save_model(result.model, file, result.report | facts)
    status, err = one_line(capsys, *EXPORT, "--quantized", str(file), "--out", str(tmp_path / "q.onnx"))
    assert status == 2 and f"--quantized {file}: " in err and message in err


def test_operations_that_onnx_lacks_are_refused_before_the_recipe_runs(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "quantize", lambda *_, **__: pytest.fail("work was begun"))
    network = Function(lambda x: x.cumsum(1))
    monkeypatch.setattr(export_command, "named_classifier", lambda args: ("own", find_dataset("embedded"), network))
    status, err = one_line(capsys, *EXPORT, "--out", str(tmp_path / "q.onnx"))
    assert status == 1 and "the operation cumsum cannot be exported" in err


@pytest.mark.parametrize("arguments, message", [
    (["--out", "model.pt"], "expected a file that ends in .onnx or .safetensors"),
    (["--out", "q.onnx", "-w", "9"], "at most 8 bits"), (["--out", "q.onnx", "--recipe", "magic"], "unknown recipe"),
    (["--out", "q.onnx", "--recipe", "real-ranges"], "needs real images"),
    (["--out", "q.onnx", "--budget", "vast"], "unknown budget"),
    (["--out", "q.safetensors"], "--images and --threads are for ONNX Runtime")])
def test_wrong_arguments(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    status, err = one_line(capsys, *EXPORT, *arguments)
    assert status == 2 and message in err


def test_images_of_another_shape_are_refused_before_the_recipe_runs(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "quantize", lambda *_, **__: pytest.fail("work was begun"))
    scenes = tmp_path / "scenes.npz"
    save_npz(scenes, images(2, (3, 96, 96)), find_dataset("embedded"))
    status, err = one_line(capsys, *EXPORT, "--images", str(scenes), "--out", str(tmp_path / "q.onnx"))
    assert status == 2 and "scenes.npz holds images [3, 96, 96], expected [3, 32, 32]" in err
    assert "synthesize --model embedded/resnet20" in err
    status, err = one_line(capsys, *EXPORT[:-2], "--images", str(scenes), "--out", str(tmp_path / "q.safetensors"))
    assert status == 2 and "--images and --threads are for ONNX Runtime" in err
