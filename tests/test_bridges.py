"""Each toolkit takes the lab's images and gives a network that still works; where one is missing the error says how to
get it."""
import sys

import pytest
import torch

from zsq_lab import bridges
from zsq_lab.checkpoints import load_model
from zsq_lab.data import find_dataset

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
PACKAGES = {"onnxruntime": "onnxruntime", "pt2e": "torchao", "nncf": "nncf"}


@pytest.mark.parametrize("toolkit", bridges.BRIDGES)
@pytest.mark.filterwarnings("ignore")
def test_a_calibrated_network_agrees_with_full_precision(toolkit):
    pytest.importorskip(PACKAGES[toolkit])
    dataset, (model, _) = find_dataset("embedded"), load_model("embedded/resnet20")
    x = dataset.normalise(dataset.test().images[:96])
    weights = model.conv1.weight.clone()
    logits = bridges.BRIDGES[toolkit](model, x[:32])
    got = torch.cat([logits(part) for part in x[32:].split([1, 63])])
    with torch.no_grad():
        expected = model(x[32:])
    assert (got.argmax(1) == expected.argmax(1)).double().mean() > 0.93
    assert 0.001 < (got - expected).norm() / expected.norm() < 0.4, "quantized, and not by much"
    assert torch.equal(weights, model.conv1.weight)


@pytest.mark.filterwarnings("ignore")
def test_one_image_is_enough_for_pt2e():
    pytest.importorskip("torchao")
    x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    logits = bridges.pt2e(load_model("embedded/resnet20")[0], x[:1])
    assert logits(x).shape == (3, 10) and logits(x).isfinite().all()


@pytest.mark.parametrize("toolkit, module", [("pt2e", "torchao.quantization.pt2e.quantize_pt2e"), ("nncf", "nncf")])
def test_a_missing_toolkit_says_how_to_get_it(toolkit, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install .*\[toolkits\]"):
        bridges.BRIDGES[toolkit](load_model("embedded/resnet20")[0], torch.zeros(2, 3, 32, 32))


def test_the_command_makes_a_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("zsq_lab.calibration_set.calibration_images", lambda *args, **options: torch.randn(8, 3, 32, 32))
    table = tmp_path / "new" / "t.csv"
    bridges.main(["--model", "embedded/resnet20", "-n", "8", "--toolkits", "onnxruntime", "--n-test", "40", "--csv", str(table)])
    lines = table.read_text().splitlines()
    assert len(lines) == 4 and [line.split(",")[2] for line in lines[1:]] == ["noise", "synthetic", "real"]
    out, err = capsys.readouterr()
    assert "synthetic" in out and "toolkits" in err, "a bar says how far it is"


def test_a_missing_toolkit_is_named_before_images_are_made(capsys, monkeypatch):
    monkeypatch.setattr("zsq_lab.calibration_set.calibration_images", lambda *_, **__: pytest.fail("work was begun"))
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(SystemExit) as stop:
        bridges.main(["--model", "embedded/resnet20", "--toolkits", "onnxruntime", "nncf"])
    out, err = capsys.readouterr()
    assert stop.value.code == 1 and out == "" and err.startswith("zsq_lab: NNCF needs openvino and nncf: install")
    assert len(err.splitlines()) == 1


def test_absent_data_are_no_wrong_argument(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("zsq_lab.data.search_folders", lambda: [tmp_path])
    with pytest.raises(SystemExit) as stop:
        bridges.main([])
    err = capsys.readouterr().err
    assert stop.value.code == 1 and "CIFAR-10 is not in any of these folders" in err and "--help" not in err


@pytest.mark.parametrize("arguments, named", [
    (["-n", "0"], "'0' is not a whole number of at least 1"), (["--n-test", "-1"], "at least 1"), (["--seed", "x"], "not a seed"),
    (["--csv", "."], "--csv . is a folder: name a file"), (["--model", "embedded/vgg"], "vgg")])
def test_wrong_arguments_are_one_line_before_the_work(capsys, monkeypatch, arguments, named):
    monkeypatch.setattr("zsq_lab.calibration_set.calibration_images", lambda *_, **__: pytest.fail("work was begun"))
    with pytest.raises(SystemExit) as stop:
        bridges.main(arguments)
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out == "" and named in err and len(err.strip().splitlines()) == 1
