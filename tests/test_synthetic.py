"""The recipes that make their own images: which ingredient each of them uses, and what it may change in the student."""
from dataclasses import replace

import pytest
import torch
from networks import IMAGE, TINY, Mobile, Residual, awaken, images
from torch import nn

from zsq_lab import adversary, distill, image_start, synthetic, zscgan
from zsq_lab.distill import FAR, FineTuning, dense_layers, knowledge_loss, stage_layers, thorough_loss
from zsq_lab.generators import ConditionalBatchNorm, Generator
from zsq_lab.graph import trace
from zsq_lab.health import Stopped
from zsq_lab.job import BUDGETS, Budget, Job, learning_rate
from zsq_lab.layers import QuantConfig, convert, quant_layers
from zsq_lab.resume import RunState
from zsq_lab.tasks import SEGMENTATION

CALIBRATION_ONLY = (synthetic.zeroq, synthetic.gznq)
FINE_TUNED = (synthetic.distilled, synthetic.gznq_finetuned, synthetic.zs_cgan, synthetic.zs_cgan_paper, synthetic.zaq,
              synthetic.zaq_paper, synthetic.best, synthetic.real_finetune)


def job(model: nn.Module | None = None, budget: Budget = TINY, seed: int = 0) -> Job:
    config = QuantConfig(3, 3)
    teacher, student = convert(model or awaken(Residual()), config, IMAGE)
    return Job(teacher, student, config, IMAGE, budget, seed, images(8))


@pytest.fixture
def calls(monkeypatch) -> list[tuple]:
    """(what, generator, settings or rules) of each training and game, which still take place."""
    seen, train, play = [], zscgan.train_generator, adversary.play

    def see_training(generator, teacher, *, settings, **options):
        seen.append(("train", generator, settings))
        train(generator, teacher, settings=settings, **options)

    def see_game(generator, *players, rules, **options):
        seen.append(("play", generator, rules))
        play(generator, *players, rules=rules, **options)

    monkeypatch.setattr(zscgan, "train_generator", see_training)
    monkeypatch.setattr(adversary, "play", see_game)
    return seen


def moved_weights(recipe) -> bool:
    work = job()
    before = {name: layer.layer.weight.clone() for name, layer in quant_layers(work.student).items()}
    recipe(work)
    scales = [layer.input_quantizer.scale for layer in quant_layers(work.student).values()]
    assert all((scale != 1).all() for scale in scales), "ranges are set in any case"
    return any(not torch.equal(before[name], layer.layer.weight) for name, layer in quant_layers(work.student).items())


@pytest.mark.parametrize("recipe", CALIBRATION_ONLY, ids=lambda recipe: recipe.__name__)
def test_a_calibration_set_sets_ranges_and_leaves_the_weights(recipe):
    assert not moved_weights(recipe)


@pytest.mark.parametrize("recipe", FINE_TUNED, ids=lambda recipe: recipe.__name__)
def test_fine_tuning_moves_the_weights(recipe):
    assert moved_weights(recipe)


def test_the_reference_does_to_real_images_what_best_does_to_its_own(monkeypatch):
    reference, own = job(), job()
    synthetic.real_finetune(reference)
    monkeypatch.setattr(synthetic, "_optimised", lambda job: job.images)
    synthetic.best(own)
    expected, state = own.student.state_dict(), reference.student.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in expected.items())
    assert reference.notes == own.notes and "equalized" in own.notes


@pytest.mark.parametrize("recipe, expected", [
    (synthetic.zs_cgan, [("train", 5, zscgan.LAB)]),
    (synthetic.zs_cgan_paper, [("train", 5, zscgan.PAPER)]),
    (synthetic.zaq, [("train", 5, zscgan.LAB), ("play", 5, adversary.LAB)]),
    (synthetic.zaq_paper, [("play", None, adversary.PAPER)])], ids=lambda value: getattr(value, "__name__", ""))
def test_which_generator_is_trained_and_played_with_by_which_rules(calls, recipe, expected):
    recipe(job())
    assert [(what, generator.classes, rules) for what, generator, rules in calls] == expected
    assert len({id(generator) for _, generator, _ in calls}) == 1, "the game goes on with the trained generator"


