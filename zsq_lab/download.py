"""Downloads CIFAR-10 from whichever source answers, and proves that what came is CIFAR-10 (`make data`).

A source is a few addresses and a function that reads what lies there. Whatever the container, the digest of pixels and
labels in `zsq_lab.data` decides, so a mirror is as trustworthy as the original. Tests and notebooks never download.
"""
import errno
import http.client
import os
import shutil
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import numpy as np
from tqdm import tqdm

from zsq_lab.data import (CIFAR10, CIFAR10_CLASSES, SPLITS, Arrays, DataError, Published, archive_members, cache_folder,
                          check, join, npz_name, read_binary, read_npz, read_python)

CHUNK = 1 << 16  # bytes taken from the network at a time
CONNECTIONS = 5  # to one address, as long as each brings something
TORONTO = "https://www.cs.toronto.edu/~kriz/"
HUGGING_FACE = "https://huggingface.co/datasets/uoft-cs/cifar10/resolve/main/plain_text/"


class DiskError(DataError):
    """The folder cannot be written or is full: no other source would help."""


class SourceError(DataError):
    """This source failed: the next may work."""


class SlowSource(SourceError):
    """This source works, but a faster one is worth trying first."""


@dataclass(frozen=True)
class Source:
    """Where a copy lies. read: the files, one for each of `urls` -> both splits. needs: a module it imports."""

    name: str
    urls: tuple[str, ...]
    read: Callable[..., dict[str, Arrays]]
    needs: str | None = None


@dataclass(frozen=True)
class Limits:
    """timeout: seconds without an answer. min_speed: bytes per second, averaged over `patience` seconds."""

    timeout: float = 10.0
    min_speed: float = 100_000.0
    patience: float = 20.0


def read_png_folders(path: Path) -> dict[str, Arrays]:
    """An archive of `train/<class>/<name>.png` and `test/<class>/<name>.png`. Needs Pillow."""
    return join((name.parts[-3], (_decode_png(content)[None], np.array([CIFAR10_CLASSES.index(name.parts[-2])])))
                for name, content in archive_members(path) if name.suffix == ".png")


def read_parquet(*paths: Path) -> dict[str, Arrays]:
    """A parquet file for each split, with columns `img` (PNG) and `label`. Needs pyarrow and Pillow."""
    from pyarrow import parquet  # optional

    tables = [parquet.read_table(path, columns=["img", "label"]).to_pydict() for path in paths]
    return {split: (np.stack([_decode_png(image["bytes"]) for image in table["img"]]), np.array(table["label"]))
            for split, table in zip(SPLITS, tables)}


SOURCES = {"cifar10": (
    Source("official-binary", (TORONTO + "cifar-10-binary.tar.gz",), read_binary),
    Source("fastai-png", ("https://s3.amazonaws.com/fast-ai-imageclas/cifar10.tgz",), read_png_folders, "PIL"),
    Source("huggingface-parquet", tuple(f"{HUGGING_FACE}{split}-00000-of-00001.parquet" for split in SPLITS),
           read_parquet, "pyarrow"),
    Source("official-python", (TORONTO + "cifar-10-python.tar.gz",), read_python),
)}
DATASETS = {"cifar10": CIFAR10}


def download(name: str, folder: Path | str | None = None, sources: tuple[Source, ...] | None = None, *,
             published: Published | None = None, limits: Limits = Limits()) -> Path:
    """Puts a data set into a folder (default: `data/cache` of the project), unless it is there, and returns the folder.

    Sources are tried in order, slow ones once more at the end without a minimum speed. An interrupted transfer leaves a
    `.partial` file, from which the next call goes on. published: what the data must be, by default what `name` stands
    for. Raises ValueError (unknown name), DiskError (no space, no permission), DataError with each source's reason.
    """
    if published is None and name not in DATASETS:
        raise ValueError(f"unknown data set {name!r}: expected one of {', '.join(DATASETS)}")
    published = published or DATASETS[name]
    folder = Path(folder) if folder else cache_folder()
    if _is_complete(folder, published):
        print(f"{name} is already in {folder}")
        return folder
    with _disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    _require_space(folder, _unpacked_bytes(published))

    reasons: list[str] = []
    queue = deque((source, limits) for source in sources or SOURCES[name])
    while queue:
        source, limits = queue.popleft()
        paths = [folder / f"{name}-{source.name}-{url.rsplit('/', 1)[-1]}.partial" for url in source.urls]
        try:
            if source.needs and find_spec(source.needs) is None:
                raise SourceError(f"skipped, it needs {source.needs}")
            for url, path in zip(source.urls, paths):
                _fetch(url, path, limits, _unpacked_bytes(published))
            _write(folder, _read(source, paths, published))
        except SlowSource as error:
            print(f"{source.name}: {error}; trying the next source")
            queue.append((source, Limits(limits.timeout, min_speed=0)))
        except SourceError as error:
            print(f"{source.name}: {error}")
            reasons.append(f"  {source.name}: {error}")
        except DiskError:
            _remove(folder.glob(f"{name}-*.partial"))
            raise
        except KeyboardInterrupt:
            kept = ", ".join(path.name for path in paths if path.exists())
            print(f"Interrupted; the same command goes on from {kept or 'the start'}")
            raise
        else:
            _remove(folder.glob(f"{name}-*.partial"))
            print(f"{name} is in {folder}, verified")
            return folder
    kept = ", ".join(sorted(str(path) for path in folder.glob(f"{name}-*.partial")))
    raise DataError("\n".join([f"{name} could not be downloaded from any source:", *reasons,
                               "Check the network and run the same command again" + (
                                   f"; it goes on from what is kept: {kept}" if kept else ".")]))


