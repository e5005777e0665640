"""The collapse detector on collapses made on purpose, the measure of variety on batches whose variety is known."""
import math
from dataclasses import replace

import pytest
import torch
from networks import IMAGE, Residual, awaken, images
from torch import nn

from zsq_lab import adversary, zscgan
from zsq_lab.distill import stage_layers
from zsq_lab.generators import Generator
from zsq_lab.graph import trace
from zsq_lab.health import Health, Stopped, look, variety
from zsq_lab.layers import QuantConfig, convert
from zsq_lab.ranges import fit_input_ranges, fit_weight_ranges
from zsq_lab.resume import RunState

SAME, DIFFERENT = torch.ones(8, *IMAGE), images(8)


class Ignoring(Generator):
    """Collapsed by construction: whatever the noise, one image per label."""

    def forward(self, noise, labels=None):
        return super().forward(torch.zeros_like(noise), labels)


def teacher_and_student() -> tuple[nn.Module, nn.Module]:
    teacher, student = convert(awaken(Residual()), QuantConfig(8, 8), IMAGE)
    fit_weight_ranges(student, search=False)
    fit_input_ranges(student, [images(32)], search=False)
    return teacher, student


def play(generator: Generator, teacher: nn.Module, student: nn.Module, learning_rate: float = 0.0, **options) -> None:
    adversary.play(generator, student, teacher, stage_layers(trace(teacher, IMAGE)), learning_rate=learning_rate,
                   batch_size=16, **{"iterations": 100, **options})


def test_variety_of_known_batches():
    assert variety(SAME) == pytest.approx(0, abs=1e-6)
    assert variety(torch.eye(8)) == pytest.approx(1)
    assert variety(torch.eye(8) * torch.arange(1, 9)) == pytest.approx(1), "brightness is no variety"
    assert math.isnan(variety(SAME[:1]))


