"""Folders of scenes with annotations, laid out as CamVid (images beside masks of class indices) or as Pascal VOC.

The readers check every file and name the one that is wrong. What they return, `Scenes`, keeps images and annotations
together.
"""
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .cifar10 import DataError

CAMVID_CLASSES = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian",
                  "bicyclist")
BCCD_CLASSES = ("RBC", "WBC", "Platelets")
UNLABELLED = 255  # in a mask: ignored in training and in every metric
IMAGE_TYPES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


@dataclass(frozen=True, eq=False)
class Boxes:
    """Boxes of one image: float32 [k, 4] as x0, y0, x1, y1 in pixels, and their classes, int64 [k]."""

    boxes: Tensor
    labels: Tensor


@dataclass(frozen=True, eq=False)
class Scenes:
    """images: uint8 [N, 3, H, W]. targets: masks uint8 [N, H, W] (`UNLABELLED` where nobody knows), or N `Boxes`."""

    images: Tensor
    targets: Tensor | list[Boxes]

    def __len__(self) -> int:
        return len(self.images)

    def first(self, n: int | None) -> "Scenes":
        """The first n scenes; all with None."""
        return Scenes(self.images[:n], self.targets[:n])


def read_camvid(folder: Path, split: str, *, classes: int = len(CAMVID_CLASSES), unlabelled: int = len(CAMVID_CLASSES),
                size: tuple[int, int] = (240, 180)) -> Scenes:
    """One split of a folder of images and masks: `split/images` and `split/masks`, or `split` and `splitannot`.

    Files belong together by their name without its ending. A mask has class indices 0..classes - 1 in one channel, and
    `unlabelled` where nobody knows. size: width and height in pixels that everything is brought to.
    Raises DataError, naming the file, for a missing folder or pair, a damaged file, sizes that differ, unknown indices.
    """
    folder = Path(folder)
    places = [(folder / split / "images", folder / split / "masks"), (folder / split, folder / f"{split}annot")]
    found = next(((images, masks) for images, masks in places if images.is_dir() and masks.is_dir()), None)
    if found is None:
        raise DataError(f"{folder} has no split '{split}': expected {split}/images and {split}/masks, or {split} "
                        f"and {split}annot")
    images, masks = (_files(place) for place in found)
    if unpaired := sorted(set(images) ^ set(masks)):
        have, lack = ("mask", "image") if unpaired[0] in masks else ("image", "mask")
        raise DataError(f"{(images | masks)[unpaired[0]]} is {_a(have)} without {_a(lack)} of the same name: add it, "
                        f"or remove the file ({len(unpaired)} such files)")
    if not images:
        raise DataError(f"{found[0]} has no images: expected files that end in {', '.join(IMAGE_TYPES)}")
    pairs = [_camvid_pair(images[name], masks[name], classes, unlabelled, size) for name in sorted(images)]
    return Scenes(torch.stack([image for image, _ in pairs]), torch.stack([mask for _, mask in pairs]))


def read_voc(folder: Path, split: str, *, classes: tuple[str, ...] = BCCD_CLASSES, size: tuple[int, int] = (256, 192),
             drop_empty: bool = False) -> Scenes:
    """One split of a Pascal VOC folder: names in `ImageSets/Main/split.txt`, JPEGImages, Annotations with one XML each.

    size: width and height in pixels that images and boxes are brought to. Boxes reach from 0 to the image's size (VOC
    counts pixels from 1, boxes one pixel off are moved inside); objects marked `difficult` are left out, as VOC does.
    drop_empty: leave empty boxes out instead of raising; BCCD has two of them.
    Raises DataError, naming the file, for what is missing, damaged, empty, outside the image or of an unknown class.
    """
    folder = Path(folder)
    names = folder / "ImageSets" / "Main" / f"{split}.txt"
    if not names.is_file():
        raise DataError(f"{names} is missing: expected the names of the images of split '{split}', one a line")
    images, targets = [], []
    available = _files(folder / "JPEGImages")
    for line in names.read_text(encoding="utf-8").split("\n"):
        if not line.strip():
            continue
        name, annotation = line.split()[0], folder / "Annotations" / f"{line.split()[0]}.xml"
        if name not in available:
            raise DataError(f"{names} names {name}, but there is no image of that name in {folder / 'JPEGImages'}")
        if not annotation.is_file():
            raise DataError(f"{annotation} is missing: image {available[name].name} has no annotation")
        image = _open(available[name]).convert("RGB")
        targets.append(_voc_boxes(annotation, image.size, classes, size, drop_empty))
        images.append(_pixels(image.resize(size, Image.Resampling.BOX)))
    if not images:
        raise DataError(f"{names} names no image")
    return Scenes(torch.stack(images), targets)


