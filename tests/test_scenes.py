"""Readers of scenes: what is read, and each way a folder can be wrong, named by file."""
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from zsq_lab.cifar10 import DataError
from zsq_lab.scenes import UNLABELLED, Boxes, embedded_scenes, find_bccd, find_camvid, find_scenes, read_camvid, read_voc

SIZE = (24, 18)
BOX = "<object><name>{name}</name><bndbox><xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox></object>"


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


def test_the_training_split_is_train_and_val_together(street, cells, monkeypatch):
    monkeypatch.setenv("ZSQ_CAMVID", str(street))
    assert len(find_camvid().train()) == 4 and len(find_camvid().test()) == 2
    (train, boxes) = find_bccd(cells), find_bccd(cells).test()
    assert len(train.train()) == 2 and train.image_shape == (3, 192, 256)
    assert boxes.targets[0].labels.tolist() == [0, 1]
    scale = torch.tensor([256 / 48, 192 / 36] * 2)
    torch.testing.assert_close(boxes.targets[0].boxes, torch.tensor([[4.0, 6, 20, 18], [0, 0, 48, 36]]) * scale)


@pytest.mark.parametrize("damage, sign", [
    (lambda d: (d / "test/masks/a.png").unlink(), r"images.a\.png is an image without a mask"),
    (lambda d: (d / "test/images/a.png").unlink(), r"masks.a\.png is a mask without an image"),
    (lambda d: picture(d / "test/masks/b.png", np.full((18, 24), 37)), r"masks.b\.png has unknown class indices 37: expected 0 to 10"),
    (lambda d: picture(d / "test/masks/b.png", np.zeros((18, 24, 3))), r"masks.b\.png has mode RGB"),
    (lambda d: picture(d / "test/masks/b.png", np.zeros((9, 24))), r"masks.b\.png is 24x9 pixels, its image 24x18"),
    (lambda d: (d / "test/images/a.png").write_bytes(b"no image"), r"images.a\.png is not a readable image"),
    (lambda d: (d / "test").rename(d / "other"), "has no split 'test': expected test/images and test/masks, or test and testannot"),
    (lambda d: [f.unlink() for f in (d / "test").rglob("*.png")], "has no images"),
])
def test_each_fault_of_a_folder_of_masks_names_its_file(street, damage, sign):
    damage(street)
    with pytest.raises(DataError, match=sign):
        read_camvid(street, "test", size=SIZE)


@pytest.mark.parametrize("damage, sign", [
    (lambda d: annotate(d, "three", BOX.format(4, 6, 52, 18, name="RBC")), r"three\.xml has a box .* outside its image of 48x36"),
    (lambda d: annotate(d, "three", BOX.format(-9, 6, 20, 18, name="RBC")), r"three\.xml has a box .* outside"),
    (lambda d: annotate(d, "three", BOX.format(4, 6, 4, 18, name="RBC")), r"three\.xml has an empty box .*\(RBC\)"),
    (lambda d: annotate(d, "three", BOX.format(4, 6, 9, 18, name="cat")), r"three\.xml has an object of unknown class 'cat': expected one of RBC"),
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
    """Boxes one pixel off (VOC counts from 1) are moved inside; difficult objects, and empty boxes when asked, are left out."""
    difficult = BOX.format(1, 1, 9, 9, name="RBC").replace("<bndbox>", "<difficult>1</difficult><bndbox>")
    annotate(cells, "three", BOX.format(0, 0, 49, 36, name="Platelets"), difficult)
    (target,) = read_voc(cells, "test", size=(48, 36)).targets
    assert target.labels.tolist() == [2] and target.boxes.tolist() == [[0, 0, 48, 36]]
    annotate(cells, "three", BOX.format(4, 4, 4, 4, name="RBC"))
    (target,) = read_voc(cells, "test", drop_empty=True).targets
    assert target.boxes.shape == (0, 4) and len(target.labels) == 0


def test_own_classes(cells, street):
    annotate(cells, "three", BOX.format(4, 6, 9, 18, name="cat"))
    assert read_voc(cells, "test", classes=("dog", "cat")).targets[0].labels.tolist() == [1]
    scenes = read_camvid(street, "test", classes=12, unlabelled=99, size=SIZE)
    assert scenes.targets.max() == 11


def test_embedded_scenes_have_masks_or_boxes_of_the_same_pictures():
    masks, boxes = embedded_scenes("masks"), embedded_scenes("boxes")
    assert masks.image_shape == boxes.image_shape == (3, 96, 96)
    assert masks.classes == ("background", "shape") and len(boxes.classes) == 10
    assert masks.test() is masks.test(), "drawn once"
    assert torch.equal(masks.test().images[:8], boxes.test().images[:8])
    target, mask = boxes.test().targets[0], masks.test().targets[0]
    assert isinstance(target, Boxes)
    inside = torch.zeros_like(mask)
    for box in target.boxes.int().tolist():
        inside[box[1]:box[3], box[0]:box[2]] = 1
        assert mask[box[1]:box[3], box[0]:box[2]].any()
    assert mask.max() == 1 and not mask[inside == 0].any()


def test_without_the_real_scenes_the_embedded_ones_and_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("ZSQ_CAMVID", str(tmp_path / "nowhere"))
    assert find_scenes("camvid", "masks").name == "embedded"
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(DataError, match="ZSQ_CAMVID"):
        find_scenes("camvid", "masks", "camvid")
    with pytest.raises(DataError, match="elsewhere"):
        find_scenes("camvid", "masks", folder=tmp_path / "elsewhere")
