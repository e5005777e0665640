"""mIoU and mAP against cases worked by hand, through a whole network and data set."""
import pytest
import torch
from networks import Remembering, awaken, images
from torch import nn

from zsq_lab.scene_metrics import mean_iou, mean_precision
from zsq_lab.scenes import UNLABELLED, Boxes, SceneDataset, Scenes
from zsq_lab.tasks import SEGMENTATION


class Says(nn.Module):
    """A network that says what it is told, batch after batch."""

    def __init__(self, *answers):
        super().__init__()
        self.anchor, self.answers, self.calls = nn.Parameter(torch.zeros(1)), answers, 0

    def forward(self, images):
        self.calls += 1
        return self.answers[self.calls - 1]


def dataset(classes: tuple[str, ...], scenes: Scenes) -> SceneDataset:
    return SceneDataset("embedded", classes, (3, 2, 4), lambda split: scenes)


def test_mean_iou_worked_by_hand():
    truth = torch.tensor([[[0, 0, 1, 1], [0, 2, UNLABELLED, 1]]], dtype=torch.uint8)
    said = torch.tensor([[[0, 1, 1, 1], [0, 2, 2, 0]]])
    logits = nn.functional.one_hot(said, 3).permute(0, 3, 1, 2).float()
    scenes = Scenes(torch.zeros(1, 3, 2, 4, dtype=torch.uint8), truth)
    result = mean_iou(Says(logits), scenes, dataset(("a", "b", "c"), scenes), SEGMENTATION.read)
    assert result["per_class"]["a"] == pytest.approx(100 * 2 / 4)  # 2 right, one missed, one too many
    assert result["per_class"]["b"] == pytest.approx(100 * 2 / 4)
    assert result["per_class"]["c"] == pytest.approx(100), "the unlabelled pixel does not count"
    assert result["mIoU"] == pytest.approx(100 * (0.5 + 0.5 + 1) / 3)


def test_iou_counts_the_pixels_of_all_batches_together():
    """The mean over images would be 50, over batches as well: 20 scenes are two batches,
    one class is all right in one."""
    truth = torch.zeros(20, 2, 4, dtype=torch.uint8)
    right, wrong = torch.zeros(16, 2, 2, 4), torch.zeros(4, 2, 2, 4)
    right[:, 0], wrong[:, 1] = 1, 1
    truth[0, 0, 0] = 1
    right[0, :, 0, 0] = torch.tensor([0.0, 1.0])
    scenes = Scenes(torch.zeros(20, 3, 2, 4, dtype=torch.uint8), truth)
    result = mean_iou(Says(right, wrong), scenes, dataset(("a", "b"), scenes), SEGMENTATION.read)
    assert result["per_class"]["a"] == pytest.approx(100 * 127 / 159)
    assert result["per_class"]["b"] == pytest.approx(100 * 1 / 33)


def test_a_class_that_is_not_there_has_no_part_in_the_mean():
    """Five test scenes need not show every class. Who says one that is not there misses the one that is."""
    truth = torch.tensor([[[0, 0, 1, 1], [0, 0, 1, UNLABELLED]]], dtype=torch.uint8)
    said = torch.tensor([[[0, 0, 1, 1], [0, 2, 1, 3]]])
    logits = nn.functional.one_hot(said, 4).permute(0, 3, 1, 2).float()
    scenes = Scenes(torch.zeros(1, 3, 2, 4, dtype=torch.uint8), truth)
    result = mean_iou(Says(logits), scenes, dataset(("a", "b", "c", "d"), scenes), SEGMENTATION.read)
    assert result["per_class"] == pytest.approx({"a": 75, "b": 100})
    assert result["mIoU"] == pytest.approx(175 / 2)


@pytest.mark.parametrize("measure, targets, missing", [
    (mean_iou, torch.full((1, 2, 4), UNLABELLED, dtype=torch.uint8), "labelled pixel"),
    (mean_precision, [Boxes(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))], "box")])
def test_scenes_without_anything_to_measure_by_are_refused(measure, targets, missing):
    scenes, model = Scenes(torch.zeros(1, 3, 2, 4, dtype=torch.uint8), targets), Says()
    with pytest.raises(ValueError, match=f"the test scenes show no {missing}"):
        measure(model, scenes, dataset(("a", "b"), scenes), None)
    assert model.calls == 0, "the network was asked"


def found(*rows) -> dict:
    """Rows of (box, score, label)."""
    return {"boxes": torch.tensor([r[0] for r in rows], dtype=torch.float32).view(-1, 4),
            "scores": torch.tensor([r[1] for r in rows]), "labels": torch.tensor([r[2] for r in rows])}


def test_mean_precision_worked_by_hand():
    """Class a: a hit, a miss and a false alarm in between: precision 1 up to recall 1/2. Class b: IoU 0.62."""
    image = found(([0, 0, 10, 10], 0.9, 0), ([50, 50, 60, 60], 0.8, 0), ([0, 20, 6.2, 30], 0.7, 1))
    truth = Boxes(torch.tensor([[0.0, 0, 10, 10], [30, 30, 40, 40], [0, 20, 10, 30]]), torch.tensor([0, 0, 1]))
    scenes = Scenes(torch.zeros(1, 3, 2, 4, dtype=torch.uint8), [truth])
    result = mean_precision(Says([image]), scenes, dataset(("a", "b"), scenes), lambda model, output: output)
    half = 100 * 51 / 101  # recall 0, 0.01 ... 0.50 of the 101 that are averaged
    assert result["mAP50"] == pytest.approx((half + 100) / 2, abs=0.01)
    assert result["per_class"]["a"] == pytest.approx(half, abs=0.01), "the same at every IoU: the hit is exact"
    assert result["per_class"]["b"] == pytest.approx(100 * 3 / 10, abs=0.01), "right at 0.5, 0.55 and 0.6"
    assert result["mAP"] == pytest.approx((half + 30) / 2, abs=0.01)


def test_a_class_that_is_only_seen_has_no_precision():
    image = found(([0, 0, 10, 10], 0.9, 0), ([50, 50, 60, 60], 0.8, 1))
    scenes = Scenes(torch.zeros(1, 3, 2, 4, dtype=torch.uint8), [Boxes(torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([0]))])
    result = mean_precision(Says([image]), scenes, dataset(("a", "b"), scenes), lambda model, output: output)
    assert result["per_class"] == {"a": pytest.approx(100)} and result["mAP"] == pytest.approx(100)


def test_a_network_that_keeps_a_tensor_can_be_trained_afterwards():
    scenes = Scenes(torch.zeros(3, 3, 2, 4, dtype=torch.uint8), torch.zeros(3, 2, 4, dtype=torch.uint8))
    model = awaken(Remembering())
    mean_iou(model, scenes, dataset(("a", "b", "c", "d", "e"), scenes), lambda model, output: torch.zeros(3, 2, 4).long())
    model(images(3, (3, 2, 4)).requires_grad_()).sum().backward()
    assert model.stem.weight.grad is not None


def test_evaluating_changes_nothing():
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)).train()
    scenes = Scenes(torch.zeros(3, 3, 2, 4, dtype=torch.uint8), torch.zeros(3, 2, 4, dtype=torch.uint8))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = SEGMENTATION.measure(model, scenes, dataset(("a", "b"), scenes), 2)
    assert model.training and model[1].training and 0 <= result["mIoU"] <= 100
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
