"""Each toolkit takes the lab's images and gives a network that still works;
where one is missing the error says how to get it."""
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


@pytest.mark.parametrize("toolkit, module", [("pt2e", "torchao.quantization.pt2e.quantize_pt2e"), ("nncf", "nncf")])
def test_a_missing_toolkit_says_how_to_get_it(toolkit, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install .*\[toolkits\]"):
        bridges.BRIDGES[toolkit](load_model("embedded/resnet20")[0], torch.zeros(2, 3, 32, 32))


def test_the_command_makes_a_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("zsq_lab.calibration_set.calibration_images", lambda *args,
                        **options: torch.randn(8, 3, 32, 32))
    bridges.main(["--model", "embedded/resnet20", "-n", "8", "--toolkits", "onnxruntime", "--n-test", "40", "--csv",
                  str(tmp_path / "t.csv")])
    lines = (tmp_path / "t.csv").read_text().splitlines()
    assert len(lines) == 4 and [line.split(",")[2] for line in lines[1:]] == ["noise", "synthetic", "real"]
    assert "synthetic" in capsys.readouterr().out
