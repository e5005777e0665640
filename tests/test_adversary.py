"""The game: each player's loss rebuilt from PyTorch's own functions, whose turn it is, and what nobody may touch."""
import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from networks import IMAGE, Residual, awaken, images, same_state, snapshot
from torch import Tensor, nn

from zsq_lab.adversary import LAB, PAPER, GeneratorTurn, Rules, play
from zsq_lab.bn_stats import BatchNormStatistics
from zsq_lab.discrepancy import FeatureDiscrepancy
from zsq_lab.distill import Features, output_loss, relative_error
from zsq_lab.generators import Generator
from zsq_lab.layers import QuantConfig, convert
from zsq_lab.ranges import fit_input_ranges, fit_weight_ranges

STAGES = ["conv_a", "conv_b", "fc"]
RULES = {"paper": PAPER, "lab": LAB, "output only": Rules(feature_weight=0, activation_weight=0),
         "no activation": replace(PAPER, activation_weight=0), "heavy": Rules(feature_weight=3, activation_weight=2),
         "bounded": replace(PAPER, bounded=True)}


def players(classes: int | None = None, model: nn.Module | None = None) -> tuple[Generator, nn.Module, nn.Module]:
    """Generator, student of three bits with its ranges set, teacher."""
    teacher, student = convert(model or awaken(Residual()), QuantConfig(3, 3), IMAGE)
    fit_weight_ranges(student, search=False)
    fit_input_ranges(student, [images(32)], search=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Generator(IMAGE, classes), student, teacher


def seeded(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def cosines(features: Tensor) -> Tensor:
    rows = features.flatten(2) if features.ndim > 2 else features.t()[None]
    return F.cosine_similarity(rows[:, :, None], rows[:, None], dim=3)


def generator_loss(generator: Generator, student: nn.Module, teacher: nn.Module, rules: Rules) -> Tensor:
    """-D_out - alpha D_feat + beta (-mean |h|), on the first batch of seed 0, and what the lab adds."""
    made, labels = generator.sample(16, seeded())
    with Features(student, STAGES) as own, Features(teacher, STAGES) as wanted, BatchNormStatistics(teacher) as statistics:
        logits, expected = student(made), teacher(made)
        gaps = torch.stack([(cosines(own.values[n]) - cosines(wanted.values[n])).abs().mean() for n in STAGES])
        gain = (logits - expected).abs().mean()
        if rules.bounded:
            size = expected.abs().mean().item()
            gain = gain / size / (1 + gain / size)
        weights = 1 / gaps.detach()
        loss = -gain - rules.feature_weight * (weights / weights.sum() * gaps).sum()
        loss = loss - rules.activation_weight * wanted.values["fc"].abs().mean()
        loss = loss + rules.statistics_weight * statistics.loss()
        return loss + (rules.class_weight * F.cross_entropy(expected, labels) if labels is not None else 0)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("classes", [None, 5])
def test_the_generator_follows_the_gradient_of_its_loss(name, classes):
    generator, student, teacher = players(classes)
    mine = copy.deepcopy(generator)
    generator_loss(mine, student, teacher, RULES[name]).backward()
    with GeneratorTurn(generator, student, teacher, STAGES, RULES[name], FeatureDiscrepancy()) as turn:
        _, labels, numbers = turn.step(16, seeded())
        for own, expected in zip(generator.parameters(), mine.parameters(), strict=True):
            torch.testing.assert_close(own.grad, expected.grad, rtol=1e-3, atol=1e-5)
    assert (labels is None) == (classes is None)
    assert numbers["relative"] == pytest.approx(numbers["output"] / teacher(
        players(classes)[0].sample(16, seeded())[0]).abs().mean().item(), rel=1e-4)


@pytest.mark.parametrize("learned", [None, STAGES[:1]], ids=["at the stages", "elsewhere"])
@pytest.mark.parametrize("rules", [PAPER, LAB], ids=["paper", "lab"])
def test_the_student_minimises_its_own_loss(rules, learned):
    """One iteration: the student's batch comes from the generator after its step, and the lab's half from before it."""
    generator, student, teacher = players(5)
    before, student_before, seen = copy.deepcopy(generator), copy.deepcopy(student), []
    play(generator, student, teacher, STAGES, rules=rules, iterations=1, learning_rate=1e-3, batch_size=16,
         on_step=lambda _, numbers: seen.append(numbers), learned=learned)
    random, measure, compared = seeded(), FeatureDiscrepancy(), learned or STAGES
    with torch.no_grad(), Features(student_before, STAGES) as own, Features(teacher, STAGES) as wanted:
        old = int(16 * rules.remembered)
        for names, turns in ((STAGES, [(before, 16)]), (compared, [(generator, 16 - old), (before, old)])):
            made = torch.cat([player.sample(n, random)[0] for player, n in turns if n])
            logits, expected = student_before(made), teacher(made)
            feature = measure(*({n: features.values[n] for n in names} for features in (own, wanted)))
        if rules.paper_loss:
            loss = (logits - expected).abs().mean() + rules.feature_weight * feature
        else:
            errors = [relative_error(own.values[n], wanted.values[n]) for n in compared]
            loss = output_loss(logits, expected) + sum(errors) / len(errors)
    assert seen[0]["student"] == pytest.approx(loss.item(), rel=1e-4)


def test_the_generator_makes_the_discrepancy_larger_and_the_student_smaller():
    def gap() -> float:
        with torch.no_grad():
            made, _ = generator.sample(64, seeded(9))
            return (student(made) - teacher(made)).abs().mean().item()

    generator, student, teacher = players()
    start = gap()
    with GeneratorTurn(generator, student, teacher, STAGES, PAPER, FeatureDiscrepancy()) as turn:
        random = seeded()
        for _ in range(25):
            turn.step(16, random)
    provoked = gap()
    play(generator, student, teacher, STAGES, rules=replace(PAPER, generator_rate=0.0), iterations=40,
         learning_rate=5e-3,
         batch_size=16)
    assert provoked > 1.15 * start and gap() < 0.85 * provoked


@pytest.mark.parametrize("rules", [PAPER, LAB], ids=["paper", "lab"])
def test_the_generators_turn_leaves_both_networks_alone(rules):
    generator, student, teacher = players(5)
    networks = [student.requires_grad_(True), teacher.requires_grad_(True)]
    for parameter in [*student.parameters(), *teacher.parameters()]:
        parameter.grad = torch.full_like(parameter, 7.0)
    before, start = [snapshot(m) for m in networks], snapshot(generator)
    with GeneratorTurn(generator, student, teacher, STAGES, rules, FeatureDiscrepancy()) as turn:
        turn.step(16, seeded())
    assert all(same_state(b, m.state_dict()) for b, m in zip(before, networks, strict=True))
    assert all((p.grad == 7).all() for m in networks for p in m.parameters())
    assert all(not torch.equal(start[name], p) for name, p in generator.named_parameters() if name != "draw.bias")


@pytest.mark.parametrize("rules", [PAPER, LAB], ids=["paper", "lab"])
def test_the_students_steps_leave_the_generator_alone(rules):
    generator, student, teacher = players(5)
    states = [(snapshot(generator), None, snapshot(student))]
    play(generator, student, teacher, STAGES, rules=replace(rules, student_steps=3), iterations=6, learning_rate=1e-3,
         batch_size=8, on_step=lambda *_: states.append((snapshot(generator), [p.grad.clone() for p in generator.parameters()],
                                                         snapshot(student))))
    for iteration, (before, after) in enumerate(zip(states, states[1:])):
        assert same_state(before[0], after[0]) == (iteration % 3 != 0), "the generator moves in its own turn only"
        assert not same_state(before[2], after[2])
        if iteration % 3:
            assert all(torch.equal(own, same) for own, same in zip(before[1], after[1], strict=True))


@pytest.mark.parametrize("steps, iterations, pattern", [(1, 3, "GQGQGQ"), (3, 7, "GQQQGQQQGQ"), (5, 6, "GQQQQQGQ")])
def test_turns_alternate(steps, iterations, pattern):
    """The generator draws with gradients in its own turn, without them for the student;
    P and Q look at every batch once."""
    generator, student, teacher = players()
    turns, looks = [], []
    generator.register_forward_hook(lambda *_: turns.append("G" if torch.is_grad_enabled() else "Q"))
    for network in (student, teacher):
        network.register_forward_hook(lambda module, *_: looks.append(module))
    play(generator, student, teacher, STAGES, rules=replace(PAPER, student_steps=steps), iterations=iterations,
         learning_rate=1e-3, batch_size=8)
    assert "".join(turns) == pattern
    assert looks.count(student) == looks.count(teacher) == len(pattern)


def interrupt(*_) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("interrupted", [False, True])
@pytest.mark.parametrize("rules", [PAPER, LAB], ids=["paper", "lab"])
def test_after_the_game_the_teacher_is_the_same_and_everything_is_put_back(rules, interrupted):
    generator, student, teacher = players(5)
    before, random_state = snapshot(teacher), torch.get_rng_state()
    options = {"rules": rules, "iterations": 7, "learning_rate": 1e-3, "batch_size": 8}
    if interrupted:
        with pytest.raises(KeyboardInterrupt):
            play(generator, student, teacher, STAGES, on_step=interrupt, **options)
    else:
        play(generator, student, teacher, STAGES, **options)
    assert same_state(before, teacher.state_dict()) and torch.equal(torch.get_rng_state(), random_state)
    for network in (generator, student, teacher):
        assert not any(p.requires_grad or p.grad is not None for p in network.parameters())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    assert not generator.training


@pytest.mark.parametrize("rules", [PAPER, LAB], ids=["paper", "lab"])
def test_the_seed_decides_all(rules):
    results = []
    for seed in (0, 0, 1):
        generator, student, teacher = players(5)
        play(generator, student, teacher, STAGES, rules=rules, iterations=4, learning_rate=1e-3, batch_size=8,
             seed=seed)
        results.append(snapshot(generator) | snapshot(student))
    assert same_state(results[0], results[1]) and not same_state(results[0], results[2])


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_works_where_the_caller_has_switched_gradients_off(context):
    results = []
    for gradients_off in (False, True):
        generator, student, teacher = players()
        with context() if gradients_off else torch.enable_grad():
            play(generator, student, teacher, STAGES, iterations=2, learning_rate=1e-3, batch_size=8)
        results.append(snapshot(generator) | snapshot(student))
    assert same_state(*results)


def test_the_papers_game_needs_no_batchnorm():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    generator, student, teacher = players(model=awaken(model))
    steps = []
    play(generator, student, teacher, ["2"], rules=PAPER, iterations=3, learning_rate=1e-3, batch_size=8,
         on_step=lambda iteration, numbers: steps.append(set(numbers)))
    assert steps == [{"output", "feature", "relative", "activation", "student"}] * 3


@pytest.mark.parametrize("share, drawn", [(0.0, [(True, 16)]), (0.5, [(True, 8), (False, 8)]), (1.0, [(False, 16)])])
def test_the_student_also_sees_images_of_the_generator_as_it_was(monkeypatch, share, drawn):
    generator, student, teacher = players(5)
    start, calls, sample = snapshot(generator), [], Generator.sample

    def watched(self, n, random, *args, **kwargs):
        calls.append((self, n, kwargs.get("shared", False)))
        return sample(self, n, random, *args, **kwargs)

    monkeypatch.setattr(Generator, "sample", watched)
    play(generator, student, teacher, STAGES, rules=replace(LAB, remembered=share, student_steps=1), iterations=3,
         learning_rate=1e-3, batch_size=16)
    for_student = [(player is generator, n) for player, n, shared in calls if not shared]
    assert for_student == 3 * drawn
    assert not same_state(generator.state_dict(), start)
    assert all(same_state(player.state_dict(), start) for player, _, _ in calls if player is not generator)
