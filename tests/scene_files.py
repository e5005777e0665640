"""Small folders of scenes: two street scenes a split with their masks, one picture of cells a split with its boxes."""
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

BOX = ("<object><name>{name}</name><bndbox><xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox>"
       "</object>")


def picture(file: Path, values: np.ndarray) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(file)
    return file


@pytest.fixture
def street(tmp_path):
    """A folder with two street scenes per split; their masks hold every index once."""
    for split in ("train", "val", "test"):
        for name in ("b", "a"):
            pixels = np.full((18, 24, 3), 50 + 100 * (name == "b"))
            mask = np.arange(18 * 24).reshape(18, 24) % 12
            picture(tmp_path / split / "images" / f"{name}.png", pixels)
            picture(tmp_path / split / "masks" / f"{name}.png", mask)
    return tmp_path


def annotate(folder: Path, name: str, *objects: str) -> None:
    file = folder / "Annotations" / f"{name}.xml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"<annotation>{''.join(objects)}</annotation>")


@pytest.fixture
def cells(tmp_path):
    """A Pascal VOC folder with one image of 48x36 pixels per split."""
    for split, name in (("train", "one"), ("val", "two"), ("test", "three")):
        picture(tmp_path / "JPEGImages" / f"{name}.png", np.full((36, 48, 3), 200))
        annotate(tmp_path, name, BOX.format(4, 6, 20, 18, name="RBC"), BOX.format(0, 0, 48, 36, name="WBC"))
        names = tmp_path / "ImageSets" / "Main" / f"{split}.txt"
        names.parent.mkdir(parents=True, exist_ok=True)
        names.write_text(f"{name}\n")
    return tmp_path
