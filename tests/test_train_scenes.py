"""Training on scenes: views move pictures, masks and boxes together, losses by hand, a resumed run, learning."""
import json
from dataclasses import replace

import pytest
import torch
from networks import same_state

from zsq_lab import train_scenes
from zsq_lab.checkpoints import load_model
from zsq_lab.models import build
from zsq_lab.scenes import UNLABELLED, Boxes, SceneDataset, Scenes
from zsq_lab.tasks import DETECTION, SEGMENTATION
from zsq_lab.train_scenes import PLANS, Plan, Views, box_loss, class_weights, draw_views, mask_loss, train, train_scene_checkpoint

PLAN = Plan(epochs=2, batch_size=4, crop=(32, 32), zoom=(0.9, 1.2), peak=3e-3)


def squares(n: int, with_masks: bool = True) -> Scenes:
    """Bright squares of 12 pixels on dark pictures of 32."""
    generator = torch.Generator().manual_seed(0)
    images, masks = torch.full((n, 3, 32, 32), 40, dtype=torch.uint8), torch.zeros(n, 32, 32, dtype=torch.uint8)
    boxes = []
    for i, (x, y) in enumerate(torch.randint(0, 20, (n, 2), generator=generator).tolist()):
        images[i, :, y:y + 12, x:x + 12], masks[i, y:y + 12, x:x + 12] = 220, 1
        boxes.append(Boxes(torch.tensor([[x, y, x + 12.0, y + 12]]), torch.tensor([0])))
    return Scenes(images, masks if with_masks else boxes)


def normalise(images):
    return images.float() / 127.5 - 1


def test_a_whole_view_is_the_scene():
    scenes = squares(3)
    views = Views(torch.full((3, 2), 16.0), torch.ones(3, 2), (32, 32))
    torch.testing.assert_close(views.images(normalise(scenes.images)), normalise(scenes.images), atol=1e-5, rtol=0)
    assert torch.equal(views.masks(scenes.targets), scenes.targets)
    mirrored = Views(views.centre, torch.tensor([[-1.0, 1]] * 3), (32, 32))
    assert torch.equal(mirrored.masks(scenes.targets), scenes.targets.flip(2))
    torch.testing.assert_close(mirrored.images(normalise(scenes.images)), normalise(scenes.images).flip(3), atol=1e-5, rtol=0)


@pytest.mark.parametrize("seed", range(4))
def test_pictures_masks_and_boxes_move_together(seed):
    plan = replace(PLAN, crop=(24, 28), zoom=(0.7, 1.6), vertical=True)
    masks, boxes = squares(4), squares(4, with_masks=False)
    views = draw_views(4, (32, 32), plan, False, torch.Generator().manual_seed(seed))
    seen, shown, targets = views.images(normalise(masks.images)), views.masks(masks.targets), views.boxes(boxes.targets)
    assert seen.shape == (4, 3, 24, 28) and shown.shape == (4, 24, 28)
    for picture, mask, target in zip(seen, shown, targets, strict=True):
        bright = picture[0] > 0.4
        assert (bright == (mask == 1)).float().mean() > 0.9
        for box in target.boxes:
            rows, columns = (mask == 1).any(1).nonzero(), (mask == 1).any(0).nonzero()
            edges = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
            assert (edges - box).abs().max() < 1.01


def test_beyond_the_edge_nobody_knows():
    views = Views(torch.tensor([[0.0, 16]]), torch.ones(1, 2), (32, 32))
    mask = views.masks(squares(1).targets)
    assert (mask[:, :, :16] == UNLABELLED).all() and (mask[:, :, 16:] != UNLABELLED).all()


def test_boxes_that_are_cut_off_mostly_are_gone():
    scene = [Boxes(torch.tensor([[0.0, 0, 10, 10], [6, 0, 16, 10]]), torch.tensor([0, 1]))]
    views = Views(torch.tensor([[16.0, 8]]), torch.ones(1, 2), (16, 16))  # shows x from 8 to 24
    (left,) = views.boxes(scene)
    assert left.labels.tolist() == [1] and left.boxes.tolist() == [[0, 0, 8, 10]]


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
    assert box_loss({"classes": -classes.abs(), "boxes": logs}, [Boxes(torch.zeros(0, 4), torch.zeros(0).long())]) < 1e-4
    assert box_loss({"classes": classes, "boxes": logs + 1}, [target]) > 0.5


