"""One contract for every engine: the same items give the same results, and what goes wrong with one stays with it."""
import os
import subprocess
import sys
import time
from concurrent.futures import Executor, Future
from pathlib import Path

import pytest
from sweep_workers import die, items, starts

from zsq_lab import doctor, engines, image_folder
from zsq_lab.engines import DaskExecutor, InProcess, Processes, SlurmExecutor, processes
from zsq_lab.results import Item
from zsq_lab.sweeps import sweep

ITEMS = [Item("embedded/resnet20", "rtn-bn", bits, bits, n_test=50) for bits in (8, 3)]
FAILS = Item("embedded/resnet20", "dfq", 8, 8, convention="literature", n_test=50)


@pytest.fixture
def dask(tmp_path):
    """The address of a Dask cluster of one worker."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=False, host="127.0.0.1",
                                  protocol="tcp://",
                                  dashboard_address=None, silence_logs=50,
                                  local_directory=tmp_path / "dask") as cluster:
        yield cluster.scheduler_address


@pytest.fixture
def here(monkeypatch):
    """What other processes need to import what the tests import."""
    folders = [str(Path(__file__).parent), str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, folders)))
    monkeypatch.setattr(engines, "POLL", 0.05)


@pytest.fixture
def makers(request, tmp_path, here):
    """makers(name): what makes the executor."""
    def make(name: str):
        if name == "slurm":
            core = pytest.importorskip("submitit.core.core")
            # How long submitit waits for the result of a job that has ended: for slow network drives, and none is here.
            request.getfixturevalue("monkeypatch").setattr(core.Job, "_results_timeout_s", 1)
            return lambda: SlurmExecutor(tmp_path / "jobs", cluster="local")
        if name == "dask":
            address = request.getfixturevalue("dask")
            return lambda: DaskExecutor(address)
        return InProcess if name == "in process" else processes(2)
    return make


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> list[float]:
    outcome = sweep(ITEMS, tmp_path_factory.mktemp("expected"), threads=1, progress=False)
    return outcome.table.set_index("weight_bits")["accuracy"].loc[[8, 3]].tolist()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not say which cores a process may use")
def test_cores_are_those_that_this_process_may_use():
    allowed = os.sched_getaffinity(0)
    assert engines.cores() == len(allowed) <= os.cpu_count()
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert engines.cores() == 1 and doctor.check_cores().detail.startswith("1 cores") and image_folder.spare_cores() == 0
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.parametrize("name", ["in process", "processes", "dask", "slurm"])
def test_every_engine_gives_the_same_results(name, makers, expected, tmp_path):
    out, engine = tmp_path / "out", makers(name)
    outcome = sweep([*ITEMS, FAILS], out, engine=engine, threads=1, progress=False)
    assert (outcome.measured, outcome.present, outcome.elsewhere) == (2, 0, 0)
    assert outcome.table.set_index("weight_bits")["accuracy"].loc[[8, 3]].tolist() == expected
    assert (outcome.table["threads"] == 1).all() and (outcome.table["n_test"] == 50).all()
    assert expected[0] > 80 > expected[1] > 0, "numbers that differ"
    assert list(outcome.failed) == [str(FAILS)] and "use convention 'deployable'" in outcome.failed[str(FAILS)]
    files = {path.suffix for path in out.iterdir()} - {""}  # less the folder that items share
    assert files == {".json", ".failed", ".txt"} and len(list(out.glob("*.json"))) == 2
    assert "Traceback" in (out / f"{FAILS.digest()}.failed").read_text()


@pytest.mark.parametrize("name", ["in process", "processes", "dask", "slurm"])
def test_every_engine_is_an_executor(name, makers):
    with makers(name)() as executor:
        assert isinstance(executor, Executor)
        power, error = executor.submit(pow, 2, 5), executor.submit(int, "five")
        assert isinstance(power, Future) and power.result(timeout=120) == 32
        assert "invalid literal for int()" in str(error.exception(timeout=120))
    executor.shutdown()  # a second time does no harm


def test_a_worker_that_dies_is_replaced_and_costs_the_others_nothing(tmp_path, here):
    outcome = sweep(items(5), tmp_path, engine=processes(2), work=die, progress=False)
    gone = str(items(5)[2])
    assert list(outcome.failed) == [gone] and "BrokenProcessPool" in outcome.failed[gone]
    assert outcome.measured == 4 and sorted(outcome.table["seed"]) == [0, 1, 3, 4]
    begun = starts(tmp_path)
    assert [begun.count(str(item)) for item in items(5)] == [1, 2, 3, 1, 1], "tried again, and given up after three times"
    assert [path.stem for path in tmp_path.glob("*.failed")] == [items(5)[2].digest()]


def test_a_job_that_dies_is_submitted_again(tmp_path, makers):
    outcome = sweep(items(2)[1:], tmp_path / "out", engine=makers("slurm"), work=die, progress=False)
    assert outcome.measured == 1 and not outcome.failed
    assert starts(tmp_path / "out") == [str(items(2)[1])] * 2


def test_jobs_are_cancelled_when_the_sweep_is_stopped(tmp_path, makers):
    class Endless:
        cancelled = False

        def done(self) -> bool:
            return False

        def cancel(self) -> None:
            self.cancelled = True
    executor, job = makers("slurm")(), Endless()
    executor.jobs[job] = Future()
    executor.shutdown(cancel_futures=True)
    assert job.cancelled


def lives(pid: int) -> bool:
    """And is not only waiting for somebody to take note of its end."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and ") Z " not in stat.read_text()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux's /proc says what became of a process")
def test_workers_end_with_the_process_that_started_them(here):
    program = "import os, time; from zsq_lab.engines import Processes\n" \
              "if __name__ == '__main__':\n" \
              "    pool = Processes(1); print(pool.submit(os.getpid).result(), flush=True); pool.submit(time.sleep, 600)\n" \
              "    time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as starter:
        worker = int(starter.stdout.readline())
        assert lives(worker)
        starter.kill()
    until = time.monotonic() + 20
    while lives(worker) and time.monotonic() < until:
        time.sleep(0.05)
    assert not lives(worker)


def test_processes_do_no_more_at_once_than_they_are(here):
    with Processes(1) as executor:
        pids = {future.result(timeout=120) for future in [executor.submit(os.getpid) for _ in range(3)]}
    assert len(pids) == 1 and os.getpid() not in pids


def test_a_sweep_in_process_can_be_stopped():
    def stop():
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        InProcess().submit(stop)


def test_a_scheduler_that_does_not_answer_is_a_clear_error(monkeypatch):
    distributed = pytest.importorskip("distributed")
    original = distributed.Client
    monkeypatch.setattr(distributed, "Client", lambda address, timeout,
                        **more: original(address, timeout="0.2s", **more))
    with pytest.raises(ValueError, match="no Dask scheduler answers at tcp://127.0.0.1:9 .*start `dask scheduler`"):
        DaskExecutor("tcp://127.0.0.1:9")


@pytest.mark.parametrize("module, make", [("distributed", lambda: DaskExecutor("tcp://127.0.0.1:9")),
                                          ("submitit", lambda: SlurmExecutor(Path("jobs")))])
def test_a_missing_extra_is_named(monkeypatch, module, make):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=r"pip install -c constraints.txt -e \.\[cluster\]$"):
        make()


def test_slurm_is_not_played_by_this_computer_unless_asked(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="srun"):
        SlurmExecutor(tmp_path / "jobs")
