"""What the tasks know: losses of dense outputs by hand, which classes an image shows, budgets of scenes,
where data is."""
import math

import pytest
import torch
from networks import awaken
from torch import nn

from zsq_lab import quantize
from zsq_lab.discrepancy import output_discrepancy, output_size
from zsq_lab.job import BUDGETS, Budget
from zsq_lab.layers import QuantConfig
from zsq_lab.models import build
from zsq_lab.recipes import RECIPES, synthesize
from zsq_lab.tasks import CLASSIFICATION, DETECTION, SEGMENTATION, TASKS, task_of

SCENE = (3, 32, 48)
TINY = Budget("tiny", images=4, image_iterations=2, finetune_iterations=2, generator_iterations=2, image_batch=4,
              batch_size=2)


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def test_pixel_loss_is_the_mean_divergence_of_the_pixels():
    teacher = torch.tensor([[[[0.9, 0.5]], [[0.1, 0.5]]]]).log()  # one image, two classes, 1x2 pixels
    student = torch.tensor([[[[0.5, 0.5]], [[0.5, 0.5]]]]).log()
    first = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    assert SEGMENTATION.output_loss(student, teacher).item() == pytest.approx(first / 2, rel=1e-5)
    assert SEGMENTATION.output_loss(teacher, teacher) == 0
    both = SEGMENTATION.output_loss({"out": student, "aux": teacher}, {"out": teacher, "aux": teacher})
    assert both.item() == pytest.approx(first / 2, rel=1e-5)


def test_location_loss_worked_by_hand():
    teacher = {"classes": torch.tensor([[[logit(0.8), logit(0.2)]]]), "boxes": torch.zeros(1, 4, 2)}
    student = {"classes": torch.tensor([[[0.0, logit(0.2)]]]), "boxes": torch.tensor([[[1.0, 2]] * 4])}
    divergence = 0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.5)
    expected = (divergence + 0.8 * 1 + 0.2 * 2) / 1.0  # the scores sum to 0.8 + 0.2
    assert DETECTION.output_loss(student, teacher).item() == pytest.approx(expected, rel=1e-5)
    assert DETECTION.output_loss(teacher, teacher).item() == pytest.approx(0, abs=1e-6)


def test_location_loss_is_not_drowned_by_background():
    """A thousand locations where the teacher is sure of nothing change next to nothing."""
    def output(background: int, score: float) -> dict:
        classes = torch.cat([torch.full((1, 1, 1), logit(score)), torch.full((1, 1, background), -12.0)], 2)
        return {"classes": classes, "boxes": torch.zeros(1, 4, 1 + background)}
    few, many = (DETECTION.output_loss(output(n, 0.4), output(n, 0.9)).item() for n in (1, 1000))
    assert many == pytest.approx(few, rel=0.02)


def test_the_games_discrepancy_of_dense_outputs_by_hand():
    p, q = torch.zeros(1, 2, 1, 2), torch.tensor([[[[1.0, -1]], [[0, 2]]]])
    assert output_discrepancy(q, p).item() == pytest.approx(1.0)
    boxes = {"classes": p, "boxes": torch.ones(1, 4, 1, 2)}
    assert output_discrepancy({"classes": q, "boxes": 3 * boxes["boxes"]}, boxes).item() == pytest.approx((1 + 2) / 2)
    assert output_size(boxes).item() == pytest.approx(0.5)


@pytest.mark.parametrize("task, wrap", [(SEGMENTATION, lambda x: x),
                                        (DETECTION, lambda x: {"classes": x, "boxes": x[:, :4]})])
def test_an_image_shows_a_class_where_it_is_surest(task, wrap):
    """One position in 64 must show the class: the rest of the image is free."""
    nothing = torch.full((2, 5, 8, 16), -6.0)
    nothing[:, 0] = 6
    shown = nothing.clone()
    shown[0, 3, :2, 0] = shown[1, 4, 5, :2] = 12.0  # two of 128 positions each
    shown[0, 0, :2, 0] = shown[1, 0, 5, :2] = -6.0
    labels = torch.tensor([3, 4])
    assert task.label_loss(wrap(shown), labels) < 0.01 < 3 < task.label_loss(wrap(nothing), labels)
    assert task.label_loss(wrap(shown), labels.flip(0)) > 3
    assert task.classes(wrap(shown)) == 5


