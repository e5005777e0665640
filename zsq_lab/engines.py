"""Where a sweep's items run: this process, several processes, a Dask cluster, SLURM. All are `concurrent.futures.Executor`s.

The schedulers are other people's: the standard library's, Dask's, SLURM's through submitit (extra `cluster`).
"""
import os
import threading
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path

POLL = 2.0  # seconds between two looks at a SLURM job
INSTALL = "pip install -c constraints.txt -e .[cluster]"


def cores() -> int:
    """Cores that this process may use, which SLURM, containers and taskset limit to less than the computer has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def end_with_parent() -> None:
    """Called first in a worker: where the process that started it is gone, killed perhaps, the worker ends as well.

    Nobody would take its results any more, and it would wait for calls for ever.
    """
    def watch() -> None:
        parent_process().join()
        os._exit(1)
    threading.Thread(target=watch, daemon=True).start()


class InProcess(Executor):
    """Runs each call at once, in this process: nothing is sent anywhere, all cores are the item's."""

    def submit(self, fn, /, *args, **kwargs) -> Future:
        future: Future = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # KeyboardInterrupt ends the sweep instead
            future.set_exception(error)
        return future


class Processes(Executor):
    """`workers` fresh processes (spawned: a forked PyTorch hangs). Where one dies, only the call that it ran fails.

    The standard library's pool fails all that wait; here each of `workers` threads has a pool of one process.
    """

    def __init__(self, workers: int):
        self.threads = ThreadPoolExecutor(workers)
        self.pools: dict[int, ProcessPoolExecutor] = {}  # by thread

    def submit(self, fn, /, *args, **kwargs) -> Future:
        return self.threads.submit(self._run, fn, args, kwargs)

    def _run(self, fn, args, kwargs):
        me = threading.get_ident()
        if me not in self.pools:
            self.pools[me] = ProcessPoolExecutor(1, get_context("spawn"), initializer=end_with_parent)
        try:
            return self.pools[me].submit(fn, *args, **kwargs).result()
        except BrokenExecutor:
            self.pools.pop(me).shutdown()
            raise

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self.threads.shutdown(wait, cancel_futures=cancel_futures)
        for pool in self.pools.values() if wait else ():
            pool.shutdown()


def processes(workers: int) -> partial:
    """Makes `Processes` of so many workers."""
    return partial(Processes, workers)


class DaskExecutor(Executor):
    """The executor of a Dask cluster, whose client is closed with it. address: tcp://scheduler:8786.

    Raises ValueError when Dask is not installed or the scheduler does not answer.
    """

    def __init__(self, address: str):
        try:
            from distributed import Client
        except ImportError:
            raise ValueError(f"a Dask cluster needs the extra `cluster`: {INSTALL}") from None
        try:
            self.client = Client(address, timeout="10s", set_as_default=False)
        except (OSError, ValueError) as error:
            raise ValueError(f"no Dask scheduler answers at {address} ({error}): start `dask scheduler` and "
                             "its workers") from None
        self.executor = self.client.get_executor(retries=0, pure=False)

    def submit(self, fn, /, *args, **kwargs) -> Future:
        return self.executor.submit(fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self.executor.shutdown(wait=wait and not cancel_futures)
        self.client.close()


class SlurmExecutor(Executor):
    """One SLURM job for each call, through submitit; cluster "local" runs the jobs as processes here, for trying out.

    folder: for submitit's scripts and logs, on the shared disk. parameters: submitit's (timeout_min, slurm_partition, …).
    Raises ValueError when submitit is not installed.
    """

    def __init__(self, folder: Path, cluster: str = "slurm", **parameters):
        try:
            import submitit
        except ImportError:
            raise ValueError(f"SLURM needs the extra `cluster`: {INSTALL}") from None
        self.executor = submitit.AutoExecutor(folder, cluster=cluster)
        self.executor.update_parameters(**{"timeout_min": 240, "cpus_per_task": cores()} | parameters)
        self.jobs: dict = {}
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def submit(self, fn, /, *args, **kwargs) -> Future:
        future: Future = Future()
        with self._lock:
            self.jobs[self.executor.submit(fn, *args, **kwargs)] = future
        return future

    def _watch(self) -> None:
        while not self._ended.wait(POLL):
            with self._lock:
                finished = {job: self.jobs.pop(job) for job in list(self.jobs) if job.done()}
            for job, future in finished.items():
                try:
                    future.set_result(job.result())
                except Exception as error:
                    future.set_exception(error)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        if wait and not cancel_futures:
            wait_for(list(self.jobs.values()))
        self._ended.set()
        self._watcher.join()
        for job in self.jobs if cancel_futures else ():
            job.cancel()
