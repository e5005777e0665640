"""What CIFAR-10 looks like on disk, and the proof that a file holds it: one digest of pixels and labels.

CIFAR-10 (Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images") is read from its official archives
and from the arrays that `zsq_lab.download` writes, and is the same data, in the same order, whichever of them it was.
"""
import hashlib
import pickle
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath

import numpy as np

SPLITS = ("train", "test")
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MAX_MEMBER = 1 << 26  # bytes; the largest file in an honest archive has 31 million

Arrays = tuple[np.ndarray, np.ndarray]  # images uint8 [N, 32, 32, 3], labels [N]


class DataError(ValueError):
    """Data that is absent, damaged, not what it claims to be, or cannot be written; the message says what to do."""


@dataclass(frozen=True)
class Published:
    """What a published data set is: the number of images and the `digest` of each split."""

    name: str
    sizes: dict[str, int]
    digests: dict[str, str]


CIFAR10 = Published("cifar10", {"train": 50_000, "test": 10_000}, {
    "train": "d59acf989e068e709ce686cda292672c7b212c08d29d3d3e6d8c3aa99eba6a85",
    "test": "899683d46c3a8c66fd56e1af12202e69fe5a4517be10b0f68e04c78fe585c57c"})


def digest(images: np.ndarray, labels: np.ndarray) -> str:
    """Hex digest of a set of labelled images, the same for each order of the images and each container.

    images: uint8 [N, 32, 32, 3] (RGB). labels: integers 0..255 [N]. SHA-256 of the sorted SHA-256 hashes of every
    image's label byte and pixels. (A sum of the hashes would not depend on the order either, but can be forged in hours
    when there are thousands of images, Wagner 2002.) 60,000 images take under a second.
    """
    return _combine(sorted(_image_hashes(images, labels)))


def check(images: np.ndarray, labels: np.ndarray, published: Published, split: str) -> Arrays:
    """The images and labels of a split, in the order of their hashes, if they are what was published.

    The order makes the data the same wherever it came from: archives and mirrors keep the images in different orders.
    Raises DataError naming what was found and what was expected.
    """
    n = published.sizes[split]
    if images.shape != (n, 32, 32, 3) or images.dtype != np.uint8:
        raise DataError(f"{split} images are {images.dtype} {list(images.shape)}, expected uint8 [{n}, 32, 32, 3]")
    if labels.shape != (n,) or labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() > 9:
        raise DataError(f"{split} labels are {labels.dtype} {list(labels.shape)}, expected {n} integers from 0 to 9")
    hashes = _image_hashes(images, labels)
    order = sorted(range(n), key=hashes.__getitem__)
    found, expected = _combine(hashes[i] for i in order), published.digests[split]
    if found != expected:
        raise DataError(f"{split} pixels or labels are not those of {published.name}: "
                        f"digest {found[:12]}, expected {expected[:12]}")
    return images[order], labels[order].astype(np.uint8)


def npz_name(split: str) -> str:
    """File of a split of CIFAR-10: arrays `images` uint8 [N, 32, 32, 3] and `labels` uint8 [N]."""
    return f"cifar10_{split}.npz"


def read_npz(path: Path) -> Arrays:
    """Images and labels of one split, as written by `zsq_lab.download`."""
    with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:  # np.load leaks a bad file's handle
        return file["images"], file["labels"]


def read_binary(path: Path) -> dict[str, Arrays]:
    """Both splits of the official binary archive: records of one label byte and 3 x 32 x 32 pixel bytes."""
    def decode(content: bytes) -> Arrays:
        records = np.frombuffer(content, np.uint8).reshape(-1, 3073)
        return records[:, 1:], records[:, 0]
    return _read_archive(path, decode)


def read_python(path: Path) -> dict[str, Arrays]:
    """Both splits of the official Python archive: pickled dictionaries, from which only byte arrays are taken."""
    def decode(content: bytes) -> Arrays:
        batch = _ByteArrayUnpickler(BytesIO(content), encoding="latin1").load()
        return batch["data"], np.array(batch["labels"], np.uint8)
    return _read_archive(path, decode)


ARCHIVES = {"cifar-10-binary.tar.gz": read_binary, "cifar-10-python.tar.gz": read_python}


def archive_members(path: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Name and content of each plain file of a tar archive, in memory: nothing is unpacked to disk."""
    with tarfile.open(path) as archive:
        for member in archive:
            if member.size > MAX_MEMBER:
                raise DataError(f"{member.name} inside has {member.size:,} bytes, expected at most {MAX_MEMBER:,}")
            if member.isfile():
                yield PurePosixPath(member.name), archive.extractfile(member).read()


def join(parts: Iterable[tuple[str, Arrays]]) -> dict[str, Arrays]:
    """Pieces of splits, each (split, (images, labels)), put together."""
    pieces: dict[str, list[Arrays]] = {split: [] for split in SPLITS}
    for split, arrays in parts:
        pieces[split].append(arrays)
    if not all(pieces.values()):
        raise DataError(f"holds no {' and no '.join(split for split in SPLITS if not pieces[split])} images")
    return {split: tuple(map(np.concatenate, zip(*arrays))) for split, arrays in pieces.items()}


def _read_archive(path: Path, decode: Callable[[bytes], Arrays]) -> dict[str, Arrays]:
    """decode: content of a batch file -> pixels uint8 [N, 3072] by channel, row, column, and labels [N]."""
    parts = []
    for name, content in archive_members(path):
        if name.name.startswith(("data_batch", "test_batch")):
            pixels, labels = decode(content)
            images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            parts.append(("test" if name.name.startswith("test") else "train", (images, labels)))
    return join(parts)


class _ByteArrayUnpickler(pickle.Unpickler):
    """Builds lists, dictionaries, strings, numbers and arrays of bytes; refuses everything else a pickle can name."""

    def find_class(self, module: str, name: str):
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return np.zeros(0).__reduce__()[0]  # the function under its name in this NumPy
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return _byte_dtype
        raise pickle.UnpicklingError(f"refuses to load {module}.{name}")


def _byte_dtype(kind: str, *_) -> np.dtype:
    if kind != "u1":
        raise pickle.UnpicklingError(f"refuses an array of type {kind}, expected u1")
    return np.dtype("u1")


def _image_hashes(images: np.ndarray, labels: np.ndarray) -> list[bytes]:
    rows = np.concatenate([labels.astype(np.uint8)[:, None], images.reshape(len(images), -1)], axis=1)
    return [hashlib.sha256(row).digest() for row in rows]


def _combine(sorted_hashes: Iterable[bytes]) -> str:
    return hashlib.sha256(b"".join(sorted_hashes)).hexdigest()
