"""The command line as a user meets it: its answers, its JSON, its exit status, its one line of trouble."""
import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from command_line import run
from sweep_workers import NUMBERS

from zsq_lab import data, engines, plans, sweeps
from zsq_lab.checkpoints import load_generator, load_quantized
from zsq_lab.job import BUDGETS, Budget
from zsq_lab.results import Item, load
from zsq_lab.resume import RunState

QUANTIZE = ["quantize", "--model", "embedded/resnet20", "--n-test", "200", "--budget", "quick"]
SWEEP = ["sweep", "--models", "embedded/resnet20", "--recipes", "rtn-bn", "--seeds", "0", "--n-test", "50"]
PROMISED = {"model", "recipe", "weight_bits", "activation_bits", "convention", "seed", "fp_accuracy", "accuracy", "drop",
            "seconds", "profile", "n_test"}


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


def test_a_damaged_state_is_one_line_that_names_the_file(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "cache_folder", lambda: tmp_path)
    monkeypatch.setitem(BUDGETS, "quick", Budget("quick", 4, 1, 1, 1, 4, 4))
    run(capsys, *QUANTIZE, "--recipe", "zeroq", "--json")
    file, = tmp_path.glob("runs/images_*/images.pt")
    file.write_bytes(b"damaged")
    status, out, err = run(capsys, *QUANTIZE, "--recipe", "zeroq")
    assert status == 1 and out == "" and len(err.strip().splitlines()) == 1
    assert str(file) in err and "delete it" in err