@pytest.mark.parametrize("recipe, find", [(synthetic.zaq, dense_layers), (synthetic.zaq_paper, stage_layers),
                                          (synthetic.zs_cgan, dense_layers), (synthetic.zs_cgan_paper, stage_layers)])
def test_the_papers_student_is_compared_at_the_stages_and_the_labs_at_every_layer(monkeypatch, recipe, find):
    compared = []

    class Listening(FineTuning):
        def __init__(self, student, teacher, stages, *options):
            compared.append(stages)
            super().__init__(student, teacher, stages, *options)
    monkeypatch.setattr(distill, "FineTuning", Listening)
    monkeypatch.setattr(adversary, "FineTuning", Listening)
    recipe(work := job())
    assert compared == [find(trace(work.teacher, IMAGE))]


def test_every_layer_is_more_than_the_stages():
    graph = trace(job().teacher, IMAGE)
    assert set(stage_layers(graph)) < set(dense_layers(graph))


def test_the_papers_weights_are_the_papers():
    assert (adversary.PAPER.feature_weight, adversary.PAPER.activation_weight) == (0.1, 0.05)
    assert adversary.PAPER == adversary.Rules() and not adversary.PAPER.bounded and adversary.PAPER.paper_loss
    assert adversary.PAPER.statistics_weight == adversary.PAPER.class_weight == 0
    assert zscgan.PAPER.class_weight == 1 and zscgan.PAPER.variety_weight == 0 and not zscgan.PAPER.one_cycle


@pytest.mark.parametrize("classes, by_label", [(99, False), (100, True)])
def test_many_classes_condition_the_batchnorms(calls, classes, by_label):
    model = awaken(Residual())
    model.fc = awaken(nn.Linear(6, classes))
    synthetic.zs_cgan(job(model))
    (_, generator, _), = calls
    assert generator.classes == classes
    assert any(isinstance(m, ConditionalBatchNorm) for m in generator.modules()) == by_label


def test_a_network_without_classes_gets_an_unconditional_generator(calls):
    model = awaken(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)))
    synthetic.zaq(job(model))
    assert [generator.classes for _, generator, _ in calls] == [None, None]


def test_the_student_never_sees_the_same_sample_twice(monkeypatch):
    """Fine-tuning on a generator is on endless images: every batch is another one."""
    seen, sample = [], Generator.sample

    def see(self, n, random, labels=None, **more):
        made, labels = sample(self, n, random, labels, **more)
        if n == TINY.batch_size:
            seen.append(made)
        return made, labels

    monkeypatch.setattr(Generator, "sample", see)
    synthetic.zs_cgan(job(budget=replace(TINY, image_batch=9)))
    assert len(seen) == TINY.finetune_iterations and not torch.equal(seen[0], seen[1])
    assert not any(made.requires_grad for made in seen)


def test_a_collapse_reaches_the_caller_of_the_recipe(monkeypatch):
    forward = Generator.forward
    monkeypatch.setattr(Generator, "forward", lambda self, noise, labels=None: forward(self, 0 * noise, labels))
    with pytest.raises(Stopped, match="mode collapse"):
        synthetic.zs_cgan(job(budget=Budget("long", 8, 1, 1, 100, 16, 4)))


def test_what_is_not_an_image_is_told_which_recipe_to_take():
    work = job()
    work.image_shape = (6,)
    with pytest.raises(ValueError, match=r"at least 4x4 pixels, got \(6,\): use recipe 'distilled'"):
        synthetic.zaq_paper(work)


