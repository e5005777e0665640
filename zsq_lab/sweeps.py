"""Many measurements on any engine: `sweep` runs the items that a folder does not have yet.

Items are independent, so any `concurrent.futures.Executor` will do: this process, several, Dask, SLURM (`engines`).
Every item is claimed by a file beside its result (`claims`), so that two sweeps share a folder.
What is made once per network, recipe and seed (images, generators) lies in a shared folder: one item of a group goes
first, the others find it there.

On 10,000 items and 200 nodes: an item is minutes of work and one submission of half a kilobyte; at 10 minutes an item
the scheduler sees 20 ends a minute, Dask alone takes thousands a second. The folder holds 10,000 results of about 1 kB,
plus at most 200 claims, and a claim is touched every 30 seconds: 7 small writes a second on the shared disk.
Listing the folder is one call for all items, not one each. Simulated: 10,000 items that do nothing take this program
6 seconds and 30 MB beyond its imports, and leave 10,001 files; of a sweep of 100 real items of 3 seconds 0.2 % passed
outside the items (299.5 seconds, 298.8 of them inside `run`; `sweep --recipes rtn-bn --n-test 200 --seeds 0 ... 19`).
Eight items of about 15 seconds take 147 seconds on one Dask worker of one thread and 87 on two, 1.7 times as fast (two
cores; `sweep --recipes rtn-bn --bits 8 --seeds 0 1 2 3 4 5 6 7 --n-test 5000 --threads 1 --cluster ...`).
"""
import platform
import traceback
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from queue import SimpleQueue

import pandas as pd
import torch
from tqdm import tqdm

from . import results
from .checkpoints import load_model
from .claims import STALE, age, alive, claim
from .engines import InProcess
from .imagenet_models import is_imagenet
from .lab import real_images
from .layers import QuantConfig
from .recipes import RECIPES, quantize
from .resume import kept_until_written
from .results import Item
from .tasks import task_of
from .transfer import DiskError, remove

PLAN = "plan.txt"  # the items of the sweep that was started last, for `status`
RETRIES = 2  # of an item whose worker died; an item that fails by itself would fail again


@dataclass
class Outcome:
    """What became of a sweep's items, by number, and why those that failed did; the table of the whole folder."""

    present: int = 0
    measured: int = 0
    elsewhere: int = 0  # claimed by another sweep on the same folder
    failed: dict[str, str] = field(default_factory=dict)
    table: pd.DataFrame | None = None


def sweep(items: Iterable[Item], out: Path, *, engine: Callable[[], Executor] = InProcess,
          work: Callable[[Item, Path, int | None], str] | None = None, threads: int | None = None,
          progress: bool = True) -> Outcome:
    """Measure the items that `out` does not have, write one file each, return the table and what became of them.

    engine: makes a `concurrent.futures.Executor`, see `engines`. work: what a worker runs, `measure` unless told.
    threads: of each item, None leaves them as they are. Where a worker dies, its item is tried again, in a new executor
    if the old one is broken; what fails is reported and noted in a `.failed` file, everything else goes on.
    """
    items, work = list(dict.fromkeys(items)), work or partial(measure, by=uuid.uuid4().hex)
    out.mkdir(parents=True, exist_ok=True)
    results.write_text(out / PLAN, "".join(f"{item.digest()} {item}\n" for item in items))
    remove(file for file in out.glob("*.partial") if age(file) > STALE)  # of workers that were killed as they wrote
    have = {file.stem for file in out.glob("*.json")}  # one listing, not a look for each item
    missing = [item for item in items if item.digest() not in have or not results.done(out, item)]
    outcome, executor = Outcome(present=len(items) - len(missing)), engine()
    running: dict[Future, tuple[Item, list[Item]]] = {}
    ended: SimpleQueue[Future] = SimpleQueue()  # each future announces its end: no look at thousands for each that ends
    deaths: Counter[Item] = Counter()
    bar = tqdm(total=len(missing), desc="sweep", disable=not progress)

    def submit(item: Item, followers: list[Item]) -> None:
        nonlocal executor
        try:
            future = executor.submit(work, item, out, threads)
        except BrokenExecutor:
            executor.shutdown(wait=False)
            executor = engine()
            future = executor.submit(work, item, out, threads)
        running[future] = item, followers
        future.add_done_callback(ended.put)

    def settle(future: Future) -> None:
        item, followers = running.pop(future)
        error = CancelledError("given up by its scheduler") if future.cancelled() else future.exception()
        if _worker_died(error) and deaths[item] < RETRIES:
            deaths[item] += 1
            return submit(item, followers)
        note = out / f"{item.digest()}.failed"
        if error is not None:
            outcome.failed[str(item)] = f"{type(error).__name__}: {error}"
            with suppress(DiskError):
                results.write_text(note, f"{item}\n{''.join(traceback.format_exception(error))}")
        else:
            answer = future.result()
            setattr(outcome, answer, getattr(outcome, answer) + 1)
            remove([note] if answer != "elsewhere" else [])
        bar.update()
        for follower in followers:
            submit(follower, [])

    try:
        for first, *followers in _groups(missing):  # the others of a group wait for what the first one makes
            submit(first, followers)
            while not ended.empty():  # in process, everything that is submitted has ended
                settle(ended.get())
        while running:
            settle(ended.get())
    finally:
        bar.close()
        executor.shutdown(cancel_futures=True)
    outcome.table = results.load_measured(out)  # not of tables: one may be what --csv wrote there before the code changed
    return outcome