def test_a_trained_generator_is_written_with_its_facts(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "cache_folder", lambda: tmp_path / "cache")
    file = tmp_path / "new" / "generator.safetensors"
    status, out, _ = run(capsys, "generator", "--model", "embedded/resnet20", "--iterations", "1", "--seed", "3", "--out",
                         str(file), "--json")
    answer = json.loads(out)
    assert status == 0 and (answer["model"], answer["iterations"], answer["seed"]) == ("embedded/resnet20", 1, 3)
    assert 0 <= answer["believed"] <= 100 and 0 < answer["variety"] < 1 and answer["statistics"] > 0
    generator, facts = load_generator("embedded/resnet20", file)
    assert facts == {key: value for key, value in answer.items() if key != "out"}
    assert generator.sample(4, torch.Generator().manual_seed(0))[0].shape == (4, 3, 32, 32)
    assert "| seed | 3 |" in file.with_suffix(".md").read_text()
    assert not list((tmp_path / "cache" / "runs").glob("*/*"))


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
    ([*SWEEP, "--bits", "4", "1"], "2 to 16"),
    ([*SWEEP, "--workers", "0"], "at least 1"),
    ([*SWEEP, "--seeds", "first"], "first"),
    ([*SWEEP, "--workers", "2", "--slurm"], "choose one engine"),
    ([*SWEEP, "--cluster", "tcp://127.0.0.1:8786", "--slurm"], "choose one engine"),
    ([*SWEEP, "--budget", "endless"], "standard"),
    ([*SWEEP, "--convention", "mine"], "literature"),
    ([*SWEEP, "--recipes", "rtn-bn", "magic"], "'magic'"),
    (["sweep", "--models", "embedded/alexnet"], "embedded/resnet20"),
    (["sweep", "--profile", "mnist"], "cifar10"),
    (["sweep", "--plan", "everything"], "foundation"),
    ([*SWEEP, "--size-budgets", "4"], "share of the float size"),
    (["export", "--model", "embedded/segmenter", "--out", "network.onnx"], "takes classifiers"),
    (["sweep", "--plan", "foundation", "--recipes", "magic"], "'magic'"),
])
def test_a_wrong_argument_is_exit_status_2_and_one_line(capsys, arguments, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if arguments[:1] == ["sweep"]:
        arguments = [*arguments, "--out", str(tmp_path / "results")]
    status, out, err = run(capsys, *arguments)
    assert status == 2
    assert out == ""
    assert len(err.strip().splitlines()) == 1 and named in err
    assert not any(tmp_path.iterdir()), "nothing was begun"


def test_a_sweep_answers_resumes_and_writes_a_table(capsys, tmp_path):
    out, table = str(tmp_path / "results"), tmp_path / "tables" / "results.csv"
    status, text, err = run(capsys, *SWEEP, "--bits", "8", "--out", out)
    assert status == 0 and "1 measured, 0 were there, 0 run elsewhere, 0 failed" in text
    assert "embedded/resnet20" in text and "drop" in text and "sweep" in err, "the table on one, progress on the other"
    status, text, _ = run(capsys, *SWEEP, "--bits", "8", "4", "--acts", "8", "--edge-bits", "8", "--out", out, "--json",
                          "--csv", str(table))
    assert status == 0
    assert json.loads(text) == {"present": 0, "measured": 2, "elsewhere": 0, "failed": {}, "out": out}
    rows = load(table)
    assert [tuple(row) for row in rows[["weight_bits", "activation_bits"]].values.tolist()] == [(4, 8), (8, 8), (8, 8)]
    assert rows["edge_bits"].fillna(0).tolist() == [8, 8, 0] and (rows["n_test"] == 50).all()
    assert (rows["accuracy"] > 70).all()
    status, text, _ = run(capsys, "sweep", "--status", "--out", out)
    assert status == 0 and text == "2 done, 0 running, 0 failed, 0 left; estimated time left: 0.0 hours\n"


def test_a_sweep_with_an_item_that_failed_says_so(capsys, tmp_path):
    arguments = ["sweep", "--models", "embedded/resnet20", "--recipes", "rtn-bn", "dfq", "--bits", "8", "--seeds", "0",
                 "--n-test", "50", "--convention", "literature", "--out", str(tmp_path)]
    status, out, _ = run(capsys, *arguments)
    assert status == 1
    assert "1 measured" in out and "1 failed" in out
    assert "failed: embedded/resnet20 dfq W8A8" in out and "deployable" in out
    status, out, _ = run(capsys, *arguments, "--json")
    answer = json.loads(out)
    assert status == 1 and answer["present"] == 1 and list(answer["failed"]) == [
        "embedded/resnet20 dfq W8A8 literature standard seed 0"]
    status, out, _ = run(capsys, "sweep", "--status", "--json", "--out", str(tmp_path))
    answer = json.loads(out)
    assert status == 0 and answer.pop("seconds_left") > 0
    assert answer == {"done": 1, "running": 0, "failed": 1, "left": 1}


def test_a_plan_is_swept_as_a_whole_or_narrowed(capsys, tmp_path, monkeypatch):
    plan = [Item("embedded/resnet20", recipe, bits, bits, seed=seed) for seed in (0, 1, 2)
            for recipe in ("rtn-bn", "rtn-noise") for bits in (8, 4)]
    monkeypatch.setitem(plans.PLANS, "tiny", lambda: iter(plan))
    asked = []
    monkeypatch.setattr(sweeps, "run", lambda item, *_: asked.append(item) or NUMBERS)
    status, out, _ = run(capsys, "sweep", "--plan", "tiny", "--json", "--out", str(tmp_path))
    assert status == 0 and json.loads(out)["measured"] == 12 and set(asked) == set(plan)
    asked.clear()
    status, out, _ = run(capsys, "sweep", "--plan", "tiny", "--recipes", "rtn-noise", "--seeds", "1", "--n-test", "50",
                         "--out", str(tmp_path))
    assert asked == [replace(item, n_test=50) for item in plan[6:8]]


@pytest.mark.parametrize("arguments, engine, threads", [
    ([], "InProcess", None), (["--threads", "3"], "InProcess", 3), (["--workers", "1"], "Processes", os.cpu_count()),
    (["--workers", "10000"], "Processes", 1), (["--workers", "2", "--threads", "5"], "Processes", 5),
    (["--slurm"], "SlurmExecutor", None), (["--cluster", "tcp://127.0.0.1:9"], "DaskExecutor", None)])
def test_a_sweep_runs_where_it_is_told_to(capsys, tmp_path, monkeypatch, arguments, engine, threads):
    for name in ("DaskExecutor", "SlurmExecutor"):
        monkeypatch.setattr(engines, name, type(name, (engines.InProcess,), {"__init__": lambda self, *where: None}))
    asked = {}

    def note(items, out, *, engine, threads):
        with engine() as executor:
            asked.update(engine=type(executor).__name__, threads=threads)
        return sweeps.Outcome(table=load(tmp_path))
    monkeypatch.setattr(sweeps, "sweep", note)
    status, _, _ = run(capsys, *SWEEP, *arguments, "--out", str(tmp_path))
    assert status == 0 and asked == {"engine": engine, "threads": threads}


def test_a_folder_without_a_sweep_has_no_status(capsys, tmp_path):
    status, out, err = run(capsys, "sweep", "--status", "--out", str(tmp_path / "nowhere"))
    assert status == 1 and out == "" and len(err.splitlines()) == 1 and "start one with" in err


def test_recipes_and_models_list_what_there_is(capsys):
    _, out, _ = run(capsys, "recipes", "--json")
    names = [row["recipe"] for row in json.loads(out)["recipes"]]
    assert {"rtn-noise", "rtn-bn", "dfq", "squant", "zeroq", "distilled", "gznq", "gznq-finetuned", "zs-cgan",
            "zs-cgan-paper", "zaq", "zaq-paper", "best", "real-ranges", "real-finetune"} <= set(names)
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
