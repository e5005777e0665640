"""The command line as a whole: what there is, what is wrong in one line, answers on standard output alone."""
import json
import subprocess
import sys

import pytest
from command_line import QUANTIZE, SWEEP, run


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
    (["sweep", "--plan", "foundation", "--models", "embedded/resnet20"], "plan 'foundation' has nothing with these"),
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