def test_training_learns_masks_and_boxes():
    for name, task in (("segmenter", SEGMENTATION), ("detector", DETECTION)):
        torch.manual_seed(0)
        model, scenes = build(name, 2 if name == "segmenter" else 1), squares(16, name == "segmenter")
        facts = train(model, scenes, normalise, replace(PLAN, epochs=12), classes=2, progress=False)
        dataset = SceneDataset("embedded", ("a", "b")[: 2 if name == "segmenter" else 1], (3, 32, 32), lambda split: scenes)
        dataset.normalise = normalise
        assert facts["epochs"] == 12 and not model.training
        assert task.measure(model, scenes, dataset)[task.metric] > 60, name


def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(tmp_path):
    def fresh():
        torch.manual_seed(0)
        return build("detector", 1)
    scenes, whole, steps = squares(8, False), fresh(), 0
    train(whole, scenes, normalise, PLAN, classes=1, progress=False)

    def pull_the_plug(x):
        nonlocal steps
        steps += 1
        if steps == 2 + 1:  # in the second epoch
            raise KeyboardInterrupt
        return normalise(x)
    state, cut = tmp_path / "deep" / "run.pt", fresh()
    with pytest.raises(KeyboardInterrupt):
        train(cut, scenes, pull_the_plug, PLAN, classes=1, progress=False, state_file=state)
    again = fresh()
    train(again, scenes, normalise, PLAN, classes=1, progress=False, state_file=state)
    assert same_state(whole.state_dict(), again.state_dict())


def test_a_checkpoint_says_what_was_stored(tmp_path, monkeypatch):
    """The weights are in half precision, and what the card states was measured with those; then a second cycle."""
    monkeypatch.setattr(train_scenes, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setitem(PLANS, "embedded/segmenter", PLAN)
    dataset = SceneDataset("embedded", ("a", "b"), (3, 32, 32), lambda split: squares(8))
    out = tmp_path / "x.safetensors"
    facts = train_scene_checkpoint("embedded/segmenter", dataset, out)
    model, read = load_model("embedded/segmenter", out)
    assert read == json.loads(json.dumps(facts)) and out.stat().st_size < 3e6 and out.with_suffix(".md").is_file()
    assert SEGMENTATION.measure(model, dataset.test(), dataset)["mIoU"] == pytest.approx(facts["mIoU"], abs=0.01)
    second = train_scene_checkpoint("embedded/segmenter", dataset, tmp_path / "y.safetensors", epochs=1, peak=1e-3, start=out)
    assert second["start_epochs"] == 2 and second["epochs"] == 1 and "--start x.safetensors" in second["command"]


def test_a_detector_lends_its_pyramid(tmp_path):
    from zsq_lab.checkpoints import save_model
    torch.manual_seed(3)
    detector, segmenter, file = build("detector", 2), build("segmenter", 2), tmp_path / "d.safetensors"
    save_model(detector, file, {"model": "embedded/detector", "accuracy": 50.0})
    head = segmenter.classify.weight.clone()
    assert train_scenes.warm_start(segmenter, "embedded/segmenter", file)["accuracy"] == 50.0
    assert same_state(segmenter.pyramid.state_dict(), detector.pyramid.state_dict())
    assert torch.equal(segmenter.classify.weight, head)
    file.write_bytes(b"nothing")
    for wrong in (file, tmp_path / "absent"):
        with pytest.raises(ValueError, match=wrong.name):
            train_scenes.warm_start(segmenter, "embedded/segmenter", wrong)


def test_too_few_scenes():
    with pytest.raises(ValueError, match="2 scenes do not fill one batch of 4"):
        train(build("segmenter", 2), squares(2), normalise, PLAN, classes=2)
