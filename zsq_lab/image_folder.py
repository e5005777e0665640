"""Folders of ImageNet images, in the three forms in which people have them, decoded in parallel, never all in memory.

Class folders named by WordNet ids (all of the validation set, any subset, with or without `val` above them, as
Imagenette has it), or the official flat folder with its label file. This file imports no PyTorch: its worker processes
start in a fraction of a second.
"""
import csv
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy import ndarray

from .cifar10 import DataError

ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
LABEL_FILES = ("val.txt", "LOC_val_solution.csv", "imagenet_2012_validation_synset_labels.txt",
               "ILSVRC2012_validation_ground_truth.txt")
UNREADABLE = 0.01  # share of the images above which a run fails
SMALLEST = 16  # pixels of the shorter side: less is no photograph
TASK = 16  # images that a worker decodes before it hands them over
HOW = "Set ZSQ_IMAGENET to a folder with one folder of images per WordNet id (n01440764, ...), or to the official flat folder"


@dataclass(frozen=True)
class Preprocess:
    """Resize the shorter side to `resize` pixels, cut the middle `crop` x `crop`; then (x / 255 - mean) / std per channel."""

    resize: int = 256
    crop: int = 224
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"  # or "bicubic"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """What the network takes, without the batch dimension."""
        return 3, self.crop, self.crop

    def pixels(self, path: Path) -> ndarray:
        """uint8 [crop, crop, 3] of a file, grayscale and CMYK turned into RGB. Raises what Pillow raises for a bad file."""
        from PIL import Image

        with Image.open(path) as file:
            image = file.convert("RGB")
        width, height = image.size
        if min(width, height) < SMALLEST:
            raise ValueError(f"{width}x{height} pixels, expected at least {SMALLEST} on the shorter side")
        share = self.resize / min(width, height)
        size = (self.resize, int(share * height)) if width <= height else (int(share * width), self.resize)
        if size != image.size:
            image = image.resize(size, Image.Resampling[self.interpolation.upper()])
        left, top = round((size[0] - self.crop) / 2), round((size[1] - self.crop) / 2)
        return np.asarray(image.crop((left, top, left + self.crop, top + self.crop)))


@dataclass
class ImageFolder:
    """Files [N] and their class indices int64 [N]; `unreadable` collects what could not be decoded, as "path: reason"."""

    folder: Path
    files: list[Path]
    labels: ndarray
    unreadable: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.files)

    def first(self, n: int | None) -> "ImageFolder":
        """The same with n files, spread evenly over all of them (a folder is sorted by class); None for all."""
        if n is None or n >= len(self):
            return ImageFolder(self.folder, self.files, self.labels)
        chosen = np.linspace(0, len(self) - 1, n).round().astype(int)
        return ImageFolder(self.folder, [self.files[i] for i in chosen], self.labels[chosen])

    def batches(self, preprocess: Preprocess, size: int,
                workers: int | None = None) -> Iterator[tuple[ndarray, ndarray]]:
        """Batches (uint8 [<=size, crop, crop, 3], int64 [<=size]) in order, decoded by `workers` processes.

        workers: 0 decodes in this process; None takes one for each further core. Files that cannot be decoded are left
        out, named in `unreadable`. Raises DataError when they are more than 1 % of all, naming the first.
        """
        self.unreadable.clear()
        images, labels = [], []
        for index, decoded in enumerate(_decode(self.files, preprocess, spare_cores() if workers is None else workers)):
            if isinstance(decoded, str):
                self.unreadable.append(decoded)
                if len(self.unreadable) > UNREADABLE * len(self):
                    raise DataError(f"{len(self.unreadable)} of the first {index + 1} images in {self.folder} cannot "
                                    f"be read, more than {UNREADABLE:.0%} of all {len(self)}: "
                                    f"{'; '.join(self.unreadable[:3])}. Copy the folder again")
                continue
            images.append(decoded)
            labels.append(self.labels[index])
            if len(images) == size:
                yield np.stack(images), np.array(labels)
                images, labels = [], []
        if images:
            yield np.stack(images), np.array(labels)


@cache
def classes() -> tuple[tuple[str, str], ...]:
    """(WordNet id, name) of the 1,000 classes, by class index."""
    with open(Path(__file__).resolve().parent.parent / "data" / "imagenet_classes.csv",
              encoding="utf-8", newline="") as file:
        return tuple((row["wnid"], row["name"]) for row in csv.DictReader(file))


def spare_cores() -> int:
    """Cores that this process may use beside its own."""
    from .engines import cores  # here, as no recorded number depends on it (code_version)
    return cores() - 1


def find_images(folder: Path | None = None) -> ImageFolder | None:
    """The images of a folder, or of `$ZSQ_IMAGENET`; None where neither is given.

    Raises DataError for a folder that is missing, empty, or labelled in no way that is known.
    """
    chosen = folder or os.environ.get("ZSQ_IMAGENET")
    if not chosen:
        return None
    folder = Path(chosen).expanduser()
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder. {HOW}")
    index = {wnid: number for number, (wnid, _) in enumerate(classes())}
    if (folder / "val").is_dir() and not any(path.name in index for path in folder.iterdir()):
        folder = folder / "val"  # Imagenette, or the whole of ImageNet
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    files = _images(folder)
    if files:
        labels = _read_labels(folder, files, index)
    elif folders:
        if unknown := [path.name for path in folders if path.name not in index]:
            raise DataError(f"{len(unknown)} of the {len(folders)} folders in {folder} are not named by a WordNet id "
                            f"of ImageNet's 1,000 classes: {', '.join(unknown[:3])}. {HOW}")
        found = [(path, index[own.name]) for own in folders for path in _images(own)]
        files, labels = [path for path, _ in found], [label for _, label in found]
    if not files:
        raise DataError(f"{folder} holds no images. {HOW}")
    return ImageFolder(folder, files, np.array(labels, np.int64))


def _images(folder: Path) -> list[Path]:
    """The images of one folder by name, less what macOS puts beside each on a foreign disk (._x.JPEG)."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in ENDINGS and not path.name.startswith("."))


