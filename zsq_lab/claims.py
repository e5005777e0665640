"""Who is at which item of a sweep: a claim is a file beside the result, so that sweeps and machines share a folder.

A claim names its process and is touched every `HEARTBEAT` seconds. That of a dead process, or one without a sign of
life, is taken over: a sweep that was killed costs nobody more than the item that ran.
"""
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from .results import Item
from .transfer import disk_errors, remove

HEARTBEAT = 30.0  # seconds between two signs of life of a running item
STALE = 4 * HEARTBEAT  # without one for so long, the worker is dead
SETTLE = 0.2  # seconds in which two workers that take over one claim notice each other
_held: set[Path] = set()  # the claims of this process


@contextmanager
def claim(out: Path, item: Item, by: str | None = None) -> Iterator[bool]:
    """Whether this worker may run the item: it may unless another one that is alive has claimed it."""
    file = out / f"{item.digest()}.running"
    me = {"item": str(item), "host": socket.gethostname(), "pid": os.getpid(), "since": time.time(), "by": by}
    taken_over = file.exists() and not alive(file, by)
    if taken_over:
        file.unlink(missing_ok=True)
    try:
        with file.open("x", encoding="utf-8") as stream:
            json.dump(me, stream)
    except FileExistsError:
        yield False
        return
    except OSError as error:
        remove([file])
        with disk_errors(file):
            raise error
    if taken_over:  # perhaps by two at once: the later one removed the claim of the earlier
        time.sleep(SETTLE)
        if _owner(file) != me:
            yield False
            return
    _held.add(file)
    _start_heart()
    try:
        yield True
    finally:
        _held.discard(file)
        file.unlink(missing_ok=True)


@cache
def _start_heart() -> None:
    """One thread of each process touches all claims that it holds: one for each would cost more than a short item."""
    def beat() -> None:
        while True:
            time.sleep(HEARTBEAT)
            for file in tuple(_held):
                with suppress(OSError):
                    os.utime(file)
    threading.Thread(target=beat, daemon=True).start()


def alive(file: Path, by: str | None = None) -> bool:
    """Whether the worker behind a claim still runs: it shows signs of life, and its process is there if ours to see.

    by: the sweep that asks; what it claimed itself before is no longer alive.
    """
    owner = _owner(file)
    if age(file) > STALE or (by and owner.get("by") == by):
        return False
    if owner.get("host") == socket.gethostname() and os.name == "posix":
        try:
            os.kill(owner["pid"], 0)
        except ProcessLookupError:
            return False
        except (KeyError, TypeError, PermissionError):
            pass  # not ours to see: its age decides
    return True


def age(file: Path) -> float:
    """Seconds since a file was touched; endless for one that is gone."""
    try:
        return time.time() - file.stat().st_mtime
    except FileNotFoundError:
        return float("inf")


def _owner(file: Path) -> dict:
    """What a claim says; {} when it is gone, half-written or foreign: its age decides."""
    try:
        owner = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}
