"""The losses of masks and boxes, worked by hand."""
import pytest
import torch

from zsq_lab.scene_losses import box_loss, class_weights, mask_loss
from zsq_lab.scenes import UNLABELLED, Boxes


def test_rare_classes_count_more():
    masks = torch.zeros(1, 10, 10, dtype=torch.uint8)
    masks[0, :2, :2], masks[0, 5] = 1, UNLABELLED
    weights = class_weights(masks, 2)
    assert weights[1] / weights[0] == pytest.approx((86 / 4) ** 0.5, rel=1e-4)
    assert (weights[0] * 86 + weights[1] * 4) / 90 == pytest.approx(1, rel=1e-4)


def test_mask_loss_worked_by_hand():
    truth = torch.tensor([[[0, 1, UNLABELLED]]], dtype=torch.uint8)
    p = torch.tensor([[[[0.8, 0.4, 0.9]], [[0.2, 0.6, 0.1]]]])
    entropy = -(torch.tensor(0.8).log() + torch.tensor(0.6).log()) / 2
    soft = (0.8 / (1.2 + 1 - 0.8) + 0.6 / (0.8 + 1 - 0.6)) / 2
    assert mask_loss(p.log(), truth, torch.ones(2)).item() == pytest.approx(entropy.item() + 1 - soft, rel=1e-5)
    perfect = torch.tensor([[[[40.0, -40, 0]], [[-40, 40, 0]]]])
    assert mask_loss(perfect, truth, torch.ones(2)).item() == pytest.approx(0, abs=1e-5)


def test_a_batch_without_a_labelled_pixel_teaches_nothing():
    logits = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    loss = mask_loss(logits, torch.full((2, 4, 4), UNLABELLED, dtype=torch.uint8), torch.ones(3))
    loss.backward()
    assert loss.item() == 0 and (logits.grad == 0).all()


def test_box_loss_is_zero_for_what_is_right_and_for_nothing():
    target = Boxes(torch.tensor([[0.0, 0, 8, 8]]), torch.tensor([1]))
    logs = torch.zeros(1, 4, 4, 4)
    for row in range(4):
        for column in range(4):
            x, y = 4 * column + 2, 4 * row + 2
            logs[0, :, row, column] = (torch.tensor([x, y, 8 - x, 8 - y]).clamp(min=0.1) / 4).log()
    classes = torch.full((1, 2, 4, 4), -20.0)
    classes[0, 1, :2, :2] = 20
    assert box_loss({"classes": classes, "boxes": logs}, [target]).item() == pytest.approx(0, abs=1e-4)
    assert box_loss({"classes": -classes.abs(), "boxes": logs},
                    [Boxes(torch.zeros(0, 4), torch.zeros(0).long())]) < 1e-4
    assert box_loss({"classes": classes, "boxes": logs + 1}, [target]) > 0.5


def test_classes_that_do_not_occur_have_no_soft_iou():
    truth = torch.zeros(1, 2, 2, dtype=torch.uint8)
    logits = torch.tensor([40.0, -40, -40]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    assert mask_loss(logits, truth, torch.ones(3)).item() == pytest.approx(0, abs=1e-5)


def test_the_loss_of_boxes_is_per_location_that_has_one():
    target = Boxes(torch.tensor([[2.0, 2, 13, 13]]), torch.tensor([0]))
    draw = torch.Generator().manual_seed(0)
    output = {"classes": torch.randn(1, 2, 4, 4, generator=draw), "boxes": torch.randn(1, 4, 4, 4, generator=draw)}
    twice = {key: value.repeat(2, 1, 1, 1) for key, value in output.items()}
    assert box_loss(twice, [target] * 2).item() == pytest.approx(box_loss(output, [target]).item(), rel=1e-5)
