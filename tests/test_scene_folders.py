"""Readers of folders of scenes: what is read, and each way a folder can be wrong, named by file."""
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scene_files import BOX, annotate, cells, picture, street  # noqa: F401 (fixtures among them)

from zsq_lab.cifar10 import DataError
from zsq_lab.scene_folders import UNLABELLED, read_camvid, read_voc

SIZE = (24, 18)


def test_masks_are_read_in_the_order_of_their_names(street):
    scenes = read_camvid(street, "test", size=SIZE)
    assert scenes.images.shape == (2, 3, 18, 24) and scenes.images.dtype == torch.uint8
    assert scenes.images[:, 0, 0, 0].tolist() == [50, 150]
    expected = np.arange(18 * 24).reshape(18, 24) % 12
    expected[expected == 11] = UNLABELLED
    assert torch.equal(scenes.targets[0], torch.as_tensor(expected, dtype=torch.uint8))
    assert len(scenes) == 2 and len(scenes.first(1)) == 1 and len(scenes.first(None)) == 2


def test_segnets_layout_and_another_size(street):
    for split in ("train", "test"):
        (street / split / "images").rename(street / "images")
        (street / split / "masks").rename(street / f"{split}annot")
        (street / split).rmdir()
        (street / "images").rename(street / split)
    scenes = read_camvid(street, "train", size=(12, 9))
    assert scenes.images.shape == (2, 3, 9, 12) and scenes.targets.shape == (2, 9, 12)
    assert set(scenes.targets.unique().tolist()) <= {*range(11), UNLABELLED}, "indices are never mixed by resizing"


@pytest.mark.parametrize("damage, sign", [
    (lambda d: (d / "test/masks/a.png").unlink(), r"images.a\.png is an image without a mask"),
    (lambda d: (d / "test/images/a.png").unlink(), r"masks.a\.png is a mask without an image"),
    (lambda d: picture(d / "test/masks/b.png", np.full((18, 24), 37)),
     r"masks.b\.png has unknown class indices 37: expected 0 to 10"),
    (lambda d: picture(d / "test/masks/b.png", np.zeros((18, 24, 3))), r"masks.b\.png has mode RGB"),
    (lambda d: picture(d / "test/masks/b.png", np.zeros((9, 24))), r"masks.b\.png is 24x9 pixels, its image 24x18"),
    (lambda d: (d / "test/images/a.png").write_bytes(b"no image"), r"images.a\.png is not a readable image"),
    (lambda d: (d / "test").rename(d / "other"),
     "has no split 'test': expected test/images and test/masks, or test and testannot"),
    (lambda d: [f.unlink() for f in (d / "test").rglob("*.png")], "has no images"),
])
def test_each_fault_of_a_folder_of_masks_names_its_file(street, damage, sign):
    damage(street)
    with pytest.raises(DataError, match=sign):
        read_camvid(street, "test", size=SIZE)


@pytest.mark.parametrize("damage, sign", [
    (lambda d: annotate(d, "three", BOX.format(4, 6, 52, 18, name="RBC")),
     r"three\.xml has a box .* outside its image of 48x36"),
    (lambda d: annotate(d, "three", BOX.format(-9, 6, 20, 18, name="RBC")), r"three\.xml has a box .* outside"),
    (lambda d: annotate(d, "three", BOX.format(4, 6, 4, 18, name="RBC")), r"three\.xml has an empty box .*\(RBC\)"),
    (lambda d: annotate(d, "three", BOX.format(4, 6, 9, 18, name="cat")),
     r"three\.xml has an object of unknown class 'cat': expected one of RBC"),
    (lambda d: annotate(d, "three", "<object><name>RBC</name></object>"), r"three\.xml is no Pascal VOC annotation"),
    (lambda d: (d / "Annotations/three.xml").write_text("<annotation>"), r"three\.xml is no Pascal VOC annotation"),
    (lambda d: (d / "Annotations/three.xml").unlink(), r"three\.xml is missing: image three\.png has no annotation"),
    (lambda d: (d / "JPEGImages/three.png").unlink(), r"test\.txt names three, but there is no image"),
    (lambda d: (d / "JPEGImages/three.png").write_bytes(b"no"), r"three\.png is not a readable image"),
    (lambda d: (d / "ImageSets/Main/test.txt").unlink(), r"test\.txt is missing"),
    (lambda d: (d / "ImageSets/Main/test.txt").write_text("\n"), r"test\.txt names no image"),
])
def test_each_fault_of_a_folder_of_boxes_names_its_file(cells, damage, sign):
    damage(cells)
    with pytest.raises(DataError, match=sign):
        read_voc(cells, "test")