def _files(folder: Path) -> dict[str, Path]:
    """The images of a folder by their names without endings."""
    if not folder.is_dir():
        raise DataError(f"{folder} is missing: expected a folder of images")
    return {file.stem: file for file in sorted(folder.iterdir())
            if file.suffix.lower() in IMAGE_TYPES and not file.name.startswith(".")}  # macOS leaves ._a.png beside a.png


def _open(file: Path) -> Image.Image:
    try:
        with Image.open(file) as image:
            image.load()
            return image
    except (OSError, SyntaxError, ValueError) as error:  # Pillow raises all three for damaged files
        raise DataError(f"{file} is not a readable image ({error}): restore or remove it") from error


def _pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _camvid_pair(image_file: Path, mask_file: Path, classes: int, unlabelled: int,
                 size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    image, mask = _open(image_file).convert("RGB"), _open(mask_file)
    if mask.mode not in ("L", "P"):
        raise DataError(f"{mask_file} has mode {mask.mode}: expected one channel of class indices (mode L or P)")
    if image.size != mask.size:
        raise DataError(f"{mask_file} is {mask.size[0]}x{mask.size[1]} pixels, its image "
                        f"{image.size[0]}x{image.size[1]}")
    if image.size != size:
        image, mask = image.resize(size, Image.Resampling.BOX), mask.resize(size, Image.Resampling.NEAREST)
    indices = np.array(mask)
    unknown = sorted(set(np.unique(indices).tolist()) - {*range(classes), unlabelled, UNLABELLED})
    if unknown:
        raise DataError(f"{mask_file} has unknown class indices {', '.join(map(str, unknown[:5]))}: expected 0 to "
                        f"{classes - 1}, or {unlabelled} for unlabelled")
    indices[indices >= classes] = UNLABELLED
    return _pixels(image), torch.from_numpy(indices)


def _voc_boxes(file: Path, image_size: tuple[int, int], classes: tuple[str, ...], size: tuple[int, int],
               drop_empty: bool) -> Boxes:
    try:
        root = ElementTree.parse(file).getroot()
        found = [(o.findtext("name"), int(o.findtext("difficult") or 0),
                  [float(o.find("bndbox").findtext(side)) for side in ("xmin", "ymin", "xmax", "ymax")])
                 for o in root.iter("object")]
    except (ElementTree.ParseError, AttributeError, TypeError, ValueError, OSError) as error:
        raise DataError(f"{file} is no Pascal VOC annotation ({type(error).__name__}: {error})") from error
    boxes, labels = [], []
    for name, difficult, box in found:
        if name not in classes:
            raise DataError(f"{file} has an object of unknown class '{name}': expected one of {', '.join(classes)}")
        if box[0] < -1 or box[1] < -1 or box[2] > image_size[0] + 1 or box[3] > image_size[1] + 1:
            raise DataError(f"{file} has a box {box} outside its image of {image_size[0]}x{image_size[1]} pixels")
        empty = box[0] >= box[2] or box[1] >= box[3]
        if empty and not drop_empty:
            raise DataError(f"{file} has an empty box {box} ({name}): expected xmin < xmax and ymin < ymax")
        if not difficult and not empty:
            boxes.append(box)
            labels.append(classes.index(name))
    scale = np.array([size[0] / image_size[0], size[1] / image_size[1]] * 2)
    limit = np.array([*size, *size], np.float32)
    array = np.clip(np.array(boxes, np.float32).reshape(-1, 4) * scale, 0, limit).astype(np.float32)
    return Boxes(torch.from_numpy(array), torch.tensor(labels, dtype=torch.int64))


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