@pytest.mark.parametrize("convention, known", [("deployable", (False, True)), ("literature", (None,))])
def test_large_images_are_reconstructed_and_equalized_only_where_batchnorms_are_folded(convention, known):
    shape, config = (3, 128, 128), QuantConfig(4, 8, convention=convention)
    teacher, student = convert(awaken(Mobile()), config, shape)
    work = Job(teacher, student, config, shape, replace(TINY, images=4, image_batch=4, joint_iterations=2), 0)
    synthetic.best(work)
    assert work.notes.get("equalized") in known and work.notes["images"] == 4 and work.notes["joint_iterations"] == 2
    with torch.inference_mode():
        wanted, own = work.teacher(images(2, shape)), work.student(images(2, shape))
        torch.testing.assert_close(wanted, teacher(images(2, shape)), rtol=1e-3, atol=1e-3)
    assert (own - wanted).square().sum() < 0.1 * wanted.square().sum()


@pytest.mark.parametrize("bits, many, rounded", [(2, 6, True), (2, 7, False), (8, 6, False)])
def test_roundings_are_learned_on_scenes_where_the_student_starts_far_and_steps_are_many(monkeypatch, bits, many, rounded):
    monkeypatch.setattr(synthetic, "FAR", 0.1)  # a network of few layers, untrained, starts nearer
    monkeypatch.setattr(synthetic, "ROUNDED_STEPS", many)
    shape, config = (3, 128, 128), QuantConfig(bits, bits)
    net = awaken(nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, 1, 1),
                               nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 1)))
    teacher, student = convert(net, config, shape)
    work = Job(teacher, student, config, shape, replace(TINY, images=4, image_batch=4, finetune_iterations=6), 0,
               task=SEGMENTATION)
    rates = []
    for name in ("reconstruct", "round_together"):
        def watched(*args, real=getattr(synthetic, name), **more):
            rates.append(more["scale_rate"])
            return real(*args, **more)
        monkeypatch.setattr(synthetic, name, watched)
    synthetic.best(work)
    assert tuple(rates) == (synthetic.SCENE_SCALE_RATES if rounded else ())
    assert (work.notes["feature_error"] >= 0.1) == (bits == 2)
    layers = quant_layers(work.student).values()
    on_grid = [torch.allclose(layer.weight_quantizer(layer.layer.weight), layer.layer.weight, atol=1e-6) for layer in layers]
    assert all(on_grid) if rounded else not any(on_grid)
    assert work.notes["finetune_iterations"] == (2 if rounded else 6)
    assert work.notes.get("joint_iterations") == (3 if rounded else None)


def test_scenes_of_a_network_without_blocks_are_rounded_together(monkeypatch):
    monkeypatch.setattr(synthetic, "FAR", 0.0)
    monkeypatch.setattr(synthetic, "ROUNDED_STEPS", 0)

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.conv(self.norm(self.conv(x)).relu())
    shape, config = (3, 128, 128), QuantConfig(2, 2)
    teacher, student = convert(awaken(Twice()), config, shape)
    work = Job(teacher, student, config, shape, replace(TINY, images=4, image_batch=4), 0, task=SEGMENTATION)
    synthetic.best(work)
    assert work.notes["joint_iterations"] == TINY.finetune_iterations // 2


class Answer:
    def __init__(self, logits):
        self.logits = logits


class Answers(Mobile):
    """A network that answers with an object of its own."""

    def forward(self, x):
        return Answer(super().forward(x))


class Wrapped(nn.Module):
    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x).logits


def test_the_blocks_of_a_wrapped_network_are_reconstructed():
    work = job(awaken(Wrapped(Answers())))
    before = [layer.layer.weight.clone() for layer in quant_layers(work.student).values()]
    synthetic.reconstructed(work)
    after = [layer.layer.weight for layer in quant_layers(work.student).values()]
    assert not any(torch.equal(*pair) for pair in zip(before, after, strict=True))


def test_best_on_large_images_of_a_wrapped_network():
    shape, config = (3, 128, 128), QuantConfig(4, 8)
    teacher, student = convert(awaken(Wrapped(Answers())), config, shape)
    work = Job(teacher, student, config, shape, replace(TINY, images=4, image_batch=4), 0)
    synthetic.best(work)
    assert work.notes["equalized"] in (False, True)


