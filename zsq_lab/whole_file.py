"""Files that are there whole or not at all: written under another name beside their own, and renamed at the end.

A reader sees the old file or the new one. Each writing has a name of its own, so that two runs at once, in whatever process
or on whatever computer, do not write into each other's: the later one replaces the file of the earlier.
"""
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """The path to write to, folders included; it becomes `path` at the end of the block, and goes if that is not reached."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = beside(path)
    try:
        yield partial
        partial.replace(path)
    finally:
        with suppress(OSError):  # what could not be written may not be there to remove either
            partial.unlink(missing_ok=True)


def beside(path: Path) -> Path:
    """A name beside `path` that nobody else writes to; `.partial`, which a sweep clears away if it is left."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.partial")
