"""The command line as a user meets it: its answers, its JSON, its exit status, its one line of trouble."""
import json
import subprocess
import sys

import pytest
import torch

from zsq_lab.__main__ import main
from zsq_lab.checkpoints import load_quantized

QUANTIZE = ["quantize", "--model", "embedded/resnet20", "--n-test", "200", "--budget", "quick"]
PROMISED = {"model", "recipe", "weight_bits", "activation_bits", "convention", "seed", "fp_accuracy", "accuracy", "drop",
            "seconds", "profile", "n_test"}


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    try:
        status = main(list(arguments))
    except SystemExit as stop:  # argparse's own way out
        status = stop.code
    out, err = capsys.readouterr()
    return status, out, err


def test_quantize_prints_one_json_object_with_the_promised_fields(capsys):
    status, out, _ = run(capsys, *QUANTIZE, "--recipe", "rtn-bn", "-w", "8", "-a", "8", "--seed", "3", "--json")
    answer = json.loads(out)
    assert status == 0
    assert PROMISED <= set(answer)
    assert (answer["recipe"], answer["weight_bits"], answer["activation_bits"], answer["seed"]) == ("rtn-bn", 8, 8, 3)
    assert (answer["convention"], answer["profile"], answer["n_test"]) == ("deployable", "embedded", 200)
    assert answer["drop"] == pytest.approx(answer["fp_accuracy"] - answer["accuracy"], abs=1e-3)
    assert answer["bytes_after"] < 0.35 * answer["bytes_before"]


def test_the_text_answer_names_the_convention_beside_the_number(capsys):
    status, out, _ = run(capsys, *QUANTIZE, "--recipe", "rtn-noise", "--convention", "literature", "--edge-bits", "8")
    assert status == 0
    assert "literature" in out and "first and last layer 8 bits" in out and "drop" in out


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


def test_a_damaged_quantized_file_is_one_clear_error(capsys, tmp_path):
    file = tmp_path / "broken.safetensors"
    file.write_bytes(b"not safetensors at all")
    status, out, err = run(capsys, "evaluate", "--model", "embedded/resnet20", "--quantized", str(file))
    assert status == 1 and out == ""
    assert len(err.strip().splitlines()) == 1 and "broken.safetensors" in err and "quantize" in err


def test_synthesize_writes_images_and_the_normalisation(capsys, tmp_path):
    import numpy as np

    from zsq_lab import recipes
    file = tmp_path / "images.npz"
    tiny = recipes.Budget("quick", 4, 3, 1, 4, 4)
    original = recipes.BUDGETS["quick"]
    recipes.BUDGETS["quick"] = tiny
    try:
        status, _, _ = run(capsys, "synthesize", "--model", "embedded/resnet20", "-n", "4", "--budget", "quick",
                           "--out", str(file))
    finally:
        recipes.BUDGETS["quick"] = original
    assert status == 0
    with np.load(file) as written:
        assert written["images"].shape == (4, 3, 32, 32) and written["mean"].shape == (3,)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images.npz"]  # nothing half-written left


@pytest.mark.parametrize("arguments, named", [
    ([], "COMMAND"),
    (["quantise"], "quantise"),
    (["quantize"], "--model"),
    ([*QUANTIZE, "-w", "1"], "2 to 16"),
    ([*QUANTIZE, "-a", "four"], "four"),
    ([*QUANTIZE, "--recipe", "magic"], "distilled"),
    ([*QUANTIZE, "--budget", "endless"], "standard"),
    ([*QUANTIZE, "--convention", "mine"], "literature"),
    (["quantize", "--model", "embedded/alexnet"], "embedded/resnet20"),
    (["evaluate", "--model", "resnet20", "--profile", "mnist"], "cifar10"),
    (["synthesize", "--model", "embedded/resnet20", "--out", "images.jpg"], ".npz"),
])
def test_a_wrong_argument_is_exit_status_2_and_one_line(capsys, arguments, named):
    status, out, err = run(capsys, *arguments)
    assert status == 2
    assert out == ""
    assert len(err.strip().splitlines()) == 1 and named in err


def test_recipes_and_models_list_what_there_is(capsys):
    _, out, _ = run(capsys, "recipes", "--json")
    names = [row["recipe"] for row in json.loads(out)["recipes"]]
    assert {"rtn-noise", "rtn-bn", "dfq", "squant", "zeroq", "distilled", "real-ranges", "real-finetune"} <= set(names)
    _, out, _ = run(capsys, "models", "--json")
    assert {"cifar10/resnet20", "cifar10/mobilenetv2", "embedded/resnet20"} <= {
        row["model"] for row in json.loads(out)["models"]}


def test_the_module_runs_as_a_program_and_leaves_stdout_to_the_answer():
    done = subprocess.run([sys.executable, "-m", "zsq_lab", "recipes", "--json"], capture_output=True, text=True,
                          timeout=120, check=True)
    assert json.loads(done.stdout)["recipes"]


@pytest.mark.real_data
def test_the_shipped_cifar10_network_scores_what_its_card_says(capsys):
    _, out, _ = run(capsys, "models", "--json")
    stated = next(row["accuracy"] for row in json.loads(out)["models"] if row["model"] == "cifar10/resnet20")
    _, out, _ = run(capsys, "evaluate", "--model", "cifar10/resnet20", "--json")
    assert json.loads(out)["accuracy"] == pytest.approx(stated, abs=0.03)  # other CPUs round convolutions differently
    assert torch.is_grad_enabled()
