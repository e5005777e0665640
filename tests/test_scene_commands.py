"""Masks and boxes on the command line, end to end: quantize, write, read back, sweep; your own folder;
wrong arguments."""
import json
from dataclasses import replace

import numpy as np
import pytest
from command_line import run
from PIL import Image

from zsq_lab.checkpoints import checkpoint_path
from zsq_lab.job import BUDGETS, Budget
from zsq_lab.recipes import RECIPES
from zsq_lab.results import load

METRICS = {"segmenter": "mIoU", "detector": "mAP50"}
TASKS = {"segmenter": "segmentation", "detector": "detection"}


@pytest.mark.parametrize("architecture", METRICS)
def test_quantize_end_to_end(capsys, tmp_path, monkeypatch, architecture):
    """Eight bits, a tiny budget: the quantized network stays near its teacher, and is the same when read back."""
    name, file = f"embedded/{architecture}", tmp_path / "small.safetensors"
    monkeypatch.setitem(BUDGETS, "quick", Budget("quick", 64, 10, 5, 3, 64, 16))
    monkeypatch.setattr("zsq_lab.data.cache_folder", lambda: tmp_path / "cache")
    options = ["--model", name, "--n-test", "30", "--json"]
    status, out, _ = run(capsys, "quantize", *options, "--recipe", "best", "-w", "8", "-a", "8", "--budget", "quick",
                         "--out", str(file))
    written = json.loads(out)
    assert status == 0 and written["metric"] == METRICS[architecture] and written["task"] == TASKS[architecture]
    assert written["accuracy"] == pytest.approx(written[METRICS[architecture]]) and written["n_test"] == 30
    assert abs(written["drop"]) < 3 and written["fp_accuracy"] > 50 and written["images"] == 8
    assert len(written["per_class"]) == {"segmenter": 2, "detector": 10}[architecture]
    status, out, _ = run(capsys, "evaluate", *options, "--quantized", str(file))
    assert status == 0 and json.loads(out)["accuracy"] == written["accuracy"]


def test_sweep_measures_scenes(capsys, tmp_path):
    status, _, _ = run(capsys, "sweep", "--models", "embedded/detector", "--recipes", "rtn-bn", "--bits", "8",
                       "--seeds", "0", "--n-test",
                       "20", "--out", str(tmp_path))
    (row,) = load(tmp_path).to_dict("records")
    assert status == 0 and row["n_test"] == 20 and row["model"] == "embedded/detector" and abs(row["drop"]) < 8


def test_your_own_scenes(capsys, tmp_path, monkeypatch):
    if not checkpoint_path("camvid/segmenter").is_file():
        pytest.skip("camvid/segmenter is not trained yet")
    for kind, values in (("images", np.full((90, 120, 3), 90)), ("masks", np.full((90, 120), 3))):
        folder = tmp_path / "test" / kind
        folder.mkdir(parents=True)
        Image.fromarray(values.astype(np.uint8)).save(folder / "one.png")
    status, out, _ = run(capsys, "evaluate", "--model", "camvid/segmenter", "--data", str(tmp_path), "--json")
    assert status == 0 and json.loads(out)["n_test"] == 1
    (tmp_path / "test" / "masks" / "one.png").unlink()
    monkeypatch.setitem(RECIPES, "rtn-bn", replace(RECIPES["rtn-bn"], run=lambda job: pytest.fail("work was begun")))
    for command in (["evaluate"], ["quantize", "--recipe", "rtn-bn"]):
        status, _, err = run(capsys, *command, "--model", "camvid/segmenter", "--data", str(tmp_path))
        assert status == 1 and "one.png is an image without a mask" in err and len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("arguments, named", [
    (["evaluate", "--model", "embedded/resnet20", "--data", "x"], "--data names a folder of scenes"),
    (["evaluate", "--model", "segmenter", "--profile", "cifar10"], "unknown profile 'cifar10' for masks"),
    (["evaluate", "--model", "bccd/segmenter", "--profile", "embedded"], "unknown model 'bccd/segmenter'"),
    (["generator", "--model", "embedded/segmenter"], "no classifier"),
])
def test_wrong_arguments(capsys, arguments, named):
    status, out, err = run(capsys, *arguments)
    assert status == 2 and out == "" and len(err.strip().splitlines()) == 1 and named in err
