"""The table of named recipes and the two public verbs, `quantize` and `synthesize`.

A recipe sets a student's ranges, and perhaps its weights, from what it may look at: nothing, BatchNorm's memory
(`post_training`), images made from it (`synthetic`) or, for reference only, real images.
"""
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from . import post_training, synthetic
from .code_version import code_version
from .image_maker import make_images
from .image_start import suited
from .job import (  # noqa: F401  (some for notebooks)
    BUDGETS,
    Budget,
    Job,
    check_stages,
    fingerprint,
    learning_rate,
    named_budget,
    pool_sampler,
)
from .layers import QuantConfig, check_model, convert, float_layers, quant_layers
from .memory import is_large, keep_freed_memory
from .mixed_precision import assign_bits
from .resume import RunState
from .tasks import CLASSIFICATION, TASKS, Task


@dataclass(frozen=True)
class Recipe:
    """A named recipe: what it does, what it looks at, whether it needs real images."""

    name: str
    run: Callable[[Job], None]
    summary: str
    looks_at: str = "BatchNorm statistics"
    needs_images: bool = False


RECIPES = {r.name: r for r in (
    Recipe("rtn-noise", post_training.rtn_noise, "round to nearest, ranges from noise", "nothing"),
    Recipe("rtn-bn", post_training.rtn_bn, "round to nearest, ranges from BatchNorm statistics"),
    Recipe("dfq", post_training.dfq, "equalization, bias absorption and bias correction (Nagel et al. 2019)"),
    Recipe("squant", post_training.squant, "closed-form rounding (Guo et al. 2022), ranges from BatchNorm statistics"),
    Recipe("zeroq", synthetic.zeroq, "ranges from images optimised to the statistics (Cai et al. 2020)"),
    Recipe("distilled", synthetic.distilled, "optimised images, then fine-tuning against the teacher with learned scales"),
    Recipe("gznq", synthetic.gznq, "ranges from images per category under a network's prior (He et al. 2021)"),
    Recipe("gznq-finetuned", synthetic.gznq_finetuned, "the images of gznq, then fine-tuning"),
    Recipe("zs-cgan", synthetic.zs_cgan, "a conditional generator trained from the statistics, then fine-tuning"),
    Recipe("zs-cgan-paper", synthetic.zs_cgan_paper, "the same with the paper's ingredients only (Choi et al. 2022)"),
    Recipe("zaq", synthetic.zaq, "the adversarial game, from a warm conditional generator, with bounded gains"),
    Recipe("zaq-paper", synthetic.zaq_paper, "the game with the paper's ingredients only (Liu et al. 2021)"),
    Recipe("reconstructed", synthetic.reconstructed, "optimised images, then reconstruction block by block (Li et al. 2021)"),
    Recipe("best", synthetic.best, "optimised images, equalized weights, then fine-tuning at every layer "
                                   "(large images: roundings block by block, then together)"),
    Recipe("real-ranges", post_training.real_ranges, "reference: ranges from real images", "real images", True),
    Recipe("real-finetune", synthetic.real_finetune, "reference: what `best` does, on real images", "real images", True),
)}


@dataclass
class Result:
    """What `quantize` returns: the quantized model (eval mode, ranges frozen) and a report of how it came to be."""

    model: nn.Module
    report: dict


@contextmanager
def plain_defaults() -> Iterator[None]:
    """Inside the block new tensors are float32 and on the CPU unless they say otherwise, whatever the caller's defaults."""
    kind = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:  # a device that is set costs a call in Python at every operation: only where another one is
        with nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(kind)