@pytest.mark.parametrize("recipe, shape", [(synthetic.reconstructed, IMAGE), (synthetic.best, (3, 128, 128))])
def test_a_network_without_blocks_is_told_which_recipe_to_take(recipe, shape):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.norm(self.conv(self.conv(x)))
    teacher, student = convert(awaken(Twice()), QuantConfig(4, 4), shape)
    work = Job(teacher, student, QuantConfig(4, 4), shape, replace(TINY, images=2, image_batch=2), 0)
    with pytest.raises(ValueError, match="no block of the model takes and gives one tensor: use recipe 'distilled'"):
        recipe(work)


@pytest.mark.parametrize("begun, steps, mixed", [(FAR, 1, True), (FAR - 0.01, 1, False),
                                                 (0.0, synthetic.PATCHED_STEPS - 1, False), (0.0, synthetic.PATCHED_STEPS, True)])
def test_best_pastes_patches_only_where_the_student_starts_far_away_and_in_long_runs(monkeypatch, begun, steps, mixed):
    wrapped = []
    monkeypatch.setattr(synthetic, "patched", lambda sampler: wrapped.append(sampler) or sampler)
    monkeypatch.setattr(synthetic, "finetune", lambda *_, **__: None)
    monkeypatch.setattr(synthetic, "feature_error", lambda *_: begun)
    synthetic.best(job(budget=replace(TINY, finetune_iterations=steps)))
    assert bool(wrapped) == mixed


@pytest.mark.parametrize("begun, rate", [(0.01, 5e-5), (0.17, 5e-4), (0.7, 1e-3)])
def test_best_learns_the_faster_the_farther_the_student_starts_and_others_by_their_bits(monkeypatch, begun, rate):
    rates = []
    monkeypatch.setattr(synthetic, "finetune", lambda *_, **named: rates.append(named["learning_rate"]))
    monkeypatch.setattr(synthetic, "feature_error", lambda *_: begun)
    for recipe in (synthetic.best, synthetic.distilled):
        recipe(job())
    assert rates == [rate, learning_rate(job().config)]


def test_of_the_named_budgets_the_long_one_is_such_a_run():
    assert [name for name, named in BUDGETS.items() if named.finetune_iterations >= synthetic.PATCHED_STEPS] == ["long"]


@pytest.mark.parametrize("begun, expected", [(0.1, (knowledge_loss, {})), (0.2, (thorough_loss, {"features": 3.0})),
                                             (0.32, (thorough_loss, {"features": 3.0})), (0.5, (thorough_loss, {"features": 30.0}))])
def test_best_compares_outputs_twice_where_the_student_starts_far_away(monkeypatch, begun, expected):
    losses, looks = [], []
    monkeypatch.setattr(synthetic, "finetune", lambda *_, loss, **__: losses.append(loss))
    monkeypatch.setattr(synthetic, "feature_error", lambda *args: looks.append(args) or begun)
    work = job()
    synthetic.best(work)
    assert [(loss.func, loss.keywords) for loss in losses] == [(expected[0], {"task": work.task} | expected[1])]
    (student, teacher, _, layers), = looks
    assert student is work.student and teacher is work.teacher and layers == work.compared(dense_layers)
    assert work.notes["feature_error"] == begun


def test_with_fewer_bits_the_student_starts_farther_away():
    begun = {}
    for bits in (8, 4, 2):
        teacher, student = convert(awaken(Residual()), QuantConfig(bits, bits), IMAGE)
        work = Job(teacher, student, QuantConfig(bits, bits), IMAGE, replace(TINY, images=16, image_batch=16), 0)
        synthetic.best(work)
        begun[bits] = work.notes["feature_error"]
    assert 10 * begun[8] < begun[4] < 0.5 * begun[2], begun


def test_kept_images_are_not_taken_for_those_of_other_settings(monkeypatch, tmp_path):
    """Whoever changes how images begin gets new ones, also where a sweep's folder still has the old."""
    work = job()
    work.run = RunState(tmp_path / "run")
    first = synthetic._optimised(work)
    assert torch.equal(first, synthetic._optimised(work))
    monkeypatch.setattr(image_start, "RATE", 0.5)
    assert not torch.equal(first, synthetic._optimised(work))
