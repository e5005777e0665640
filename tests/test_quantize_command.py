"""`quantize`: its answer, what it writes, and how it goes on after an interruption."""
import json
from dataclasses import replace

import pytest
import torch
from command_line import PROMISED, QUANTIZE, one_line, run

from zsq_lab import data, distill, evaluate, weight_file
from zsq_lab.checkpoints import load_quantized
from zsq_lab.job import BUDGETS, Budget
from zsq_lab.recipes import RECIPES
from zsq_lab.resume import RunState


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


def test_mixed_precision_has_no_one_width(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(BUDGETS, "quick", Budget("quick", 4, 1, 1, 1, 4, 4))
    monkeypatch.setattr(data, "cache_folder", lambda: tmp_path)
    file = str(tmp_path / "mixed.safetensors")
    status, out, _ = run(capsys, *QUANTIZE, "--recipe", "rtn-bn", "--size-budget", "0.15", "--out", file, "--json")
    answer = json.loads(out)
    assert status == 0 and answer["weight_bits"] is None and answer["bytes_after"] < 0.2 * answer["bytes_before"]
    bits = load_quantized(tmp_path / "mixed.safetensors")[1]["config"]["layer_bits"].values()
    assert len(set(bits)) > 1
    status, out, _ = run(capsys, "evaluate", "--model", "embedded/resnet20", "--quantized", file, "--n-test", "200")
    assert status == 0 and "weight_bits mixed activation_bits 8" in out


def test_an_interrupted_command_goes_on_where_it_was(capsys, tmp_path, monkeypatch):
    """Ctrl-C is exit status 130 and one line; the same command again ends with the numbers of an unbroken run."""
    def stop_at_fine_tuning(own, phase, state, *, now=False):
        write(own, phase, state, now=True)
        if phase == "finetune":
            raise KeyboardInterrupt

    monkeypatch.setitem(BUDGETS, "quick", Budget("quick", 4, 3, 3, 3, 4, 4))
    command, write, answers = [*QUANTIZE, "--recipe", "distilled", "-w", "4", "-a", "4"], RunState.save, {}
    for folder in ("unbroken", "broken"):
        monkeypatch.setattr(data, "cache_folder", lambda folder=folder: tmp_path / folder)
        if folder == "broken":
            with monkeypatch.context() as patched:
                patched.setattr(RunState, "save", stop_at_fine_tuning)
                status, out, err = run(capsys, *command)
            assert status == 130 and out == "" and err.strip().splitlines()[-1].endswith("zsq_lab: interrupted")
            assert len(list(tmp_path.glob("broken/runs/distilled_*/finetune.pt"))) == 1
        file = tmp_path / f"{folder}.safetensors"
        status, out, _ = run(capsys, *command, "--out", str(file), "--json")
        assert status == 0
        answers[folder] = json.loads(out)["accuracy"], load_quantized(file)[0].state_dict()
        assert not list(tmp_path.glob(f"{folder}/runs/distilled_*"))
    assert answers["broken"][0] == answers["unbroken"][0]
    assert all(torch.equal(value, answers["broken"][1][key]) for key, value in answers["unbroken"][1].items())


def test_what_is_interrupted_while_it_is_measured_is_written_and_goes_on(capsys, tmp_path, monkeypatch):
    """Measuring may take as long as the recipe."""
    def interrupt(*_, **__):
        raise KeyboardInterrupt
    monkeypatch.setattr(RunState.__init__, "__defaults__", (None, 0.0))
    monkeypatch.setitem(BUDGETS, "quick", Budget("quick", 4, 3, 3, 3, 4, 4))
    monkeypatch.setattr(data, "cache_folder", lambda: tmp_path)
    file = tmp_path / "small.safetensors"
    command = [*QUANTIZE, "--recipe", "distilled", "-w", "4", "-a", "4", "--out", str(file)]
    with monkeypatch.context() as patched:
        patched.setattr(evaluate, "accuracy", interrupt)
        assert run(capsys, *command)[0] == 130
    written, facts = load_quantized(file)
    assert facts["recipe"] == "distilled" and "accuracy" not in facts
    assert len(list(tmp_path.glob("runs/distilled_*/finetune.pt"))) == 1
    monkeypatch.setattr(distill.FineTuning, "step", lambda *_: pytest.fail("it was trained already"))
    status, out, _ = run(capsys, *command, "--json")
    assert status == 0 and not list(tmp_path.glob("runs/distilled_*"))
    again, facts = load_quantized(file)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in written.state_dict().items())
    assert facts["accuracy"] == json.loads(out)["accuracy"] and facts["n_test"] == 200


@pytest.mark.parametrize("recipe", ["squant", "distilled"])
def test_a_layer_that_the_network_lacks_is_a_wrong_argument_before_the_work(capsys, monkeypatch, recipe):
    monkeypatch.setitem(RECIPES, recipe, replace(RECIPES[recipe], run=lambda job: pytest.fail("work was begun")))
    status, err = one_line(capsys, *QUANTIZE, "--recipe", recipe, "--stages", "fc", "typo")
    assert status == 2 and "no layer 'typo' to compare features at: name layers" in err and "layer1.0.conv1" in err


def test_a_damaged_state_is_one_line_that_names_the_file(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "cache_folder", lambda: tmp_path)
    monkeypatch.setitem(BUDGETS, "quick", Budget("quick", 4, 1, 1, 1, 4, 4))
    run(capsys, *QUANTIZE, "--recipe", "zeroq", "--json")
    file, = tmp_path.glob("runs/images_*/images.pt")
    file.write_bytes(b"damaged")
    status, out, err = run(capsys, *QUANTIZE, "--recipe", "zeroq")
    assert status == 1 and out == "" and len(err.strip().splitlines()) == 1
    assert str(file) in err and "delete it" in err


def test_a_file_that_cannot_be_written_is_one_line_that_names_it(capsys, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(weight_file, "save", full)
    file = tmp_path / "small.safetensors"
    status, out, err = run(capsys, *QUANTIZE, "--recipe", "rtn-bn", "--out", str(file))
    assert status == 1 and out == "" and err.strip().splitlines()[-1].startswith(f"zsq_lab: {file} could not be written: ")
