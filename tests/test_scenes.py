"""Scenes: which ones are found, in which splits, and the embedded ones in their place."""
import pytest
import torch
from scene_files import cells, street  # noqa: F401 (fixtures)

from zsq_lab.cifar10 import DataError
from zsq_lab.scenes import Boxes, embedded_scenes, find_bccd, find_camvid, find_scenes


def test_the_training_split_is_train_and_val_together(street, cells, monkeypatch):
    monkeypatch.setenv("ZSQ_CAMVID", str(street))
    assert len(find_camvid().train()) == 4 and len(find_camvid().test()) == 2
    (train, boxes) = find_bccd(cells), find_bccd(cells).test()
    assert len(train.train()) == 2 and train.image_shape == (3, 192, 256)
    assert boxes.targets[0].labels.tolist() == [0, 1]
    scale = torch.tensor([256 / 48, 192 / 36] * 2)
    torch.testing.assert_close(boxes.targets[0].boxes, torch.tensor([[4.0, 6, 20, 18], [0, 0, 48, 36]]) * scale)


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
