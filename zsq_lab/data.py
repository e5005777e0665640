"""The images the lab works on: real CIFAR-10 where it is present, images drawn by the lab itself where it is not.

CIFAR-10 (Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images") is read from `$ZSQ_DATA` or
`data/cache/`, as the arrays that `zsq_lab.download` writes or an official archive put there by hand, and is proved by
one digest of pixels and labels. Nothing here touches the network. Introduced in notebook 00.
"""
import hashlib
import os
import pickle
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

from zsq_lab import shapes

PROFILES = ("cifar10", "embedded")
SPLITS = ("train", "test")
COMMAND = "python -m zsq_lab download cifar10"
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


@dataclass(frozen=True, eq=False)
class Split:
    """images: uint8 [N, 3, 32, 32]. labels: int64 [N]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


class Dataset:
    """Named images in a training and a test split, each loaded when first asked for.

    classes: the ten names. mean, std: of each channel, for pixels in 0..1; what `normalise` subtracts and divides by.
    load: split name ("train" or "test") -> Split, called once per split.
    """

    image_shape = (3, 32, 32)

    def __init__(self, name: str, classes: tuple[str, ...], mean: tuple[float, ...], std: tuple[float, ...],
                 load: Callable[[str], Split]):
        self.name, self.classes, self.mean, self.std = name, classes, mean, std
        self._load = cache(load)

    def train(self) -> Split:
        """The training split. Raises DataError when its file is damaged."""
        return self._load("train")

    def test(self) -> Split:
        """The test split. Raises DataError when its file is damaged."""
        return self._load("test")

    def normalise(self, images: Tensor) -> Tensor:
        """What the networks take: uint8 [..., 3, H, W] -> float32 of that shape, about mean 0, variance 1."""
        if images.dtype != torch.uint8:
            raise ValueError(f"normalise takes uint8 pixels (0..255), got {images.dtype}: is it normalised already?")
        return (images.float() / 255 - self._channels(self.mean, images)) / self._channels(self.std, images)

    def denormalise(self, images: Tensor) -> Tensor:
        """For display: normalised float [..., 3, H, W] -> float in 0..1 of the same shape, cut off at both ends."""
        return (images * self._channels(self.std, images) + self._channels(self.mean, images)).clamp(0, 1)

    @staticmethod
    def _channels(values: tuple[float, ...], like: Tensor) -> Tensor:
        return torch.tensor(values, device=like.device).view(3, 1, 1)


def batches(split: Split, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Consecutive slices (uint8 [<=size, 3, 32, 32], int64 [<=size]) of a split, views not copies."""
    if size < 1:
        raise ValueError(f"batch size is {size}, expected at least 1")
    return ((split.images[i:i + size], split.labels[i:i + size]) for i in range(0, len(split), size))


def find_dataset(profile: str | None = None) -> Dataset:
    """The data of a profile; with None CIFAR-10 where present, else the embedded images and one line saying so.

    The line goes to standard error: standard output may be a JSON object.
    Raises ValueError for an unknown profile and DataError where "cifar10" is asked for by name and absent.
    """
    if profile not in (None, *PROFILES):
        raise ValueError(f"unknown profile {profile!r}: expected one of {', '.join(PROFILES)}")
    if profile == "embedded":
        return _embedded()
    folders = search_folders()
    for folder in folders:
        if any((folder / name).is_file() for name in (*map(npz_name, SPLITS), *ARCHIVES)):
            return _cifar10(folder)
    if profile == "cifar10":
        looked = ", ".join(map(str, folders))
        raise DataError(f"CIFAR-10 is not in any of these folders: {looked}. Get it with `{COMMAND}`, or set ZSQ_DATA.")
    print(f"CIFAR-10 is not here, so the lab runs on its embedded images. To get it: {COMMAND}", file=sys.stderr)
    return _embedded()


def search_folders() -> list[Path]:
    """Where CIFAR-10 is looked for: `$ZSQ_DATA`, `data/cache` of the project, of the current folder, of its parent."""
    chosen = os.environ.get("ZSQ_DATA")
    folders = [cache_folder(), *(folder / "data" / "cache" for folder in (Path.cwd(), Path.cwd().parent))]
    return list(dict.fromkeys([Path(chosen).expanduser(), *folders] if chosen else folders))


def cache_folder() -> Path:
    """`data/cache` of the project; of the current directory where the package was installed without its project."""
    root = Path(__file__).resolve().parent.parent
    return (root if (root / "pyproject.toml").exists() else Path.cwd()) / "data" / "cache"


@cache
def _cifar10(folder: Path) -> Dataset:
    return Dataset("cifar10", CIFAR10_CLASSES, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616),
                   lambda split: _load_cifar10(folder, split))


def _load_cifar10(folder: Path, split: str) -> Split:
    path = folder / npz_name(split)
    archives = [folder / name for name in ARCHIVES if (folder / name).is_file()]
    if not path.is_file() and archives:
        path = archives[0]
    try:
        arrays = ARCHIVES[path.name](path)[split] if path.name in ARCHIVES else read_npz(path)
        images, labels = check(*arrays, CIFAR10, split)
    except Exception as error:  # a damaged file can raise anything: zlib, tarfile, pickle, zipfile, NumPy errors
        reason = error if isinstance(error, DataError) else f"not readable ({type(error).__name__}: {error})"
        raise DataError(f"{path}: {reason}. Delete the file, then run `{COMMAND}`.") from error
    return Split(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels).long())


@cache
def _embedded() -> Dataset:
    def draw(split: str) -> Split:
        sizes = {"train": (shapes.TRAIN_SIZE, shapes.TRAIN_SEED), "test": (shapes.TEST_SIZE, shapes.TEST_SEED)}
        images, labels = shapes.draw_images(*sizes[split])
        return Split(torch.as_tensor(images), torch.as_tensor(labels))
    return Dataset("embedded", tuple(shapes.CLASSES), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), draw)


# What CIFAR-10 looks like on disk, and the proof that it is CIFAR-10.


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