def test_a_detector_must_say_what_it_sees_before_it_selects():
    with pytest.raises(ValueError, match="zsq_lab.detectors"):
        DETECTION.classes([{"boxes": torch.zeros(0, 4)}])


def test_budgets_of_scenes_have_fewer_images_and_the_same_iterations():
    standard = BUDGETS["standard"]
    assert CLASSIFICATION.budget(standard) is standard
    scenes = SEGMENTATION.budget(standard)
    assert (scenes.images, scenes.image_batch, scenes.batch_size) == (128, 16, 8)
    assert scenes.finetune_iterations == standard.finetune_iterations and scenes.name == "standard"


def test_tasks_by_name():
    assert list(TASKS) == ["classification", "segmentation", "detection"]
    assert task_of("camvid/segmenter") is task_of("segmenter") is SEGMENTATION
    assert task_of("bccd/detector") is DETECTION and task_of("cifar10/resnet20") is CLASSIFICATION
    for task in TASKS.values():
        assert task.dataset("embedded").name == "embedded"
        with pytest.raises(ValueError, match="unknown profile 'mars'"):
            task.dataset("mars")


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("architecture", ["segmenter", "detector"])
def test_every_recipe_on_masks_and_boxes(architecture, recipe):
    model, task = awaken(build(architecture, 4)), task_of(architecture)
    images = {"images": torch.randn(4, *SCENE)} if RECIPES[recipe].needs_images else {}
    result = quantize(model, QuantConfig(8, 8), recipe, image_shape=SCENE, budget=TINY, task=task.name, **images)
    output = result.model(torch.randn(2, *SCENE))
    assert result.report["task"] == task.name
    shape = output["boxes"].shape if task is DETECTION else output.shape
    assert shape == ((2, 4, 8, 12) if task is DETECTION else (2, 4, 32, 48))


def test_fine_tuning_serves_the_task():
    """What the fine-tuning brings down is the task's own loss, not classification's."""
    asked = []

    def spy(own, wanted):
        asked.append(own.shape)
        return SEGMENTATION.output_loss(own, wanted)
    from dataclasses import replace
    quantize(awaken(build("segmenter", 4)), QuantConfig(4, 4), "distilled", image_shape=SCENE, budget=TINY,
             task=replace(SEGMENTATION, output_loss=spy))
    assert asked == [(2, 4, 32, 48)] * TINY.finetune_iterations


def test_images_are_made_for_the_classes_of_their_task():
    asked = []
    from dataclasses import replace
    spy = replace(SEGMENTATION, label_loss=lambda output, labels: asked.append(labels.tolist()) or output.mean() * 0)
    images = synthesize(awaken(build("segmenter", 4)), 4, image_shape=SCENE, budget=TINY, task=spy)
    assert images.shape == (4, *SCENE) and sorted(asked[0]) == [0, 1, 2, 3]


def test_unknown_task():
    with pytest.raises(ValueError, match="unknown task 'depth': expected one of classification, segmentation, detection"):
        quantize(nn.Conv2d(3, 4, 1), image_shape=SCENE, task="depth")


def test_one_channel_is_one_class_against_none():
    own, wanted = torch.tensor([[[[logit(0.6)]]]]), torch.tensor([[[[logit(0.8)]]]])
    by_hand = 0.8 * math.log(0.8 / 0.6) + 0.2 * math.log(0.2 / 0.4)
    assert SEGMENTATION.output_loss(own, wanted).item() == pytest.approx(by_hand, abs=1e-6)
    assert SEGMENTATION.classes(wanted) is None, "there is nothing to deal out"


def test_whole_numbers_beside_logits_are_not_compared():
    own, wanted = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    alone = SEGMENTATION.output_loss(own, wanted)
    assert torch.equal(SEGMENTATION.output_loss((own, own.argmax(1)), (wanted, wanted.argmax(1))), alone)


@pytest.mark.parametrize("task", [CLASSIFICATION, SEGMENTATION])
def test_outputs_in_which_no_tensor_is_seen_are_named(task):
    with pytest.raises(ValueError, match="puts out set, in which no tensor of floats is seen"):
        task.output_loss({torch.zeros(2, 3)}, {torch.zeros(2, 3)})