def _read_labels(folder: Path, files: list[Path], index: dict[str, int]) -> list[int]:
    """Class indices of the flat folder's files, from the label file in it or beside it."""
    found = [path for place in (folder, folder.parent) for name in LABEL_FILES if (path := place / name).is_file()]
    if not found:
        raise DataError(f"{folder} has images but none of the label files {', '.join(LABEL_FILES)}, in it or beside it. {HOW}")
    file = found[0]
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()  # some editors begin a file with a mark, U+FEFF
        rows = [line.replace(",", " ").split() for line in lines if line.strip()]
        rows = [row for row in rows if row[0] != "ImageId"]
        if all(len(row) == 1 for row in rows):  # a line for each file of the complete set, in the order of their names
            if len(rows) != len(files):
                raise ValueError(f"{len(rows)} labels for {len(files)} images")
            number = index if not rows[0][0].isdigit() else _official_numbers(file, index)
            return [number[row[0]] for row in rows]
        by_name = {Path(row[0]).stem: row[1] for row in rows}
        answers = [by_name[path.stem] for path in files]
        labels = [index[answer] if answer in index else int(answer) for answer in answers]
        if not 0 <= min(labels) <= max(labels) < len(index):
            raise ValueError(f"class numbers {min(labels)}..{max(labels)}, expected 0..{len(index) - 1}")
        return labels
    except (ValueError, KeyError, IndexError) as error:
        raise DataError(f"{file} does not label the images in {folder} ({type(error).__name__}: {error}): expected "
                        "lines such as 'ILSVRC2012_val_00000001.JPEG 65' or '... n01751748'") from error


def _official_numbers(file: Path, index: dict[str, int]) -> dict[str, int]:
    """ILSVRC2012_ID, as the official ground truth counts, to class index: the order is that of the kit's meta.mat."""
    meta = file.parent / "meta.mat"
    try:
        from scipy.io import loadmat
        synsets = loadmat(meta, squeeze_me=True)["synsets"]
    except (ImportError, OSError, KeyError, ValueError) as error:
        raise DataError(f"{file} counts the classes as the development kit does: put the kit's meta.mat beside it "
                        f"(reading it needs scipy; {error})") from error
    return {str(int(row["ILSVRC2012_ID"])): index[str(row["WNID"])] for row in synsets if str(row["WNID"]) in index}


def _decode(files: list[Path], preprocess: Preprocess, workers: int) -> Iterator[ndarray | str]:
    """Each file's pixels, or "path: reason", in order."""
    tasks = [files[start:start + TASK] for start in range(0, len(files), TASK)]
    if workers < 1:
        for task in tasks:
            yield from _decode_some(task, preprocess)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        waiting = deque()
        try:
            for task in tasks:
                waiting.append(pool.submit(_decode_some, task, preprocess))
                if len(waiting) > 2 * workers:  # so many tasks ahead of the network, no more: memory stays small
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _decode_some(files: list[Path], preprocess: Preprocess) -> list[ndarray | str]:
    decoded = []
    for path in files:
        try:
            decoded.append(preprocess.pixels(path))
        except Exception as error:  # a damaged file can raise anything
            decoded.append(f"{path.parent.name}/{path.name}: {error}")
    return decoded