def _worker_died(error: BaseException | None) -> bool:
    """Whether the process under the item went away, in the words of any engine."""
    return isinstance(error, BrokenExecutor) or type(error).__name__ in ("KilledWorker", "UncompletedJobError")


def measure(item: Item, out: Path, threads: int | None = None, by: str | None = None) -> str:
    """Run one item and write its result; returns "measured", "present" or "elsewhere". Runs in a worker.

    by: names the sweep. An item that it claimed before is its own: the worker that had it is gone.
    """
    with claim(out, item, by) as mine:
        if not mine:
            return "elsewhere"
        if results.done(out, item):  # since the sweep began
            return "present"
        with kept_until_written():  # measuring may take as long as the recipe
            results.write(out, item, run(item, out / "shared", threads))
    return "measured"


def run(item: Item, shared: Path, threads: int | None = None) -> dict:
    """What an item measures: all of `results.COLUMNS` beyond its settings. shared: where images and generators lie."""
    if is_imagenet(item.model):
        from .imagenet_sweep import run as run_imagenet
        return run_imagenet(item, shared, threads)
    task, (network, _) = task_of(item.model), load_model(item.model)
    dataset = task.dataset(item.model.split("/")[0])
    config = QuantConfig(item.weight_bits, item.activation_bits, item.edge_bits, item.convention)
    test, before = dataset.test(), torch.get_num_threads()
    images = None
    if RECIPES[item.recipe].needs_images:
        images = real_images(dataset.train(), dataset, len(dataset.train()), item.seed)
    try:
        torch.set_num_threads(threads or before)
        result = quantize(network, config, item.recipe, image_shape=dataset.image_shape, seed=item.seed,
                          budget=item.budget, images=images, resume=shared, size_budget=item.size_budget, task=task)
        full = full_accuracy(item.model, item.n_test)
        measured = task.measure(result.model, test, dataset, item.n_test)[task.metric]
    finally:
        torch.set_num_threads(before)
    report = result.report
    return {"fp_accuracy": round(full, 2), "accuracy": round(measured, 2), "drop": round(full - measured, 2),
            "seconds": round(report["seconds"], 1), "bytes": report["bytes_after"],
            "n_test": min(len(test), item.n_test or len(test)),
            "threads": report["threads"], "torch": report["versions"]["torch"],
            "machine": f"{platform.machine()} {report['device']}"}


@cache
def full_accuracy(model: str, n_test: int | None) -> float:
    """Accuracy (mIoU, mAP50) in percent of a shipped network in full precision, measured once in each process."""
    task = task_of(model)
    dataset = task.dataset(model.split("/")[0])
    return task.measure(load_model(model)[0], dataset.test(), dataset, n_test)[task.metric]


def status(out: Path) -> dict:
    """{"done", "running", "failed", "left", "seconds_left"} of the sweep that was last started on the folder.

    The time left is that of the items left at the mean time of those done, shared among those running now; None while
    nothing is done.
    Raises ValueError for a folder without a sweep.
    """
    plan = out / PLAN
    if not plan.is_file():
        raise ValueError(f"{out} holds no sweep: start one with `python -m zsq_lab sweep --out {out}`")
    digests = {line.split(" ", 1)[0] for line in plan.read_text(encoding="utf-8").splitlines()}
    present = [file for file in out.glob("*.json") if file.stem in digests]
    left = digests - {file.stem for file in present}
    running = {file.stem for file in out.glob("*.running") if file.stem in left and alive(file)}
    failed = {file.stem for file in out.glob("*.failed") if file.stem in left} - running
    seconds = [found[1]["seconds"] for file in present if (found := results.read(file))]
    mean = sum(seconds) / len(seconds) if seconds else None
    return {"done": len(present), "running": len(running), "failed": len(failed), "left": len(left),
            "seconds_left": 0.0 if not left else mean and len(left) * mean / max(1, len(running))}


def _groups(items: list[Item]) -> Iterable[list[Item]]:
    groups: dict[tuple, list[Item]] = {}
    for item in items:
        groups.setdefault(item.group(), []).append(item)
    return groups.values()
