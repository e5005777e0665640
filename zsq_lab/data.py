"""The images the lab works on: real CIFAR-10 where it is present, images drawn by the lab itself where it is not.

CIFAR-10 is looked for in `$ZSQ_DATA` and `data/cache/`, as the arrays that `zsq_lab.download` writes or an official
archive put there by hand. Nothing here touches the network. Introduced in notebook 00.
"""
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from . import shapes
from .cifar10 import ARCHIVES, CIFAR10, CIFAR10_CLASSES, SPLITS, DataError, check, npz_name, read_npz

PROFILES = ("cifar10", "embedded")
COMMAND = "python -m zsq_lab download cifar10"


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
    folder = cifar10_folder()
    if folder:
        return _cifar10(folder)
    if profile == "cifar10":
        looked = ", ".join(map(str, search_folders()))
        raise DataError(f"CIFAR-10 is not in any of these folders: {looked}. Get it with `{COMMAND}`, or set ZSQ_DATA.")
    print(f"CIFAR-10 is not here, so the lab runs on its embedded images. To get it: {COMMAND}", file=sys.stderr)
    return _embedded()


def search_folders() -> list[Path]:
    """Where CIFAR-10 is looked for: `$ZSQ_DATA`, `data/cache` of the project, of the current folder, of its parent."""
    chosen = os.environ.get("ZSQ_DATA")
    folders = [cache_folder(), *(folder / "data" / "cache" for folder in (Path.cwd(), Path.cwd().parent))]
    return list(dict.fromkeys([Path(chosen).expanduser(), *folders] if chosen else folders))


def cifar10_folder() -> Path | None:
    """The first of `search_folders` that has all of CIFAR-10, both arrays or an official archive; None: none has."""
    for folder in search_folders():
        arrays, archives = (folder / npz_name(split) for split in SPLITS), (folder / name for name in ARCHIVES)
        if all(path.is_file() for path in arrays) or any(path.is_file() for path in archives):
            return folder
    return None


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
        raise DataError(f'{path}: {reason}. To replace it: {COMMAND} --out "{folder}"') from error
    return Split(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels).long())


@cache
def _embedded() -> Dataset:
    def draw(split: str) -> Split:
        sizes = {"train": (shapes.TRAIN_SIZE, shapes.TRAIN_SEED), "test": (shapes.TEST_SIZE, shapes.TEST_SEED)}
        images, labels = shapes.draw_images(*sizes[split])
        return Split(torch.as_tensor(images), torch.as_tensor(labels))
    return Dataset("embedded", tuple(shapes.CLASSES), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), draw)
