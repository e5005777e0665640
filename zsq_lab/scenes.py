"""Scenes with masks or boxes: CamVid and cells where they are present, scenes that the lab draws where they are not.

A `Scenes` split keeps images and annotations together; readers of folders check every file and name the one that is wrong.
Your own data works the same way: a folder laid out as CamVid (images beside masks of class indices) or as Pascal VOC
(JPEGImages, Annotations, ImageSets/Main). Introduced in notebook 08.
"""
import os
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from . import shapes
from .cifar10 import DataError
from .data import Dataset, search_folders

CAMVID_CLASSES = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist")
BCCD_CLASSES = ("RBC", "WBC", "Platelets")
UNLABELLED = 255  # in a mask: ignored in training and in every metric
SCENE_SIZE, TRAIN_SCENES, TEST_SCENES = 96, 6000, 500
IMAGE_TYPES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
# Mean and deviation of each channel, pixels in 0..1
COLOURS = {"camvid": ((0.412, 0.425, 0.432), (0.301, 0.305, 0.301)), "bccd": ((0.742, 0.702, 0.718), (0.063, 0.104, 0.077)),
           "embedded": ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))}


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


class SceneDataset(Dataset):
    """As `data.Dataset`, with `Scenes` as its splits and images of its own shape."""

    def __init__(self, name: str, classes: tuple[str, ...], image_shape: tuple[int, int, int], load: Callable[[str], Scenes]):
        super().__init__(name, classes, *COLOURS[name], load)
        self.image_shape = image_shape


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
        raise DataError(f"{folder} has no split '{split}': expected {split}/images and {split}/masks, or {split} and {split}annot")
    images, masks = (_files(place) for place in found)
    if unpaired := sorted(set(images) ^ set(masks)):
        have, lack = ("mask", "image") if unpaired[0] in masks else ("image", "mask")
        raise DataError(f"{(images | masks)[unpaired[0]]} is {_a(have)} without {_a(lack)} of the same name: add it, or remove "
                        f"the file ({len(unpaired)} such files)")
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
    for line in names.read_text().split("\n"):
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


def find_camvid(folder: Path | None = None) -> SceneDataset:
    """CamVid, or a folder laid out like it; None: $ZSQ_CAMVID, or `camvid` in the lab's data folders. DataError if absent."""
    root = _find("camvid", folder)
    return SceneDataset("camvid", CAMVID_CLASSES, (3, 180, 240), lambda split: _joined(read_camvid, root, split))


def find_bccd(folder: Path | None = None) -> SceneDataset:
    """Blood cells (BCCD), or a Pascal VOC folder with the same classes; None: $ZSQ_BCCD, or `bccd` in the data folders."""
    root = _find("bccd", folder)
    return SceneDataset("bccd", BCCD_CLASSES, (3, 192, 256), lambda split: _joined(read_voc, root, split, drop_empty=True))


@cache
def embedded_scenes(kind: str) -> SceneDataset:
    """Scenes that the lab draws, with masks of what is a shape (kind "masks") or boxes of the ten shapes (kind "boxes")."""
    def draw(split: str) -> Scenes:
        images, masks, boxes = _drawn(split)
        return Scenes(images, masks.clamp(max=1) if kind == "masks" else boxes)
    classes = ("background", "shape") if kind == "masks" else tuple(shapes.CLASSES)
    return SceneDataset("embedded", classes, (3, SCENE_SIZE, SCENE_SIZE), draw)


def find_scenes(real: str, kind: str, profile: str | None = None, folder: Path | None = None) -> SceneDataset:
    """Scenes of a profile, `real` ("camvid" or "bccd") or "embedded"; None: the real ones where present, else the embedded
    ones and one line on standard error. kind: "masks" or "boxes".

    Raises ValueError for an unknown profile, DataError where the real ones are asked for by name, or by folder, and absent.
    """
    if profile not in (None, real, "embedded"):
        raise ValueError(f"unknown profile '{profile}' for {kind}: expected {real} or embedded")
    if profile == "embedded":
        return embedded_scenes(kind)
    try:
        return FINDERS[real](folder)
    except DataError as error:
        if profile or folder:
            raise
        print(f"The lab runs on its embedded scenes: {error}", file=sys.stderr)
        return embedded_scenes(kind)


FINDERS = {"camvid": find_camvid, "bccd": find_bccd}


def _joined(read: Callable, root: Path, split: str, **settings) -> Scenes:
    """The split "test", or for "train" the training and validation scenes together: nothing is chosen by either."""
    if split == "test":
        return read(root, "test", **settings)
    parts = [read(root, "train", **settings)]
    if (root / "val").is_dir() or (root / "ImageSets" / "Main" / "val.txt").is_file():
        parts.append(read(root, "val", **settings))
    images = torch.cat([part.images for part in parts])
    masks = isinstance(parts[0].targets, Tensor)
    return Scenes(images, torch.cat([p.targets for p in parts]) if masks else [t for p in parts for t in p.targets])


@cache
def _drawn(split: str) -> tuple[Tensor, Tensor, list[Boxes]]:
    sizes = {"train": (TRAIN_SCENES, 10 + shapes.TRAIN_SEED), "test": (TEST_SCENES, 10 + shapes.TEST_SEED)}
    images, masks, boxes, labels = shapes.draw_scenes(*sizes[split], SCENE_SIZE)
    found = [Boxes(torch.as_tensor(b), torch.as_tensor(k)) for b, k in zip(boxes, labels, strict=True)]
    return torch.as_tensor(images), torch.as_tensor(masks), found


def _find(name: str, folder: Path | None) -> Path:
    chosen = folder or os.environ.get(f"ZSQ_{name.upper()}")
    candidates = [Path(chosen).expanduser()] if chosen else [place / name for place in search_folders()]
    found = next((place for place in candidates if place.is_dir()), None)
    if found is None:
        raise DataError(f"{name} is not in any of these folders: {', '.join(map(str, candidates))}. Put it there, or name its "
                        f"folder in the environment variable ZSQ_{name.upper()}")
    return found


def _files(folder: Path) -> dict[str, Path]:
    """The images of a folder by their names without endings."""
    if not folder.is_dir():
        raise DataError(f"{folder} is missing: expected a folder of images")
    return {file.stem: file for file in sorted(folder.iterdir()) if file.suffix.lower() in IMAGE_TYPES}


def _open(file: Path) -> Image.Image:
    try:
        with Image.open(file) as image:
            image.load()
            return image
    except (OSError, SyntaxError, ValueError) as error:  # Pillow raises all three for damaged files
        raise DataError(f"{file} is not a readable image ({error}): restore or remove it") from error


def _pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _camvid_pair(image_file: Path, mask_file: Path, classes: int, unlabelled: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    image, mask = _open(image_file).convert("RGB"), _open(mask_file)
    if mask.mode not in ("L", "P"):
        raise DataError(f"{mask_file} has mode {mask.mode}: expected one channel of class indices (mode L or P)")
    if image.size != mask.size:
        raise DataError(f"{mask_file} is {mask.size[0]}x{mask.size[1]} pixels, its image {image.size[0]}x{image.size[1]}")
    if image.size != size:
        image, mask = image.resize(size, Image.Resampling.BOX), mask.resize(size, Image.Resampling.NEAREST)
    indices = np.array(mask)
    unknown = sorted(set(np.unique(indices).tolist()) - {*range(classes), unlabelled, UNLABELLED})
    if unknown:
        raise DataError(f"{mask_file} has unknown class indices {', '.join(map(str, unknown[:5]))}: expected 0 to {classes - 1}, or "
                        f"{unlabelled} for unlabelled")
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