@torch.inference_mode(False)  # gradients are needed here, whatever the caller has switched off
@plain_defaults()
def quantize(model: nn.Module, config: QuantConfig | None = None, recipe: str = "distilled", *,
             image_shape: tuple[int, ...], seed: int = 0, budget: str | Budget = "standard",
             images: Tensor | None = None, progress: bool = False, resume: Path | None = None,
             stages: list[str] | None = None, size_budget: float | None = None, task: str | Task = CLASSIFICATION) -> Result:
    """Quantize any model with convolutions or linears; the model itself is left untouched, the result computes in float32.

    image_shape: one input without the batch dimension, (3, 32, 32). budget: a name of BUDGETS or a Budget.
    images: real images [N, *image_shape] as the model takes them, for the reference recipes only.
    resume: a folder for the state of long runs; the same call after an interruption goes on and ends with the same numbers.
    Images and generators stay there and serve other widths as well; the report's seconds include the time they took.
    `resume.kept_until_written` keeps the rest until its result is measured and written as well.
    stages: names of the layers whose inputs student and teacher are compared at, where the model's own structure (a change
    of resolution, the last layer) is not what you want. `job.UnknownLayer`, a ValueError, names one that the model lacks.
    size_budget: weights may take this share of their size in 32-bit floats; which layer gets how many bits then follows from
    its sensitivity (`mixed_precision`), and config.weight_bits is not used.
    task: "classification", "segmentation", "detection" or a `tasks.Task`: what the model's outputs mean.
    Raises ValueError for a model, recipe, budget or image set that does not fit, naming what to change.
    """
    config = config or QuantConfig()
    chosen = _named(RECIPES, recipe, "recipe")
    task = task if isinstance(task, Task) else _named(TASKS, task, "task")
    budget = budget if isinstance(budget, Budget) else named_budget(budget, image_shape, task)
    if chosen.needs_images and images is None:
        raise ValueError(f"recipe '{recipe}' needs real images: pass images=, or use a recipe without data")
    if images is not None and not chosen.needs_images:
        raise ValueError(f"recipe '{recipe}' looks at no images: leave images= out")
    if images is not None and (tuple(images.shape[1:]) != tuple(image_shape) or len(images) == 0):
        raise ValueError(f"images have shape {tuple(images.shape)}, expected [N, {', '.join(map(str, image_shape))}]")
    if images is not None and not images.is_floating_point():
        raise ValueError(f"images are {images.dtype}: normalise them to the floats that the model takes")
    started = time.perf_counter()
    if is_large(image_shape):
        keep_freed_memory()
    teacher, student = convert(model, config, tuple(image_shape))
    check_stages(stages, student)  # before any work
    if size_budget is not None:
        layer_bits = assign_bits(model, config, tuple(image_shape), size_budget, seed,
                                 Path(resume) if resume else None, task, progress=progress, reused=(made := []))
        started -= sum(state.reused_seconds for state in made)
        config = replace(config, layer_bits=layer_bits, weight_bits=min(layer_bits.values()))
        teacher, student = convert(model, config, tuple(image_shape))
    images = images.detach().to(next(teacher.parameters())) if images is not None else None
    run = RunState()
    if resume:
        decides = (code_version(recipe), asdict(config), list(image_shape), seed, asdict(budget), stages, task.name)
        run = RunState(Path(resume) / f"{recipe}_{fingerprint(teacher, *decides, images=images)}")
    job = Job(teacher, student, config, tuple(image_shape), budget, seed, images, progress, run, stages, task)
    chosen.run(job)
    run.clear()
    float_bytes, quantized_bytes = model_bytes(job.student)
    return Result(job.student.eval(), {
        "recipe": recipe, "task": task.name, "config": asdict(config), "convention": config.convention, "seed": seed,
        "budget": budget.name, "size_budget": size_budget, **job.notes,
        "iterations": sum(job.notes.get(kind, 0) for kind in ("image_iterations", "generator_iterations", "finetune_iterations",
                                                         "joint_iterations")),
        "seconds": round(time.perf_counter() - started + sum(r.reused_seconds for r in (run, *job.reused)), 2),
        "bytes_before": float_bytes, "bytes_after": quantized_bytes, "float_layers": float_layers(job.student),
        "device": str(next(teacher.parameters()).device), "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__}})


@torch.inference_mode(False)
@plain_defaults()
def synthesize(model: nn.Module, n: int = 256, *, image_shape: tuple[int, ...], seed: int = 0,
               budget: str | Budget = "standard", progress: bool = False, resume: Path | None = None,
               task: str | Task = CLASSIFICATION) -> Tensor:
    """n images [n, *image_shape], in the scale that the model takes, made from its BatchNorm statistics alone.

    What a real toolkit wants as calibration data. resume: a folder for the state, as `quantize` takes it; the images stay
    there and serve the recipes that would make the same ones. Raises ValueError for a model without BatchNorm statistics.
    """
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"n must be a whole number of at least 1, got {n!r}")
    task = task if isinstance(task, Task) else _named(TASKS, task, "task")
    budget = budget if isinstance(budget, Budget) else named_budget(budget, image_shape, task)
    check_model(model)
    if is_large(image_shape):
        keep_freed_memory()
    teacher, student = convert(model, QuantConfig(), tuple(image_shape))
    job = Job(teacher, student, QuantConfig(), tuple(image_shape), budget, seed, task=task,
              run=RunState(Path(resume) / "synthesize" if resume else None))
    settings = suited(teacher, tuple(image_shape), task, seed=seed)
    run = job.shared("images", n, budget.image_iterations, budget.image_batch, settings)
    images, _ = make_images(teacher, n, tuple(image_shape), iterations=budget.image_iterations, batch_size=budget.image_batch,
                            seed=seed, progress=progress, run=run, task=task, settings=settings)
    return images.contiguous()


def model_bytes(student: nn.Module) -> tuple[int, int]:
    """Bytes of the model in 32-bit floats, and with its weights packed at their bits (scales, biases, rest in floats)."""
    numbers = {id(p): p for p in student.parameters()}
    weights = sum(layer.layer.weight.numel() for layer in quant_layers(student).values())
    scales = sum(q.scale.numel() for layer in quant_layers(student).values()
                 for q in (layer.weight_quantizer, *layer.input_quantizers))
    rest = sum(p.numel() for p in numbers.values()) - weights - scales
    packed = sum((layer.layer.weight.numel() * layer.weight_quantizer.bits + 7) // 8
                 for layer in quant_layers(student).values())
    return 4 * (weights + rest), packed + 4 * (rest + scales)


def _named(table: dict, name: str, kind: str):
    if name not in table:
        raise ValueError(f"unknown {kind} '{name}': expected one of {', '.join(table)}")
    return table[name]
