"""ZS-CGAN (Choi, El-Khamy, Lee 2022): a conditional generator learns from a classifier alone.

The fixed classifier is the only judge. An image is good when the classifier says its label (cross-entropy) and when the
batch leaves in every BatchNorm the mean and deviation that training left there. No image is ever shown to anyone.
Notebook 04 trains one; a network without classes gets an unconditional generator and the statistics only.
"""
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .bn_stats import BatchNormStatistics, layer_distance, require_statistics, squared_distance
from .checkpoints import save_model, write_card
from .code_version import files_version
from .distributed import average_gradients
from .generators import Generator
from .health import Health, Stopped, variety
from .images import count_classes, require_gradient
from .job import MAKERS, fingerprint
from .layers import QuantConfig, convert
from .precision import economical
from .resume import RunState
from .tasks import CLASSIFICATION, Task


@dataclass(frozen=True)
class Settings:
    """How a generator is trained. variety_weight: of the images' `similarity`, which keeps a class from becoming one image.
    one_cycle: the rate rises for a fifth of the run, then falls to zero; else it is constant.

    distance: how a batch's statistics are compared with a layer's memory (`bn_stats`).
    """

    learning_rate: float
    betas: tuple[float, float]
    class_weight: float
    one_cycle: bool
    variety_weight: float = 0.0
    distance: Callable = layer_distance

    def decides(self) -> dict:
        """What of a generator's result follows from these settings, as JSON can hold it."""
        return asdict(self) | {"distance": self.distance.__name__}


PAPER = Settings(1e-3, (0.9, 0.999), 1.0, one_cycle=False, distance=squared_distance)  # the paper's two terms, one to one
LAB = Settings(3e-3, (0.5, 0.99), 0.05, one_cycle=True, variety_weight=0.5)  # what each brings: notebook 04


@torch.inference_mode(False)  # gradients are needed here, whatever the caller has switched off
def train_generator(generator: Generator, teacher: nn.Module, *, iterations: int, batch_size: int = 128,
                    settings: Settings = LAB, seed: int = 0,
                    on_step: Callable[[int, dict[str, float]], None] | None = None, progress: bool = False,
                    run: RunState | None = None, task: Task = CLASSIFICATION) -> None:
    """Train `generator` in place against the fixed `teacher` (eval mode); it is left in eval mode.

    on_step(iteration, {"statistics", "class", "similarity"}), those that the settings ask for, is called after each
    iteration. Raises `health.Stopped` when the images collapse or a loss stops being a number, and ValueError for a
    teacher without BatchNorm statistics.
    """
    require_statistics(teacher, "training a generator")
    run, random, first = run or RunState(), torch.Generator().manual_seed(seed), 0
    parameters = [p.requires_grad_(True) for p in generator.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=settings.learning_rate, betas=settings.betas)
    health = Health("training the generator")
    if state := run.load("generator"):
        generator.load_state_dict(state["generator"])
        optimizer.load_state_dict(state["optimizer"])
        random.set_state(state["random"])
        first = state["iteration"]
    generator.train()
    bar = tqdm(range(first, iterations), "generator", iterations, initial=first, disable=not progress, leave=False)

    def keep(done: int, *, now: bool = False) -> None:
        run.save("generator", lambda: {"generator": generator.state_dict(), "optimizer": optimizer.state_dict(),
                                       "random": random.get_state(), "iteration": done}, now=now)

    try:
        with (BatchNormStatistics(teacher, settings.distance) as statistics,
              economical(teacher, generator.image_shape, batch_size)):
            for iteration in bar:
                if settings.one_cycle:
                    optimizer.param_groups[0]["lr"] = settings.learning_rate * one_cycle(iteration / iterations)
                images, labels = generator.sample(batch_size, random, shared=True)
                output = teacher(images)
                losses = {"statistics": statistics.loss()}
                require_gradient(losses["statistics"])
                if labels is not None:
                    losses["class"] = task.label_loss(output, labels)
                if settings.variety_weight:
                    losses["similarity"] = similarity(images)
                numbers = {name: value.item() for name, value in losses.items()}
                health.check(iteration, numbers, images, labels)
                loss = (losses["statistics"] + settings.class_weight * losses.get("class", 0.0)
                        + settings.variety_weight * losses.get("similarity", 0.0))
                for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                    parameter.grad = gradient
                average_gradients(parameters)
                optimizer.step()
                keep(iteration + 1)
                if on_step:
                    on_step(iteration, numbers)
        keep(iterations, now=True)
    except Stopped as error:
        raise Stopped(f"{error}{run.where()}") from error
    finally:
        generator.eval()
        for parameter in parameters:
            parameter.requires_grad_(False)
            parameter.grad = None


def similarity(images: Tensor) -> Tensor:
    """Mean squared cosine between the images [N, ...] of a batch, over all pairs: 1 when all are one."""
    rows = images.flatten(1)
    rows = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return ((rows @ rows.t()).square().sum() - len(rows)) / max(1, len(rows) * (len(rows) - 1))


def one_cycle(done: float) -> float:
    """Share of the peak rate when a share `done` of the run is over: 0.1 to 1 at 20 %, then linearly to 0."""
    return 0.1 + 0.9 * done / 0.2 if done < 0.2 else (1 - done) / 0.8


def train_generator_checkpoint(name: str, network: nn.Module, image_shape: tuple[int, ...], out: Path, *, iterations: int,
                               seed: int, runs: Path) -> dict:
    """Train a conditional generator against `network`, write checkpoint and card, return the facts that both state.

    The facts: distance of the statistics, share of labels that the classifier believes, variety within the classes, all
    on 512 fresh samples. runs: the folder for the state of an interrupted run.
    """
    teacher, _ = convert(network, QuantConfig(), image_shape)
    classes = count_classes(teacher, image_shape)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        generator = Generator(image_shape, classes)
    decides = (files_version(MAKERS["generator"]), list(image_shape), LAB.decides(), iterations, seed)
    run = RunState(runs / f"generator_{name.replace('/', '_')}_{fingerprint(teacher, *decides)}")
    started = time.perf_counter()
    train_generator(generator, teacher, iterations=iterations, seed=seed, progress=True, run=run)
    seconds = time.perf_counter() - started + run.reused_seconds
    with torch.inference_mode(), BatchNormStatistics(teacher) as statistics:
        images, labels = generator.sample(512, torch.Generator().manual_seed(seed + 1))
        believed = (teacher(images).argmax(1) == labels).double().mean().item()
        facts = {"model": name, "kind": "conditional generator", "statistics": round(statistics.loss().item(), 4),
                 "believed": round(100 * believed, 1), "variety": round(variety(images, labels), 3), "classes": classes,
                 "image_shape": list(image_shape), "iterations": iterations, "seed": seed, "seconds": round(seconds),
                 "command": f"python -m zsq_lab generator --model {name} --iterations {iterations} --seed {seed}",
                 "machine": f"{platform.machine()} CPU, {torch.get_num_threads()} threads", "torch": torch.__version__}
    save_model(generator, out, facts)
    write_card(out, facts)
    run.clear()
    return facts
