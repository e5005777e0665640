"""Stand-ins for the work of a sweep that the tests share, and a sweep of them as a program of its own.

They live in a file that a worker can import, wherever it runs: a function of a test file would not travel.
"""
import json
import os
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from zsq_lab import results, sweeps
from zsq_lab.results import Item

NUMBERS = {"fp_accuracy": 91.0, "accuracy": 90.0, "drop": 1.0, "seconds": 2.0, "bytes": 70000, "n_test": 50,
           "threads": 1, "torch": "2", "machine": "none"}


def items(n: int) -> list[Item]:
    """n items of as many groups."""
    return [Item("embedded/resnet20", "rtn-bn", 4, 4, seed=seed, n_test=50) for seed in range(n)]


def starts(out: Path) -> list[str]:
    """The items that were begun in a folder, in order."""
    log = out / "starts.log"
    return log.read_text().splitlines() if log.exists() else []


def note_start(item: Item, out: Path) -> None:
    with open(out / "starts.log", "a") as log:  # one short line is appended in one piece
        log.write(f"{item}\n")


def write(item: Item, out: Path, threads: int | None = None) -> str:
    """A worker without claims that measures nothing."""
    note_start(item, out)
    results.write(out, item, NUMBERS)
    return "measured"


def die(item: Item, out: Path, threads: int | None = None) -> str:
    """The worker of seed 1 dies once, that of seed 2 always."""
    if item.seed == 2 or item.seed == 1 and str(item) not in starts(out):
        note_start(item, out)
        os._exit(1)
    return write(item, out)


def run(item: Item, shared: Path, threads: int | None = None, seconds: float = 0.0) -> dict:
    """In place of `sweeps.run`: takes the time it is told to."""
    note_start(item, shared.parent)
    time.sleep(seconds)
    return NUMBERS


def wait_until(condition, process: subprocess.Popen | None = None, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline and (process is None or process.poll() is None), "the other process has gone"
        time.sleep(0.01)


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def put_claim(out: Path, item: Item, *, host: str = socket.gethostname(), pid: int | None = None, age: float = 0.0,
              by: str | None = None) -> Path:
    file = out / f"{item.digest()}.running"
    file.write_text(json.dumps({"item": str(item), "host": host, "pid": pid or os.getpid(), "since": 0.0, "by": by}))
    os.utime(file, (time.time() - age,) * 2)
    return file


def kinds(out: Path) -> dict[str, int]:
    """How many results, claims, notes and half-written files there are."""
    return {kind: len(list(out.glob(f"*.{kind}"))) for kind in ("json", "running", "failed", "partial")}


ALL_WELL = {"running": 0, "failed": 0, "partial": 0}


if __name__ == "__main__":  # FOLDER ITEMS SECONDS: sweeps, once the file FOLDER/go is there; prints the outcome
    folder, go = Path(sys.argv[1]), Path(sys.argv[1]) / "go"
    sweeps.run = partial(run, seconds=float(sys.argv[3]))
    (folder / f"ready.{os.getpid()}").touch()
    while not go.exists():
        time.sleep(0.01)
    outcome = sweeps.sweep(items(int(sys.argv[2])), folder, progress=False)
    print(json.dumps({"measured": outcome.measured, "rows": len(outcome.table)}))