def test_what_voc_folders_may_have(cells):
    """Boxes one pixel off (VOC counts from 1) are moved inside; difficult objects, and empty boxes when asked,
    are left out."""
    difficult = BOX.format(1, 1, 9, 9, name="RBC").replace("<bndbox>", "<difficult>1</difficult><bndbox>")
    annotate(cells, "three", BOX.format(0, 0, 49, 36, name="Platelets"), difficult)
    (target,) = read_voc(cells, "test", size=(48, 36)).targets
    assert target.labels.tolist() == [2] and target.boxes.tolist() == [[0, 0, 48, 36]]
    annotate(cells, "three", BOX.format(4, 4, 4, 4, name="RBC"))
    (target,) = read_voc(cells, "test", drop_empty=True).targets
    assert target.boxes.shape == (0, 4) and len(target.labels) == 0


@pytest.mark.parametrize("size, expected", [((24, 36), [2, 6, 10, 18]), ((96, 36), [8, 6, 40, 18]),
                                            ((48, 72), [4, 12, 20, 36])])
def test_boxes_are_scaled_with_their_picture(cells, size, expected):  # noqa: F811
    scenes = read_voc(cells, "test", size=size)
    assert scenes.images.shape == (1, 3, size[1], size[0]) and scenes.targets[0].boxes[0].tolist() == expected


def test_own_classes(cells, street):
    annotate(cells, "three", BOX.format(4, 6, 9, 18, name="cat"))
    assert read_voc(cells, "test", classes=("dog", "cat")).targets[0].labels.tolist() == [1]
    scenes = read_camvid(street, "test", classes=12, unlabelled=99, size=SIZE)
    assert scenes.targets.max() == 11


def test_masks_are_resized_without_mixing_their_indices(street):  # noqa: F811
    """Halves of 0 and 10 have no class in between, whatever the size."""
    halves = np.zeros((18, 24))
    halves[:, 12:] = 10
    for name in ("a", "b"):
        picture(street / "test" / "masks" / f"{name}.png", halves)
    for size in ((11, 7), (50, 40)):
        assert read_camvid(street, "test", size=size).targets.unique().tolist() == [0, 10]


def test_all_names_of_a_split_are_read_in_their_order(cells):  # noqa: F811
    (cells / "ImageSets" / "Main" / "test.txt").write_text("three\none -1\n\ntwo\n")
    annotate(cells, "one", BOX.format(4, 6, 9, 18, name="WBC"))
    assert [target.labels.tolist() for target in read_voc(cells, "test").targets] == [[0, 1], [1], [0, 1]]


def test_names_are_read_in_the_same_encoding_everywhere(cells):  # noqa: F811
    """The encoding that a computer prefers, which is another on Windows, is never asked for."""
    code = "import warnings; from zsq_lab.scene_folders import read_voc; warnings.simplefilter('error'); read_voc('.', 'test')"
    subprocess.run([sys.executable, "-X", "warn_default_encoding", "-c", code], cwd=cells, check=True,
                   env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)})


def test_what_macos_leaves_beside_images_is_none(cells, street):  # noqa: F811
    for place in (street / "test" / "images", cells / "JPEGImages"):
        (place / "._a.png").write_bytes(b"Mac OS X")
    assert len(read_camvid(street, "test", size=SIZE)) == 2 and len(read_voc(cells, "test")) == 1
