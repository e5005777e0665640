"""One file from one address: resumed where it was cut off, given up where it is too slow, never past a full disk.

What came so far stays in the file, so that the next call asks for the rest only (HTTP Range requests, RFC 9110). An
error says by its class whether another source would help. Used by `zsq_lab.download`.
"""
import errno
import http.client
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from .cifar10 import DataError

CHUNK = 1 << 16  # bytes taken from the network at a time
CONNECTIONS = 5  # to one address, as long as each brings something


class DiskError(DataError):
    """The folder cannot be written or is full: no other source would help."""


class SourceError(DataError):
    """This source failed: the next may work."""


class SlowSource(SourceError):
    """This source works, but a faster one is worth trying first."""


@dataclass(frozen=True)
class Limits:
    """timeout: seconds without an answer. min_speed: bytes per second, averaged over `patience` seconds."""

    timeout: float = 10.0
    min_speed: float = 100_000.0
    patience: float = 20.0


def fetch(url: str, path: Path, limits: Limits, reserve: int) -> None:
    """Downloads an address to a path, going on from what is there, and again after a cut that brought something.

    reserve: bytes that must stay free beside the file, for the unpacked data. Raises SourceError (the server fails),
    SlowSource (it is slower than the limits allow) or DiskError (the file cannot be written).
    """
    for connection in range(CONNECTIONS):
        before = _size(path)
        try:
            return _transfer(url, path, limits, reserve)
        except urllib.error.HTTPError as error:
            error.close()  # it holds the connection
            if error.code != 416 or not before:
                raise SourceError(f"the server answers {error.code} {error.reason} for {url}") from error
            if error.headers.get("Content-Range") == f"bytes */{before}":
                return  # nothing after the last byte: the file was complete
            remove([path])  # a leftover that does not fit the file there now
        except (OSError, http.client.HTTPException) as error:
            if _size(path) <= before or connection == CONNECTIONS - 1:
                raise SourceError(f"{getattr(error, 'reason', error) or type(error).__name__} ({url})") from error


def _transfer(url: str, path: Path, limits: Limits, reserve: int) -> None:
    """The same over one connection."""
    have = _size(path)
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=limits.timeout) as response:
        if response.status != 206:
            have = 0  # the whole file comes, wanted or not
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            raise SourceError(f"the server sends another part of the file than asked for ({url})")
        length = response.headers.get("Content-Length")
        require_space(path.parent, int(length or 0) + reserve)
        total = have + int(length) if length else None
        with disk_errors(path):
            file = open(path, "ab" if have else "wb")
        with file, tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=url.rsplit("/", 1)[-1]) as bar:
            began, received = time.monotonic(), 0
            while block := response.read1(CHUNK):
                with disk_errors(path):
                    file.write(block)
                    file.flush()  # a full disk shows here, not when the file is closed
                bar.update(len(block))
                received += len(block)
                seconds = time.monotonic() - began
                if seconds > limits.patience:
                    if received < limits.min_speed * seconds:
                        raise SlowSource(f"slow, {received / seconds / 1000:.0f} kB/s")
                    began, received = time.monotonic(), 0
        if total is not None and _size(path) < total:
            raise ConnectionError(f"cut off after {_size(path):,} of {total:,} bytes")


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns the operating system's errors about a path into a DiskError that says what to do."""
    try:
        yield
    except PermissionError as error:
        raise DiskError(f"No permission to write {path}. Choose another folder or change its owner.") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskError(f"No space left while writing {path}. Free some and run the command again.") from error
        raise DiskError(f"Cannot write {path}: {error.strerror}. Choose another folder.") from error


def require_space(folder: Path, needed: int) -> None:
    """Raises DiskError where a folder's disk has fewer free bytes than needed."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DiskError(f"No space: {folder} has {free / 1e6:.0f} MB free, {needed / 1e6:.0f} MB are needed.")


def remove(paths: Iterable[Path]) -> None:
    """Deletes files; those that are gone already, or cannot be deleted, are left."""
    for path in paths:
        with suppress(OSError):
            path.unlink()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
