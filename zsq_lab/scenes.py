"""Scenes with masks or boxes: CamVid and cells where they are present, scenes that the lab draws where they are not.

Your own data works the same way: a folder laid out as CamVid or as Pascal VOC (`scene_folders` reads both). Introduced
in notebook 08.
"""
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from . import shapes
from .cifar10 import DataError
from .data import Dataset, search_folders
from .scene_folders import BCCD_CLASSES, CAMVID_CLASSES, UNLABELLED, Boxes, Scenes, read_camvid, read_voc

__all__ = ["UNLABELLED", "Boxes", "SceneDataset", "Scenes", "embedded_scenes", "find_bccd", "find_camvid",
           "find_scenes"]
SCENE_SIZE, TRAIN_SCENES, TEST_SCENES = 96, 6000, 500
# Mean and deviation of each channel, pixels in 0..1
COLOURS = {"camvid": ((0.412, 0.425, 0.432), (0.301, 0.305, 0.301)),
           "bccd": ((0.742, 0.702, 0.718), (0.063, 0.104, 0.077)),
           "embedded": ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))}


class SceneDataset(Dataset):
    """As `data.Dataset`, with `Scenes` as its splits and images of its own shape."""

    def __init__(self, name: str, classes: tuple[str, ...], image_shape: tuple[int, int, int],
                 load: Callable[[str], Scenes]):
        super().__init__(name, classes, *COLOURS[name], load)
        self.image_shape = image_shape


def find_camvid(folder: Path | None = None) -> SceneDataset:
    """CamVid, or a folder laid out like it; None: $ZSQ_CAMVID, or `camvid` in the lab's data folders. DataError if absent."""
    root = _find("camvid", folder)
    return SceneDataset("camvid", CAMVID_CLASSES, (3, 180, 240), lambda split: _joined(read_camvid, root, split))


def find_bccd(folder: Path | None = None) -> SceneDataset:
    """Blood cells (BCCD), or a Pascal VOC folder with the same classes; None: $ZSQ_BCCD, or `bccd` in the data folders."""
    root = _find("bccd", folder)
    return SceneDataset("bccd", BCCD_CLASSES, (3, 192, 256),
                        lambda split: _joined(read_voc, root, split, drop_empty=True))


@cache
def embedded_scenes(kind: str) -> SceneDataset:
    """Scenes that the lab draws, with masks of what is a shape (kind "masks") or boxes of the ten shapes (kind "boxes")."""
    def draw(split: str) -> Scenes:
        images, masks, boxes = _drawn(split)
        return Scenes(images, masks.clamp(max=1) if kind == "masks" else boxes)
    classes = ("background", "shape") if kind == "masks" else tuple(shapes.CLASSES)
    return SceneDataset("embedded", classes, (3, SCENE_SIZE, SCENE_SIZE), draw)


def find_scenes(real: str, kind: str, profile: str | None = None, folder: Path | None = None) -> SceneDataset:
    """Scenes of a profile, `real` ("camvid" or "bccd") or "embedded"; None: the real ones where present, else the
    embedded ones and one line on standard error. kind: "masks" or "boxes".

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
        raise DataError(f"{name} is not in any of these folders: {', '.join(map(str, candidates))}. Put it there, or "
                        f"name its folder in the environment variable ZSQ_{name.upper()}")
    return found
