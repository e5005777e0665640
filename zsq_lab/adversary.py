"""The game of ZAQ (Liu et al. 2021): a generator looks for images on which P and Q disagree, Q learns to agree on them.

P, the full-precision teacher, never moves. The generator's step makes the discrepancy larger, the student's steps make it
smaller, in turn. Faithful mode is the paper's loss and nothing else; the lab's mode keeps the generator honest with what
P's BatchNorms remember, bounds what it can win, and starts it warm. Notebook 05 plays both.
"""
import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .bn_stats import BatchNormStatistics
from .discrepancy import FeatureDiscrepancy, activation_term, output_discrepancy, output_size
from .distributed import average_gradients
from .distill import Features, FineTuning, knowledge_loss
from .generators import Generator
from .health import Health, Stopped
from .resume import RunState
from .tasks import CLASSIFICATION, Task


@dataclass(frozen=True)
class Rules:
    """How the game is played.

    feature_weight, activation_weight: alpha and beta of the paper. student_steps: k, steps of Q for one of G.
    generator_rate: Adam's. bounded: the generator wins D / (1 + D) instead of D, with D in units of P's outputs, so that
    nothing is gained by images far from anything P knows. statistics_weight, class_weight: what keeps images natural.
    paper_loss: Q minimises the two discrepancies; else KL and features as in all fine-tuning of the lab. remembered: the
    share of Q's images that comes from the generator as it was at the start, so that what Q has learned is not given up
    for the latest attack.
    """

    feature_weight: float = 0.1
    activation_weight: float = 0.05
    student_steps: int = 5
    generator_rate: float = 1e-3
    bounded: bool = False
    statistics_weight: float = 0.0
    class_weight: float = 0.0
    paper_loss: bool = True
    remembered: float = 0.0


PAPER = Rules()
LAB = Rules(generator_rate=3e-4, bounded=True, statistics_weight=1.0, class_weight=0.2, paper_loss=False, remembered=0.5)


@torch.inference_mode(False)  # gradients are needed here, whatever the caller has switched off
def play(generator: Generator, student: nn.Module, teacher: nn.Module, stages: list[str], *, rules: Rules = LAB,
         iterations: int, learning_rate: float, batch_size: int = 64, seed: int = 0,
         on_step: Callable[[int, dict[str, float]], None] | None = None, progress: bool = False,
         run: RunState | None = None, task: Task = CLASSIFICATION, learned: list[str] | None = None) -> None:
    """`iterations` steps of the student, one of the generator before every `rules.student_steps` of them; in place.

    stages: the layers whose inputs are compared (`distill.stage_layers`). learned: those that the student's steps compare,
    where they are others (`distill.dense_layers`). learning_rate: the student's (Adam, cosine).
    on_step(iteration, numbers) gets the last {"output", "feature", "relative", "activation"} of the generator's turn and
    the student's {"student"} loss. Raises `health.Stopped` for NaN, an exploding discrepancy or mode collapse.
    """
    run, random, first = run or RunState(), torch.Generator().manual_seed(seed), 0
    features = FeatureDiscrepancy()
    turn = GeneratorTurn(generator, student, teacher, stages, rules, features, task)
    loss = _paper_loss(rules, features) if rules.paper_loss else partial(knowledge_loss, task=task)
    health, beginner = Health("the game"), copy.deepcopy(generator).eval()
    old = round(rules.remembered * batch_size)
    with turn, FineTuning(student, teacher, learned or stages, learning_rate, loss) as tuning:
        numbers: dict[str, float] = {}
        if state := run.load("game"):
            tuning.restore(state["tuning"])
            turn.restore(state["turn"])
            random.set_state(state["random"])
            first, numbers, features.size = state["iteration"], state["numbers"], state["sizes"]
        bar = tqdm(range(first, iterations), "game", iterations, initial=first, disable=not progress, leave=False)
        try:
            for iteration in bar:
                if iteration % rules.student_steps == 0:
                    images, labels, numbers = turn.step(batch_size, random)
                    health.check(iteration, numbers, images, labels, numbers["relative"])
                with torch.no_grad():
                    images = torch.cat([player.sample(n, random)[0] for player, n in ((generator, batch_size - old),
                                                                                      (beginner, old)) if n])
                numbers["student"] = tuning.step(images, iteration / iterations)
                run.save("game", lambda: {"tuning": tuning.state(), "turn": turn.state(), "random": random.get_state(),
                                          "iteration": iteration + 1, "numbers": numbers, "sizes": features.size})
                if on_step:
                    on_step(iteration, dict(numbers))
        except Stopped as error:
            raise Stopped(f"{error}{run.where()}") from error


class GeneratorTurn:
    """The generator's side of the game: one step that makes P and Q disagree more, P and Q themselves untouched."""

    def __init__(self, generator: Generator, student: nn.Module, teacher: nn.Module, stages: list[str], rules: Rules,
                 features: FeatureDiscrepancy, task: Task = CLASSIFICATION):
        self.task, self.generator, self.student, self.teacher = task, generator, student, teacher
        self.rules, self.stages, self.features = rules, stages, features
        self.parameters = list(generator.parameters())
        self.optimizer = torch.optim.Adam(self.parameters, lr=rules.generator_rate, betas=(0.5, 0.99))
        self.statistics = BatchNormStatistics(teacher)

    def __enter__(self) -> "GeneratorTurn":
        self.generator.train().requires_grad_(True)
        return self

    def __exit__(self, *_) -> None:
        self.generator.eval().requires_grad_(False)
        for parameter in self.parameters:
            parameter.grad = None

    def step(self, batch_size: int, random: torch.Generator) -> tuple[Tensor, Tensor | None, dict[str, float]]:
        """One step on a fresh batch; returns the images, their labels and what the step measured."""
        rules = self.rules
        images, labels = self.generator.sample(batch_size, random, shared=True)
        with self.statistics, Features(self.teacher, self.stages) as wanted, Features(self.student, self.stages) as own:
            teacher_output = self.teacher(images)
            output = output_discrepancy(self.student(images), teacher_output)
            feature = self.features(own.values, wanted.values)
            activation = activation_term(wanted.values[self.stages[-1]])
            relative = output / (output_size(teacher_output).detach() + 1e-12)
            gain = relative / (1 + relative) if rules.bounded else output
            loss = -gain - rules.feature_weight * feature + rules.activation_weight * activation
            if rules.statistics_weight:
                loss = loss + rules.statistics_weight * self.statistics.loss()
            if rules.class_weight and labels is not None:
                loss = loss + rules.class_weight * self.task.label_loss(teacher_output, labels)
            gradients = torch.autograd.grad(loss, self.parameters)  # nobody else's
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        average_gradients(self.parameters)
        self.optimizer.step()
        return images.detach(), labels, {"output": output.item(), "feature": feature.item(), "relative": relative.item(),
                                         "activation": activation.item()}

    def state(self) -> dict:
        return {"generator": self.generator.state_dict(), "optimizer": self.optimizer.state_dict()}

    def restore(self, state: dict) -> None:
        self.generator.load_state_dict(state["generator"])
        self.optimizer.load_state_dict(state["optimizer"])


def _paper_loss(rules: Rules, features: FeatureDiscrepancy):
    """Q minimises what G maximises: D_out + alpha D_feat."""
    def loss(student_output, teacher_output, student_features, teacher_features):
        return (output_discrepancy(student_output, teacher_output)
                + rules.feature_weight * features(student_features, teacher_features))
    return loss
