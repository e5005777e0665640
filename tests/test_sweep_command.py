"""`sweep`: its answer, its table, the items that a plan or the arguments name, the engine that they choose."""
import json
import os
from dataclasses import replace

import pytest
from command_line import SWEEP, one_line, run
from sweep_workers import NUMBERS

from zsq_lab import engines, plans, sweep_command, sweeps
from zsq_lab.__main__ import build_parser
from zsq_lab.results import Item, load


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


def test_a_plan_is_narrowed_by_bare_names_too():
    def items(*models):
        return sweep_command._items(build_parser().parse_args(["sweep", "--plan", "foundation", "--models", *models]))
    assert items("resnet20") == items("cifar10/resnet20") != []
    assert {item.model for item in items("resnet20", "cifar10/mobilenetv2")} == {"cifar10/resnet20", "cifar10/mobilenetv2"}


def test_models_that_a_plan_does_not_have_are_told_which_it_has(capsys, tmp_path):
    status, err = one_line(capsys, "sweep", "--plan", "foundation", "--models", "segmenter", "--out", str(tmp_path))
    assert status == 2 and "its models are cifar10/resnet20, cifar10/mobilenetv2" in err


@pytest.mark.parametrize("arguments, engine, threads", [
    ([], "InProcess", None), (["--threads", "3"], "InProcess", 3), (["--workers", "1"], "Processes", engines.cores()),
    (["--workers", "10000"], "Processes", 1), (["--workers", "2", "--threads", "5"], "Processes", 5),
    (["--slurm"], "SlurmExecutor", None), (["--cluster", "tcp://127.0.0.1:9"], "DaskExecutor", None)])
def test_a_sweep_runs_where_it_is_told_to(capsys, tmp_path, monkeypatch, arguments, engine, threads):
    for name in ("DaskExecutor", "SlurmExecutor"):
        monkeypatch.setattr(engines, name, type(name, (engines.InProcess,), {"__init__": lambda self, *where, **more: None}))
    asked = {}

    def note(items, out, *, engine, threads):
        with engine() as executor:
            asked.update(engine=type(executor).__name__, threads=threads)
        return sweeps.Outcome(table=load(tmp_path))
    monkeypatch.setattr(sweeps, "sweep", note)
    status, _, _ = run(capsys, *SWEEP, *arguments, "--out", str(tmp_path))
    assert status == 0 and asked == {"engine": engine, "threads": threads}


@pytest.mark.parametrize("arguments, cpus", [(["--threads", "4"], 4), ([], 128)])
def test_a_slurm_job_asks_for_the_cores_that_its_item_uses(tmp_path, monkeypatch, arguments, cpus):
    submitit, asked = pytest.importorskip("submitit"), {}

    class Asked:
        def __init__(self, folder, cluster):
            self.update_parameters = asked.update
    monkeypatch.setattr(submitit, "AutoExecutor", Asked)
    monkeypatch.setattr(engines, "cores", lambda: 128)
    args = build_parser().parse_args([*SWEEP, "--slurm", *arguments])
    sweep_command._engine(args, tmp_path)().shutdown()
    assert asked["cpus_per_task"] == cpus


def test_a_bare_name_means_the_data_of_its_task(capsys, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(sweeps, "run", lambda item, *_: asked.append(item.model) or NUMBERS)
    monkeypatch.setenv("ZSQ_CAMVID", str(tmp_path))
    command = ["sweep", "--recipes", "rtn-bn", "--bits", "8", "--seeds", "0", "--out", str(tmp_path)]
    assert run(capsys, *command, "--models", "segmenter")[0] == 0
    assert run(capsys, *command, "--models", "detector", "resnet20", "--profile", "embedded")[0] == 0
    assert asked == ["camvid/segmenter", "embedded/detector", "embedded/resnet20"]
    assert one_line(capsys, *command, "--models", "segmenter", "--profile", "cifar10")[0] == 2


@pytest.mark.parametrize("option, value", [("--bits", "4"), ("--acts", "8"), ("--edge-bits", "8"), ("--size-budgets", "0.15"),
                                           ("--convention", "literature"), ("--profile", "embedded")])
def test_what_a_plan_settles_is_refused(capsys, tmp_path, monkeypatch, option, value):
    monkeypatch.setattr(sweeps, "sweep", lambda *_, **__: pytest.fail("work was begun"))
    status, err = one_line(capsys, "sweep", "--plan", "foundation", option, value, "--out", str(tmp_path))
    assert status == 2 and f"{option} is settled by the plan 'foundation'" in err


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not say which cores a process may use")
def test_workers_share_the_cores_that_this_process_may_use():
    args = build_parser().parse_args([*SWEEP, "--workers", "1"])
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert sweep_command._threads(args) == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_a_folder_without_a_sweep_has_no_status(capsys, tmp_path):
    status, err = one_line(capsys, "sweep", "--status", "--out", str(tmp_path / "nowhere"))
    assert status == 1 and "start one with" in err


@pytest.mark.parametrize("arguments, said", [
    (["--out", "file"], "is a file: name a folder"), (["--status", "--out", "file"], "is a file: name a folder"),
    (["--out", "results", "--csv", "folder"], "--csv folder is a folder"),
    (["--out", "results", "--seeds", "-1"], "not a seed"),
    (["--out", "results", "--csv", "file/table.csv"], "--csv file/table.csv is inside of a file")])
def test_a_place_that_cannot_take_the_results_is_refused_before_the_work(capsys, tmp_path, monkeypatch, arguments,
                                                                         said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweeps, "sweep", lambda *_, **__: pytest.fail("work was begun"))
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    status, err = one_line(capsys, *SWEEP, *arguments)
    assert status == 2 and said in err
