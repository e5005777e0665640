"""Images through a network's prior: statistics and classes are met, patches come before noise, nothing else changes."""
import pytest
import torch
import torch.nn.functional as F
from networks import IMAGE, Residual, awaken, images, same_state, snapshot, teach
from torch import Tensor, nn

from zsq_lab import gznq
from zsq_lab.bn_stats import BatchNormStatistics
from zsq_lab.gznq import prior_images
from zsq_lab.health import Stopped
from zsq_lab.layers import QuantConfig, convert


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    """A classifier into five classes whose memory is of smooth, colourful images."""
    smooth = F.interpolate(images(64, (3, 2, 2)), size=8, mode="bilinear") * 2 + 0.5
    return convert(teach(awaken(Residual()), smooth), QuantConfig(), IMAGE)[0]


def losses(teacher: nn.Module, x: Tensor, labels: Tensor) -> tuple[float, float]:
    with torch.no_grad(), BatchNormStatistics(teacher) as statistics:
        logits = teacher(x)
        return statistics.loss().item(), F.cross_entropy(logits, labels).item()


def test_statistics_close_in_and_each_image_is_taken_for_its_class(teacher):
    steps = []
    made, labels = prior_images(teacher, 40, IMAGE, iterations=60, on_step=lambda i, *rest: steps.append((i, *rest)))
    assert made.shape == (40, *IMAGE) and made.dtype == torch.float32 and not made.requires_grad
    assert labels.bincount().tolist() == [8] * 5
    (start, guess), (end, believed) = losses(teacher, images(40), labels), losses(teacher, made, labels)
    assert end < 0.3 * start and believed < guess - 0.3
    assert [i for i, *_ in steps] == list(range(60)) and all(x.shape == (40, *IMAGE) for _, x, _ in steps)
    for index in (0, 59):
        _, x, numbers = steps[index]
        expected = losses(teacher, x, labels)
        assert (numbers["statistics"], numbers["class"]) == pytest.approx(expected, rel=1e-4)


def test_the_prior_draws_patches_not_noise(teacher):
    made, _ = prior_images(teacher, 32, IMAGE, iterations=20)
    neighbours = torch.corrcoef(torch.stack([made[..., 1:].flatten(), made[..., :-1].flatten()]))[0, 1]
    assert neighbours > 0.3


def test_every_batch_has_a_prior_and_codes_of_its_own(teacher):
    made, labels = prior_images(teacher, 10, IMAGE, iterations=2, batch_size=4)
    assert made.shape == (10, *IMAGE) and labels.bincount().tolist() == [2] * 5
    distances = torch.cdist(made.flatten(1), made.flatten(1)) + torch.eye(10) * 1e3
    assert distances.min() > 1


def test_the_seed_decides_all(teacher):
    random_state = torch.get_rng_state()
    (first, labels), (again, same), (other, _) = (prior_images(teacher, 6, IMAGE, iterations=3, batch_size=4, seed=seed)
                                                  for seed in (0, 0, 1))
    assert torch.equal(first, again) and torch.equal(labels, same) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), random_state)


def test_the_teacher_is_untouched(teacher):
    before = snapshot(teacher)
    prior_images(teacher, 4, IMAGE, iterations=2)
    assert same_state(before, teacher.state_dict())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in teacher.modules())
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_works_where_the_caller_has_switched_gradients_off(teacher, context):
    expected, _ = prior_images(teacher, 4, IMAGE, iterations=2)
    with context():
        made, _ = prior_images(teacher, 4, IMAGE, iterations=2)
    assert torch.equal(made, expected)


def test_without_classes_there_are_no_labels():
    model = awaken(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    seen = []
    made, labels = prior_images(model, 6, IMAGE, iterations=20, on_step=lambda _, __, numbers: seen.append(numbers))
    assert labels is None and made.shape == (6, *IMAGE)
    assert seen[-1]["statistics"] < seen[0]["statistics"] and seen[0]["class"] == 0


def test_models_and_inputs_that_do_not_fit_are_named(teacher):
    with pytest.raises(ValueError, match="no BatchNorm with running statistics, which making images needs"):
        prior_images(nn.Conv2d(3, 4, 1), 4, IMAGE)
    with pytest.raises(ValueError, match=r"at least 4x4 pixels, got \(6,\): use recipe 'distilled'"):
        prior_images(awaken(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))), 4, (6,))


def test_a_divergence_is_named_and_leaves_no_hooks(teacher, monkeypatch):
    monkeypatch.setattr(gznq, "LEARNING_RATE", 1e36)
    with pytest.raises(Stopped, match=r"stopped at iteration [1-9]: the loss is not a number; lower the learning rate "
                                      r"\(gznq.LEARNING_RATE, .*\), or use another recipe"):
        prior_images(teacher, 4, IMAGE, iterations=20)
    assert not any(m._forward_pre_hooks for m in teacher.modules())
