"""The command line as a whole: what there is, what is wrong in one line, answers on standard output alone."""
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import QUANTIZE, SWEEP, one_line, run

from zsq_lab import __main__
from zsq_lab.__main__ import build_parser

ROOT = Path(__file__).resolve().parent.parent


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


@pytest.mark.parametrize("error, named", [(KeyError("fc"), "KeyError: 'fc'"), (AssertionError(), "AssertionError"),
                                          (AttributeError("a\nb"), "AttributeError: a b")])
def test_what_nobody_expected_is_one_line_that_says_how_to_see_more(capsys, monkeypatch, error, named):
    monkeypatch.setattr(__main__, "_recipes", lambda args: (_ for _ in ()).throw(error))
    status, err = one_line(capsys, "recipes")
    assert status == 1 and f"unexpected {named}. " in err and "`python -X dev -m zsq_lab`" in err


def test_developers_see_the_traceback():
    broken = "from zsq_lab import __main__ as m; m._recipes = lambda args: args.nothing; m.main(['recipes'])"
    done = subprocess.run([sys.executable, "-X", "dev", "-c", broken], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "Traceback" in done.stderr and "has no attribute 'nothing'" in done.stderr


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


PAGES = [ROOT / "README.md", *sorted(ROOT.glob("data/**/*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_that_a_page_names_is_one(page):
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"-m zsq_lab ([^`\n|]*)", text)
    assert found or page.name != "README.md"
    for command in found:
        arguments = shlex.split(command.replace("NAME", "resnet20"))
        if len(arguments) > 1:
            build_parser().parse_args(arguments)  # exits where it is none
        elif arguments != ["--help"]:  # only named
            with pytest.raises(SystemExit) as stop:
                build_parser().parse_args([*arguments, "--help"])
            assert stop.value.code == 0, command


def test_what_the_readme_links_to_is_there():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    places = re.findall(r"\]\((?!http)([^)#]+)\)", text) + re.findall(r"`((?:data|notebooks|tests|zsq_lab)/[\w./-]*)`", text)
    assert len(places) > 5
    for place in places:
        assert (ROOT / place).exists() or place.startswith("data/cache"), place