@pytest.mark.parametrize("groups", [2, 3, 6])
def test_groups_of_equal_images_count_as_one_each(groups):
    batch = torch.eye(12)[:groups].repeat_interleave(12 // groups, 0)
    assert variety(batch) == pytest.approx((groups - 1) / (12 - 1))


def test_variety_with_labels_is_measured_within_the_classes():
    """Two images, each twice: one label each leaves no variety, labels across them leave one different image in two."""
    batch = torch.eye(2).repeat_interleave(2, 0)
    assert variety(batch, torch.tensor([0, 0, 1, 1])) == pytest.approx(0, abs=1e-6)
    assert variety(batch, torch.tensor([0, 1, 0, 1])) == pytest.approx(1)
    assert variety(batch, torch.tensor([0, 0, 0, 1])) == pytest.approx(variety(batch[:3])), "one alone says nothing"
    assert math.isnan(variety(batch, torch.arange(4)))


@pytest.mark.parametrize("n, classes", [(2, 1), (6, 3), (128, 10), (100, 100)])
def test_a_collapse_is_seen_in_groups_of_any_size(n, classes):
    """Images that differ by a twentieth of their contrast are one image, whether two or a hundred are looked at."""
    random, labels = torch.Generator().manual_seed(0), torch.arange(n) % classes
    pattern = torch.randn(1, *IMAGE, generator=random)
    nearly = pattern + 0.05 * torch.randn(n, *IMAGE, generator=random)
    assert look(nearly, labels)[1] and look(nearly)[1] and not look(nearly - pattern, labels)[1]


def test_a_number_that_is_none_stops_at_once_and_is_named():
    health = Health("the run")
    health.check(3, {"statistics": 1.0, "class": 2.0}, DIFFERENT)
    for value in (math.nan, math.inf):
        with pytest.raises(Stopped, match="^the run stopped at iteration 4: class is not a number; lower the learning rate, "
                                          "or use more bits or another recipe$"):
            health.check(4, {"statistics": 1.0, "class": value}, DIFFERENT)


@pytest.mark.parametrize("start", range(0, 30, 7))
@pytest.mark.parametrize("bad, problem", [({"images": SAME}, "mode collapse"), ({"discrepancy": 25.0}, "25 times")])
def test_whenever_it_begins_it_is_noticed_within_50_iterations(start, bad, problem):
    health = Health("the run")
    for iteration in range(start):
        health.check(iteration, {"output": 1.0}, DIFFERENT)
    with pytest.raises(Stopped, match=problem) as stopped:
        for iteration in range(start, start + 51):
            health.check(iteration, {"output": 1.0}, **{"images": DIFFERENT, **bad})
    assert f"iteration {iteration}:" in str(stopped.value)


def test_what_passes_by_itself_stops_nothing():
    health = Health("the run")
    for iteration in range(300):
        health.check(iteration, {"output": 1.0}, SAME if iteration % 30 < 20 else DIFFERENT)


@pytest.mark.parametrize("classes, batch_size", [(None, 1), (5, 4)])
def test_batches_too_small_to_compare_stop_nothing(classes, batch_size):
    generator = Generator(IMAGE, classes)
    zscgan.train_generator(generator, awaken(Residual()), iterations=3, batch_size=batch_size)


@pytest.mark.parametrize("classes", [None, 5])
def test_a_generator_that_ignores_its_noise_is_stopped(classes, tmp_path):
    steps = []
    with pytest.raises(Stopped, match="training the generator stopped at iteration .*: mode collapse.*raise the weight "
                                      "of the statistics or lower the learning rate") as stopped:
        zscgan.train_generator(Ignoring(IMAGE, classes), awaken(Residual()), iterations=200, batch_size=20,
                               on_step=lambda iteration, _: steps.append(iteration), run=RunState(tmp_path, every=0))
    assert len(steps) <= 50 and f"iteration {len(steps)}:" in str(stopped.value)
    assert str(tmp_path) in str(stopped.value) and RunState(tmp_path).load("generator")["iteration"] == len(steps)


@pytest.mark.parametrize("rules", [adversary.PAPER, adversary.LAB], ids=["paper", "lab"])
def test_a_collapse_in_the_game_is_stopped(rules, tmp_path):
    steps = []
    with pytest.raises(Stopped, match="the game stopped at iteration .*: mode collapse.*raise the weight of the") as stopped:
        play(Ignoring(IMAGE, None), *teacher_and_student(), rules=rules, run=RunState(tmp_path, every=0),
             on_step=lambda iteration, _: steps.append(iteration))
    assert len(steps) <= 50 and f"iteration {len(steps)}:" in str(stopped.value)
    assert str(tmp_path) in str(stopped.value) and RunState(tmp_path).load("game")["iteration"] == len(steps)


def test_an_exploding_discrepancy_is_stopped():
    teacher, student = teacher_and_student()
    student.fc.layer.weight.data *= 1000
    student.fc.weight_quantizer.scale.data *= 1000
    steps = []
    with pytest.raises(Stopped, match=r"the game stopped at iteration .*: the discrepancy is \d\d+ times the teacher's "
                                      "outputs; lower the weight of the discrepancy or the student's learning rate, or "
                                      "use more bits or another recipe"):
        play(Generator(IMAGE), teacher, student, on_step=lambda iteration, _: steps.append(iteration))
    assert len(steps) <= 50


def test_nan_in_training_is_stopped_and_leaves_nothing_learnable():
    generator, teacher = Generator(IMAGE, 5), awaken(Residual())
    settings = replace(zscgan.PAPER, learning_rate=1e36)
    with pytest.raises(Stopped, match=r"stopped at iteration [1-9]: .*class is not a number; lower the learning rate"):
        zscgan.train_generator(generator, teacher, iterations=50, batch_size=16, settings=settings)
    assert not any(p.requires_grad or p.grad is not None for p in generator.parameters())


@pytest.mark.parametrize("culprit", ["generator", "student"])
def test_nan_in_the_game_is_stopped(culprit):
    generator, (teacher, student) = Generator(IMAGE), teacher_and_student()
    rules = replace(adversary.PAPER, generator_rate=1e36 if culprit == "generator" else 1e-3)
    with pytest.raises(Stopped, match="lower the learning rate"):
        play(generator, teacher, student, 1e36 if culprit == "student" else 0.0, rules=rules)
    parameters = [*generator.parameters(), *student.parameters(), *teacher.parameters()]
    assert not any(p.requires_grad or p.grad is not None for p in parameters)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in [*student.modules(), *teacher.modules()])


def test_sound_runs_are_not_stopped():
    zscgan.train_generator(Generator(IMAGE, 5), awaken(Residual()), iterations=31, batch_size=20)
    play(Generator(IMAGE), *teacher_and_student(), learning_rate=1e-3, iterations=31)