def _fetch(url: str, path: Path, limits: Limits, reserve: int) -> None:
    """Downloads an address to a path, going on from what is there, and again after a cut that brought something."""
    for connection in range(CONNECTIONS):
        before = _size(path)
        try:
            return _transfer(url, path, limits, reserve)
        except urllib.error.HTTPError as error:
            if error.code != 416 or not before:
                raise SourceError(f"the server answers {error.code} {error.reason} for {url}") from error
            if error.headers.get("Content-Range") == f"bytes */{before}":
                return  # nothing after the last byte: the file was complete
            _remove([path])  # a leftover that does not fit the file there now
        except (OSError, http.client.HTTPException) as error:
            if _size(path) <= before or connection == CONNECTIONS - 1:
                raise SourceError(f"{getattr(error, 'reason', error) or type(error).__name__} ({url})") from error


def _transfer(url: str, path: Path, limits: Limits, reserve: int) -> None:
    """One connection. reserve: bytes that must stay free for the unpacked data."""
    have = _size(path)
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=limits.timeout) as response:
        if response.status != 206:
            have = 0  # the whole file comes, wanted or not
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            raise SourceError(f"the server sends another part of the file than asked for ({url})")
        length = response.headers.get("Content-Length")
        _require_space(path.parent, int(length or 0) + reserve)
        total = have + int(length) if length else None
        with _disk_errors(path):
            file = open(path, "ab" if have else "wb")
        with file, tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=url.rsplit("/", 1)[-1]) as bar:
            began, received = time.monotonic(), 0
            while block := response.read1(CHUNK):
                with _disk_errors(path):
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


def _read(source: Source, paths: list[Path], published: Published) -> dict[str, Arrays]:
    """The verified content of what a source sent; files that hold anything else are removed."""
    try:
        arrays = source.read(*paths)
        return {split: check(*arrays[split], published, split) for split in SPLITS}
    except Exception as error:  # a damaged file can raise anything: zlib, tarfile, pickle, Pillow, pyarrow errors
        _remove(paths)
        reason = error if isinstance(error, DataError) else f"damaged file ({type(error).__name__}: {error})"
        raise SourceError(f"{reason}; removed") from error


def _write(folder: Path, arrays: dict[str, Arrays]) -> None:
    """Both splits under their names, or neither."""
    temporary = {split: folder / (npz_name(split) + ".tmp") for split in arrays}
    try:
        for split, (images, labels) in arrays.items():
            with _disk_errors(temporary[split]), open(temporary[split], "wb") as file:
                np.savez(file, images=images, labels=labels)
        for split, path in temporary.items():
            with _disk_errors(path):
                os.replace(path, folder / npz_name(split))
    finally:
        _remove(temporary.values())


def _is_complete(folder: Path, published: Published) -> bool:
    try:
        return all(check(*read_npz(folder / npz_name(split)), published, split) for split in SPLITS)
    except Exception:  # absent or damaged in any way: it is downloaded anew
        return False


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Turns the operating system's errors about a path into a DiskError that says what to do."""
    try:
        yield
    except PermissionError as error:
        raise DiskError(f"No permission to write {path}. Choose another folder or change its owner.") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskError(f"No space left while writing {path}. Free some and run the command again.") from error
        raise DiskError(f"Cannot write {path}: {error.strerror}. Choose another folder.") from error


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DiskError(f"No space: {folder} has {free / 1e6:.0f} MB free, {needed / 1e6:.0f} MB are needed.")


def _unpacked_bytes(published: Published) -> int:
    return 3073 * sum(published.sizes.values())


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _remove(paths) -> None:
    for path in paths:
        with suppress(OSError):
            path.unlink()


def _decode_png(content: bytes) -> np.ndarray:
    from PIL import Image  # only some sources need it

    return np.asarray(Image.open(BytesIO(content)).convert("RGB"))
