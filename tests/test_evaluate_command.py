"""`evaluate`: what was written is read back, the shipped network scores what its card says."""
import json

import pytest
import torch
from command_line import QUANTIZE, one_line, run

from zsq_lab.checkpoints import checkpoint_path, load_quantized


@pytest.mark.parametrize("recipe", ["rtn-bn", "dfq"])
def test_a_written_model_is_read_back_with_the_same_accuracy(capsys, tmp_path, recipe):
    file = tmp_path / "small.safetensors"
    _, out, _ = run(capsys, *QUANTIZE, "--recipe", recipe, "-w", "6", "-a", "6", "--out", str(file), "--json")
    written = json.loads(out)
    status, out, _ = run(capsys, "evaluate", "--model", "embedded/resnet20", "--quantized", str(file), "--n-test", "200",
                         "--json")
    read = json.loads(out)
    assert status == 0
    assert read["accuracy"] == written["accuracy"] and read["recipe"] == recipe
    assert load_quantized(file)[1]["config"]["weight_bits"] == 6


@pytest.mark.parametrize("make, reason", [
    (lambda file: file.write_bytes(b"not safetensors at all"), "is not a quantized model of this lab"),
    (lambda file: file.write_bytes(b""), "is not a quantized model of this lab"),
    (lambda file: file.mkdir(), "no quantized model at"),
    (lambda file: None, "no quantized model at"),
    (lambda file: file.write_bytes(checkpoint_path("embedded/resnet20").read_bytes()), "is not a quantized model of this lab")])
def test_what_is_no_quantized_model_is_one_clear_error(capsys, tmp_path, make, reason):
    file = tmp_path / "broken.safetensors"
    make(file)
    status, err = one_line(capsys, "evaluate", "--model", "embedded/resnet20", "--quantized", str(file))
    assert status == 1 and "broken.safetensors" in err and reason in err and "quantize" in err


def test_a_file_of_another_network_is_a_wrong_argument(capsys, tmp_path):
    file = str(tmp_path / "small.safetensors")
    run(capsys, *QUANTIZE, "--recipe", "rtn-bn", "--out", file)
    status, err = one_line(capsys, "evaluate", "--model", "cifar10/resnet20", "--profile", "embedded", "--quantized", file)
    assert status == 2 and "holds embedded/resnet20, not cifar10/resnet20: name its network with --model" in err


@pytest.mark.real_data
def test_the_shipped_cifar10_network_scores_what_its_card_says(capsys):
    _, out, _ = run(capsys, "models", "--json")
    stated = next(row["accuracy"] for row in json.loads(out)["models"] if row["model"] == "cifar10/resnet20")
    _, out, _ = run(capsys, "evaluate", "--model", "cifar10/resnet20", "--json")
    assert json.loads(out)["accuracy"] == pytest.approx(stated, abs=0.03)  # other CPUs round convolutions differently
    assert torch.is_grad_enabled()
