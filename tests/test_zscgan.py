"""The conditional generator: its losses against PyTorch's, that it learns what the classifier knows,
and moves nobody."""
import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from networks import IMAGE, Residual, awaken, images, same_state, snapshot, teach
from torch import nn

from zsq_lab.bn_stats import BatchNormStatistics, gaussian_kl, layer_distance, squared_distance
from zsq_lab.generators import Generator
from zsq_lab.layers import QuantConfig, convert
from zsq_lab.zscgan import LAB, PAPER, one_cycle, similarity, train_generator

SETTINGS = {"paper": PAPER, "lab": LAB, "kl": replace(LAB, distance=gaussian_kl)}


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    """A classifier into five classes whose memory is of smooth, colourful images."""
    smooth = F.interpolate(images(64, (3, 2, 2)), size=8, mode="bilinear") * 2 + 0.5
    return convert(teach(awaken(Residual()), smooth), QuantConfig(), IMAGE)[0]


def fresh(classes: int | None = 5, seed: int = 0) -> Generator:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Generator(IMAGE, classes)


def measured(generator: Generator, teacher: nn.Module, distance=layer_distance) -> dict[str, float]:
    """Both losses on 200 samples that training did not see."""
    with torch.no_grad(), BatchNormStatistics(teacher, distance) as statistics:
        made, labels = generator.sample(200, torch.Generator().manual_seed(99))
        logits = teacher(made)
        return {"statistics": statistics.loss().item(), "class": F.cross_entropy(logits, labels).item()}


@pytest.mark.parametrize("name", SETTINGS)
def test_statistics_and_class_loss_fall(teacher, name):
    settings, generator, steps = SETTINGS[name], fresh(), []
    before = measured(generator, teacher, settings.distance)
    train_generator(generator, teacher, iterations=60, batch_size=40, settings=settings,
                    on_step=lambda iteration, numbers: steps.append(iteration))
    after = measured(generator, teacher, settings.distance)
    assert after["statistics"] < 0.6 * before["statistics"]
    assert after["class"] < before["class"] - 0.1
    assert steps == list(range(60))


def test_the_numbers_are_those_of_the_first_batch(teacher):
    seen = []
    train_generator(fresh(), teacher, iterations=1, batch_size=16, settings=PAPER, seed=3,
                    on_step=lambda _, numbers: seen.append(numbers))
    with torch.no_grad(), BatchNormStatistics(teacher, squared_distance) as statistics:
        made, labels = fresh().sample(16, torch.Generator().manual_seed(3))
        log_probabilities = teacher(made).log_softmax(1)
    assert seen[0] == {"statistics": pytest.approx(statistics.loss().item()),
                       "class": pytest.approx(-log_probabilities[torch.arange(16), labels].mean().item())}


def test_one_step_of_the_paper_is_adam_on_the_sum_of_its_two_terms(teacher):
    """Adam's first step is the rate times g / (|g| + eps): it shows the sign of the loss and the size of the rate."""
    generator, mine = fresh(), fresh()
    train_generator(generator, teacher, iterations=1, batch_size=16, settings=PAPER, seed=3)
    with BatchNormStatistics(teacher, squared_distance) as statistics:
        made, labels = mine.sample(16, torch.Generator().manual_seed(3))
        (F.cross_entropy(teacher(made), labels) + statistics.loss()).backward()
    for own, expected in zip(generator.parameters(), mine.parameters(), strict=True):
        step = PAPER.learning_rate * expected.grad / (expected.grad.abs() + 1e-8)
        torch.testing.assert_close(own, (expected - step).detach(), rtol=1e-4, atol=1e-5)


def test_similarity_worked_by_hand():
    assert similarity(torch.ones(4, *IMAGE)).item() == pytest.approx(1, abs=1e-5)
    assert similarity(torch.eye(4)).item() == pytest.approx(0)
    assert similarity(torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 4.0]])).item() == pytest.approx((0 + 0.36 + 0.64) / 3)
    assert similarity(torch.ones(1, *IMAGE)).item() == pytest.approx(0)


def test_the_variety_term_keeps_images_apart(teacher):
    ends = {}
    for weight in (0.0, 5.0):
        generator = fresh()
        train_generator(generator, teacher, iterations=40, batch_size=20, settings=replace(LAB, variety_weight=weight))
        with torch.no_grad():
            ends[weight] = similarity(generator.sample(40, torch.Generator().manual_seed(99))[0]).item()
    assert ends[5.0] < 0.8 * ends[0.0]


def test_the_rate_rises_for_a_fifth_and_falls_to_zero():
    assert [one_cycle(done) for done in (0, 0.1, 0.2, 0.6, 1)] == pytest.approx([0.1, 0.55, 1, 0.5, 0])
    assert one_cycle(0.2 - 1e-9) == pytest.approx(one_cycle(0.2))


def test_the_teacher_and_the_world_are_untouched(teacher):
    """Also a teacher whose parameters ask for gradients and hold some."""
    judge = copy.deepcopy(teacher).requires_grad_(True)
    for parameter in judge.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    before, random_state = snapshot(judge), torch.get_rng_state()
    generator = fresh()
    start = snapshot(generator)
    train_generator(generator, judge, iterations=3, batch_size=8)
    assert same_state(before, judge.state_dict()) and torch.equal(torch.get_rng_state(), random_state)
    assert all(p.requires_grad and (p.grad == 7).all() for p in judge.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in [*judge.modules(), *generator.modules()])
    assert not any(p.requires_grad or p.grad is not None for p in generator.parameters()) and not generator.training
    assert all(not torch.equal(start[name], p) for name, p in generator.named_parameters())


def test_the_seed_decides_all(teacher):
    results = []
    for seed in (0, 0, 1):
        generator = fresh()
        train_generator(generator, teacher, iterations=3, batch_size=8, seed=seed)
        results.append(snapshot(generator))
    assert same_state(results[0], results[1]) and not same_state(results[0], results[2])


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_works_where_the_caller_has_switched_gradients_off(teacher, context):
    expected, generator = fresh(), fresh()
    train_generator(expected, teacher, iterations=2, batch_size=8)
    with context():
        train_generator(generator, teacher, iterations=2, batch_size=8)
    assert same_state(expected.state_dict(), generator.state_dict())


def test_without_classes_the_statistics_are_all_there_is():
    model = awaken(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)))
    seen = []
    train_generator(fresh(None), model, iterations=30, batch_size=16, settings=PAPER,
                    on_step=lambda _, numbers: seen.append(numbers))
    assert all(set(numbers) == {"statistics"} for numbers in seen)
    assert seen[-1]["statistics"] < seen[0]["statistics"]


def test_a_teacher_without_statistics_is_told_what_to_do():
    with pytest.raises(ValueError, match="no BatchNorm with running statistics, which training a generator needs"):
        train_generator(fresh(), nn.Conv2d(3, 5, 8), iterations=1)
