"""Sweeps: nothing is measured twice, nothing that goes wrong costs more than its own item, folders are shared."""
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from concurrent.futures import BrokenExecutor, Executor, Future
from pathlib import Path

import pytest
import torch
from small_disk import full_disk  # noqa: F401 (a fixture)
from sweep_workers import ALL_WELL, NUMBERS, dead_pid, items, kinds, put_claim, run, starts, wait_until, write

from zsq_lab import distill, evaluate, results, sweeps
from zsq_lab.claims import STALE, claim
from zsq_lab.job import BUDGETS, Budget
from zsq_lab.results import Item
from zsq_lab.resume import RunState
from zsq_lab.sweeps import PLAN, measure, status, sweep
from zsq_lab.transfer import DiskError

ITEM = items(1)[0]


@pytest.fixture
def stand_in(monkeypatch):
    """Items take no time; they are noted when they start."""
    monkeypatch.setattr(sweeps, "run", run)


@pytest.fixture
def program():
    """program(folder, items, seconds) -> a sweep of stand-ins as another process, once it is ready to go."""
    started = []

    def start(folder: Path, n: int, seconds: float) -> subprocess.Popen:
        here = Path(__file__).parent
        paths = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
        process = subprocess.Popen([sys.executable, here / "sweep_workers.py", folder, str(n), str(seconds)], text=True,
                                   stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": paths})
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_sweep_measures_what_quantize_and_accuracy_say(tmp_path):
    from zsq_lab import QuantConfig, quantize, setup
    item = Item("embedded/resnet20", "rtn-bn", 4, 6, edge_bits=8, seed=3, n_test=60)
    threads = torch.get_num_threads()
    row = sweep([item], tmp_path, threads=1, progress=False).table.iloc[0]
    lab = setup("embedded")
    result = quantize(lab.model, QuantConfig(4, 6, 8), "rtn-bn", image_shape=(3, 32, 32), seed=3)
    assert row["accuracy"] == round(lab.accuracy(result.model, 60), 2)
    assert row["fp_accuracy"] == round(lab.accuracy(lab.model, 60), 2)
    assert row["drop"] == pytest.approx(row["fp_accuracy"] - row["accuracy"], abs=0.011)
    assert (row["seed"], row["n_test"], row["bytes"]) == (3, 60, result.report["bytes_after"])
    assert torch.get_num_threads() == threads, "left as they were"


def test_a_second_run_does_only_what_is_missing(tmp_path, stand_in):
    first = sweep(items(3), tmp_path, progress=False)
    assert (first.measured, first.present) == (3, 0)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*.json")}
    second = sweep([*items(5), *items(2)], tmp_path, progress=False)  # an item that is named twice is one item
    assert (second.measured, second.present, second.failed) == (2, 3, {})
    assert starts(tmp_path) == [str(item) for item in items(5)]
    assert all(file.stat().st_mtime_ns == time for file, time in before.items())
    assert sorted(second.table["seed"]) == [0, 1, 2, 3, 4]
    assert kinds(tmp_path) == {"json": 5} | ALL_WELL


def test_the_outcome_is_what_was_measured_not_what_a_table_says(tmp_path, stand_in):
    table = sweep(items(2), tmp_path, progress=False).table
    results.save_csv(table.assign(seed=table["seed"] + 5, n_test=7), tmp_path / "table.csv")
    assert sorted(sweep(items(2), tmp_path, progress=False).table["seed"]) == [0, 1]


@pytest.mark.parametrize("content", ["", '{"day": "rainy"}'])
def test_a_damaged_result_is_named_and_measured_anew(tmp_path, stand_in, content):
    sweep(items(2), tmp_path, progress=False)
    file = tmp_path / f"{ITEM.digest()}.json"
    file.write_text(content)
    with pytest.warns(UserWarning, match=f"{file.name} is skipped"):
        outcome = sweep(items(2), tmp_path, progress=False)
    assert (outcome.measured, outcome.present, len(outcome.table)) == (1, 1, 2)
    assert results.done(tmp_path, ITEM)


def test_an_item_that_raises_is_reported_and_noted_until_it_succeeds(tmp_path, monkeypatch):
    def faulty(item, shared, threads):
        if item.seed == 1:
            raise RuntimeError("mode collapse")
        return NUMBERS
    monkeypatch.setattr(sweeps, "run", faulty)
    outcome = sweep(items(3), tmp_path, progress=False)
    assert outcome.failed == {str(items(3)[1]): "RuntimeError: mode collapse"}
    assert outcome.measured == 2 and len(outcome.table) == 2
    note = tmp_path / f"{items(3)[1].digest()}.failed"
    assert kinds(tmp_path) == {"json": 2, "failed": 1, "running": 0, "partial": 0}
    text = note.read_text()
    assert text.startswith(str(items(3)[1])) and text.endswith("RuntimeError: mode collapse\n") and "in faulty" in text
    monkeypatch.setattr(sweeps, "run", lambda *_: NUMBERS)
    outcome = sweep(items(3), tmp_path, progress=False)
    assert (outcome.measured, outcome.failed) == (1, {}) and not note.exists()


def test_the_widths_of_a_group_wait_for_its_first_item(tmp_path):
    class Patient(Executor):
        """Runs what it was given when it is told to."""
        given: list = []

        def submit(self, fn, item, *more):
            future = Future()
            self.given.append((item, future, lambda: future.set_result(fn(item, *more))))
            return future

    widths = [Item("embedded/resnet20", "rtn-bn", bits, bits, seed=seed) for bits in (8, 4, 2) for seed in (0, 1)]
    sweeping = threading.Thread(target=sweep, args=(widths, tmp_path), daemon=True,
                                kwargs={"engine": Patient, "work": write, "progress": False})
    sweeping.start()
    wait_until(lambda: len(Patient.given) == 2)
    assert [item for item, _, _ in Patient.given] == widths[:2]
    Patient.given[1][2]()
    wait_until(lambda: len(Patient.given) == 4)
    assert [item for item, _, _ in Patient.given[2:]] == [widths[3], widths[5]], "the others of seed 1, not of seed 0"
    Patient.given[0][2]()
    wait_until(lambda: len(Patient.given) == 6)
    for _, _, finish in Patient.given[2:]:
        finish()
    sweeping.join(60)
    assert not sweeping.is_alive() and len(results.load(tmp_path)) == 6


def test_in_process_the_order_is_the_plans(tmp_path):
    widths = [Item("embedded/resnet20", "rtn-bn", bits, bits, seed=seed) for seed in (0, 1) for bits in (8, 4)]
    sweep(widths, tmp_path, work=write, progress=False)
    assert starts(tmp_path) == [str(item) for item in widths]


def dying(name: str, times: int, kind: type = Exception) -> type:
    """An engine whose workers die under seed 1 so many times, in the words of Dask or submitit."""
    class Dying(Executor):
        deaths = 0

        def submit(self, fn, item, *more):
            future = Future()
            if item.seed == 1 and Dying.deaths < times:
                Dying.deaths += 1
                future.set_exception(type(name, (kind,), {})("gone"))
            else:
                future.set_result(fn(item, *more))
            return future
    return Dying


@pytest.mark.parametrize("name", ["KilledWorker", "UncompletedJobError"])
def test_a_dead_worker_of_any_engine_is_retried_twice(tmp_path, name):
    outcome = sweep(items(3), tmp_path / "twice", engine=dying(name, 2), work=write, progress=False)
    assert (outcome.measured, outcome.failed) == (3, {})
    outcome = sweep(items(3), tmp_path / "thrice", engine=dying(name, 3), work=write, progress=False)
    assert outcome.measured == 2 and outcome.failed == {str(items(3)[1]): f"{name}: gone"}
    other = dying("ValueError", 1)
    assert len(sweep(items(3), tmp_path / "own", engine=other, work=write, progress=False).failed) == 1
    assert other.deaths == 1, "an item that fails by itself would fail again"


def test_a_broken_executor_is_replaced(tmp_path):
    made = []

    class Breaks(Executor):
        """Like the standard pool: fails what it has and takes nothing more."""
        def __init__(self):
            made.append(self)
            self.broken = False

        def submit(self, fn, item, *more):
            if self.broken:
                raise BrokenExecutor("no more")
            future, self.broken = Future(), len(made) == 1 and item.seed == 1
            if self.broken:
                future.set_exception(BrokenExecutor("a process died"))
            else:
                future.set_result(fn(item, *more))
            return future
    outcome = sweep(items(4), tmp_path, engine=Breaks, work=write, progress=False)
    assert (outcome.measured, outcome.failed, len(made)) == (4, {}, 2)


def test_a_call_that_the_scheduler_gives_up_is_reported(tmp_path):
    class GivesUp(Executor):
        def submit(self, fn, item, *more):
            future = Future()
            future.cancel()
            future.set_running_or_notify_cancel()
            return future
    outcome = sweep(items(1), tmp_path, engine=GivesUp, progress=False)
    assert outcome.failed == {str(ITEM): "CancelledError: given up by its scheduler"}


def test_a_killed_sweep_loses_the_item_that_ran_and_nothing_else(tmp_path, stand_in, program):
    (tmp_path / "go").touch()
    process = program(tmp_path, 4, 0.3)
    wait_until(lambda: len(starts(tmp_path)) == 3, process)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert kinds(tmp_path) == {"json": 2, "running": 1, "failed": 0, "partial": 0}
    assert len(results.load(tmp_path)) == 2
    assert status(tmp_path) == {"done": 2, "running": 0, "failed": 0, "left": 2, "seconds_left": 4.0}
    outcome = sweep(items(4), tmp_path, progress=False)
    assert (outcome.measured, outcome.present, outcome.elsewhere) == (2, 2, 0)
    assert [starts(tmp_path).count(str(item)) for item in items(4)] == [1, 1, 2, 1]
    assert kinds(tmp_path) == {"json": 4} | ALL_WELL


def test_an_item_that_is_interrupted_while_it_is_measured_or_written_goes_on(tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt
    monkeypatch.setattr(RunState.__init__, "__defaults__", (None, 0.0))
    monkeypatch.setitem(BUDGETS, "quick", Budget("quick", 4, 3, 3, 3, 4, 4))
    item = Item("embedded/resnet20", "distilled", 4, 4, budget="quick", n_test=50)
    for home, name in ((evaluate, "accuracy"), (results, "write")):
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(home, name, interrupt)
            sweep([item], tmp_path, progress=False)
        assert len(list(tmp_path.glob("shared/distilled_*/finetune.pt"))) == 1
        monkeypatch.setattr(distill.FineTuning, "step", lambda *_: pytest.fail("it was trained already"))
    assert sweep([item], tmp_path, progress=False).measured == 1
    assert not list(tmp_path.glob("shared/distilled_*"))


def test_a_sweep_that_was_killed_as_it_wrote_leaves_nothing_for_long(tmp_path, stand_in):
    half, recent = (tmp_path / f"{item.digest()}.json.7.partial" for item in items(2))
    half.write_text('{"item"')
    recent.write_text('{"item"')  # perhaps of another sweep that is writing just now
    os.utime(half, (time.time() - 2 * STALE,) * 2)
    assert sweep(items(2), tmp_path, progress=False).measured == 2
    assert not half.exists() and recent.exists()


def test_two_sweeps_on_one_folder_share_the_work(tmp_path, program):
    pair = [program(tmp_path, 12, 0.05) for _ in range(2)]
    wait_until(lambda: len(list(tmp_path.glob("ready.*"))) == 2)
    (tmp_path / "go").touch()
    answers = [json.loads(process.communicate(timeout=120)[0]) for process in pair]
    assert sorted(starts(tmp_path)) == sorted(map(str, items(12))), "each item once"
    assert sum(answer["measured"] for answer in answers) == 12 and all(answer["measured"] for answer in answers)
    assert max(answer["rows"] for answer in answers) == 12
    assert kinds(tmp_path) == {"json": 12} | ALL_WELL


def test_an_item_that_another_sweep_has_is_left_to_it(tmp_path, stand_in):
    file = put_claim(tmp_path, ITEM)
    outcome = sweep(items(2), tmp_path, progress=False)
    assert (outcome.measured, outcome.elsewhere, len(outcome.table)) == (1, 1, 1)
    assert file.exists() and starts(tmp_path) == [str(items(2)[1])]


def test_an_item_that_another_sweep_ended_in_the_meantime_is_not_measured_again(tmp_path, stand_in):
    assert measure(ITEM, tmp_path) == "measured"
    assert measure(ITEM, tmp_path) == "present"
    assert len(starts(tmp_path)) == 1


@pytest.mark.parametrize("claimed, free", [
    ({}, False),  # this very process lives
    ({"pid": 1}, False),  # so does somebody else's
    ({"pid": "dead"}, True),
    ({"pid": "dead", "host": "elsewhere"}, False),  # only its signs of life can be seen
    ({"host": "elsewhere", "age": STALE + 1}, True),
    ({"age": STALE + 1}, True),  # the number of a process is used again
    ({"host": "elsewhere", "by": "this sweep"}, True),  # its worker died: a sweep runs no item twice at once
    ({"host": "elsewhere", "by": "another"}, False),
])
def test_a_claim_is_respected_as_long_as_its_worker_lives(tmp_path, stand_in, claimed, free):
    file = put_claim(tmp_path, ITEM, **claimed | ({"pid": dead_pid()} if claimed.get("pid") == "dead" else {}))
    assert measure(ITEM, tmp_path, by="this sweep") == ("measured" if free else "elsewhere")
    assert file.exists() != free


def test_a_full_disk_fails_the_items_and_leaves_no_piece(full_disk, monkeypatch):
    folder, fill = full_disk

    def filling(item, shared, threads):
        fill()
        return NUMBERS
    monkeypatch.setattr(sweeps, "run", filling)
    outcome = sweep(items(2), folder, progress=False)
    assert list(outcome.failed) == [str(item) for item in items(2)] and outcome.table.empty
    assert all("No space left while writing" in reason and "Free some" in reason for reason in outcome.failed.values())
    assert kinds(folder) | {"failed": 0} == {"json": 0} | ALL_WELL  # the notes may have found a little space
    fill()
    with pytest.raises(DiskError, match="No space left"), claim(folder, ITEM):
        pass
    with pytest.raises(DiskError, match=f"No space left while writing .*{PLAN}"):
        sweep(items(5000), folder, progress=False)
    assert kinds(folder) | {"failed": 0} == {"json": 0} | ALL_WELL
    assert status(folder)["left"] == 2, "the plan is the old one, whole"
    (folder / "filler").unlink()
    monkeypatch.setattr(sweeps, "run", lambda *_: NUMBERS)
    assert sweep(items(2), folder, progress=False).measured == 2
    assert kinds(folder) == {"json": 2} | ALL_WELL


def test_status_counts_and_estimates(tmp_path):
    plan = items(8)
    (tmp_path / PLAN).write_text("".join(f"{item.digest()} {item}\n" for item in plan))
    for item, seconds in zip(plan, (10.0, 20.0)):
        results.write(tmp_path, item, NUMBERS | {"seconds": seconds})
    results.write(tmp_path, items(9)[8], NUMBERS | {"seconds": 500.0})  # of an earlier sweep
    put_claim(tmp_path, plan[2])
    put_claim(tmp_path, plan[3])
    put_claim(tmp_path, plan[4], pid=dead_pid())
    for item in (plan[0], plan[3], plan[4], plan[5]):  # done since, tried again just now, dead, and failed
        (tmp_path / f"{item.digest()}.failed").write_text("why")
    assert status(tmp_path) == {"done": 2, "running": 2, "failed": 2, "left": 6, "seconds_left": 6 * 15.0 / 2}


def test_status_before_the_first_result_and_after_the_last(tmp_path, stand_in):
    (tmp_path / PLAN).write_text(f"{ITEM.digest()} {ITEM}\n")
    assert status(tmp_path) == {"done": 0, "running": 0, "failed": 0, "left": 1, "seconds_left": None}
    sweep([ITEM], tmp_path, progress=False)
    assert status(tmp_path) == {"done": 1, "running": 0, "failed": 0, "left": 0, "seconds_left": 0.0}


def test_a_folder_without_a_sweep_has_no_status(tmp_path):
    with pytest.raises(ValueError, match="holds no sweep: start one with"):
        status(tmp_path / "nowhere")


def test_the_package_offers_the_sweep():
    import zsq_lab
    assert zsq_lab.sweep is sweep


def test_ten_thousand_items_cost_seconds_and_little_memory(tmp_path, stand_in):
    peaks = []
    for folder in (tmp_path / "first", tmp_path):  # the first may load modules, and other tests' threads allocate too
        tracemalloc.start()  # makes everything slow: a tenth is enough
        try:
            sweep(items(1000), folder, progress=False)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    shutil.rmtree(tmp_path / "first")
    peak = min(peaks)
    assert peak < 8e6, "2.5 kB for each item, most of them the table's"
    began = time.process_time()
    outcome = sweep(items(10_000), tmp_path, progress=False)
    seconds = time.process_time() - began
    assert (outcome.measured, outcome.present, outcome.failed, len(outcome.table)) == (9000, 1000, {}, 10_000)
    assert len(list(tmp_path.iterdir())) == 10_002, "a file for each result, the plan and the log of this test"
    assert seconds < 18, "three times what it takes on two slow cores"
    print(f"{seconds:.1f} s, {peak / 1e6:.1f} MB")
