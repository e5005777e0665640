"""The named recipes, each a complete way from a full-precision model to a quantized one, and the two public verbs.

A recipe is a short function that sets a student's ranges, and perhaps its weights, from what it may look at: nothing
(`rtn-noise`), the BatchNorm statistics (`rtn-bn`, `dfq`, `squant`), images made from them (`zeroq`, `distilled`) or,
for reference only, real images (`real-ranges`, `real-finetune`).
"""
import copy
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn

from .bn_stats import remembered_activations, require_statistics
from .distill import Sampler, finetune, stage_layers
from .equalize import absorb_biases, correct_biases, equalize
from .graph import trace
from .images import optimise_images
from .layers import QuantConfig, check_model, convert, quant_layers, quantize_model
from .ranges import fit_input_ranges, fit_weight_ranges
from .rounding import squant

CALIBRATION_BATCH = 128
RANGE_IMAGES = 512  # more change no range


@dataclass(frozen=True)
class Budget:
    """How much work a recipe may do: optimised images and their iterations, fine-tuning iterations and batch size."""

    name: str
    images: int
    image_iterations: int
    finetune_iterations: int
    image_batch: int = 128
    batch_size: int = 64


BUDGETS = {b.name: b for b in (Budget("quick", 128, 100, 150), Budget("standard", 512, 250, 800),
                               Budget("long", 4096, 300, 8000))}


@dataclass
class Job:
    """What a recipe gets: the pair to work on and what it may use."""

    teacher: nn.Module
    student: nn.Module
    config: QuantConfig
    image_shape: tuple[int, ...]
    budget: Budget
    seed: int
    images: Tensor | None = None  # real images, for the reference recipes only
    progress: bool = False
    notes: dict = field(default_factory=dict)  # goes into the report

    @property
    def search(self) -> bool:
        return self.config.convention == "deployable"

    def noise(self, n: int) -> Tensor:
        """n images of standard normal noise, on the model's device."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randn(n, *self.image_shape, generator=generator).to(next(self.teacher.parameters()).device)

    def fit(self, images: Tensor) -> None:
        """Set all ranges: the weights' from the weights, the inputs' from these images."""
        fit_weight_ranges(self.student, search=self.search)
        fit_input_ranges(self.student, images.split(CALIBRATION_BATCH), search=self.search, seed=self.seed)


def _rtn_noise(job: Job) -> None:
    job.fit(job.noise(RANGE_IMAGES))


def _rtn_bn(job: Job) -> None:
    require_statistics(job.student, "recipe 'rtn-bn'")
    with remembered_activations(job.student, job.seed):
        job.fit(job.noise(CALIBRATION_BATCH))


def _dfq(job: Job) -> None:
    if job.config.convention != "deployable":
        raise ValueError("recipe 'dfq' moves scales between folded layers: use convention 'deployable'")
    require_statistics(job.student, "recipe 'dfq'")
    equal = absorb_biases(equalize(job.teacher, job.image_shape), job.image_shape)
    job.student = quantize_model(equal, job.config, trace(equal, job.image_shape))
    _rtn_bn(job)
    correct_biases(job.student, job.image_shape, seed=job.seed)


def _squant(job: Job) -> None:
    _rtn_bn(job)
    squant(job.student)


def _zeroq(job: Job) -> None:
    job.fit(_make_images(job))


def _distilled(job: Job) -> None:
    _finetune_on(job, _make_images(job))


def _real_ranges(job: Job) -> None:
    job.fit(job.images[:RANGE_IMAGES])


def _real_finetune(job: Job) -> None:
    _finetune_on(job, job.images)


def _make_images(job: Job) -> Tensor:
    images, _ = optimise_images(job.teacher, job.budget.images, job.image_shape, batch_size=job.budget.image_batch,
                                iterations=job.budget.image_iterations, seed=job.seed, progress=job.progress)
    job.notes |= {"images": len(images), "image_iterations": job.budget.image_iterations}
    return images


def _finetune_on(job: Job, images: Tensor) -> None:
    job.fit(images[:RANGE_IMAGES])
    stages = stage_layers(trace(job.teacher, job.image_shape))
    finetune(job.student, job.teacher, pool_sampler(images, job.budget.batch_size), stages, seed=job.seed,
             iterations=job.budget.finetune_iterations, learning_rate=learning_rate(job.config), progress=job.progress)
    job.notes |= {"finetune_iterations": job.budget.finetune_iterations, "batch_size": job.budget.batch_size}


def learning_rate(config: QuantConfig) -> float:
    """Adam's rate by the narrowest width: few levels need long steps, many are spoilt by them."""
    return {2: 1e-3, 3: 5e-4, 4: 2e-4}.get(min(config.weight_bits, config.activation_bits), 5e-5)


def pool_sampler(images: Tensor, batch_size: int) -> Sampler:
    """Draws batches from a pool [N, ...], half of the images mirrored."""
    def draw(generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(images), (batch_size,), generator=generator)
        flip = torch.rand(batch_size, generator=generator) < 0.5
        batch = images[chosen.to(images.device)]
        batch = torch.where(flip.to(batch.device)[:, None, None, None], batch.flip(-1), batch) if batch.ndim == 4 else batch
        return batch.contiguous(memory_format=torch.channels_last) if batch.ndim == 4 else batch
    return draw


@dataclass(frozen=True)
class Recipe:
    """A named recipe: what it does, what it looks at, whether it needs real images."""

    name: str
    run: Callable[[Job], None]
    summary: str
    looks_at: str = "BatchNorm statistics"
    needs_images: bool = False


RECIPES = {r.name: r for r in (
    Recipe("rtn-noise", _rtn_noise, "round to nearest, ranges from noise", "nothing"),
    Recipe("rtn-bn", _rtn_bn, "round to nearest, ranges from BatchNorm statistics"),
    Recipe("dfq", _dfq, "equalization, bias absorption and bias correction (Nagel et al. 2019)"),
    Recipe("squant", _squant, "closed-form rounding (Guo et al. 2022), ranges from BatchNorm statistics"),
    Recipe("zeroq", _zeroq, "ranges from images optimised to the statistics (Cai et al. 2020)"),
    Recipe("distilled", _distilled, "optimised images, then fine-tuning against the teacher with learned scales"),
    Recipe("real-ranges", _real_ranges, "reference: ranges from real images", "real images", True),
    Recipe("real-finetune", _real_finetune, "reference: fine-tuning on real images", "real images", True),
)}


@dataclass
class Result:
    """What `quantize` returns: the quantized model (eval mode, ranges frozen) and a report of how it came to be."""

    model: nn.Module
    report: dict


@torch.inference_mode(False)  # gradients are needed here, whatever the caller has switched off
def quantize(model: nn.Module, config: QuantConfig | None = None, recipe: str = "distilled", *,
             image_shape: tuple[int, ...], seed: int = 0, budget: str | Budget = "standard",
             images: Tensor | None = None, progress: bool = False) -> Result:
    """Quantize any model with convolutions or linears; the model itself is left untouched.

    image_shape: one input without the batch dimension, (3, 32, 32). budget: a name of BUDGETS or a Budget.
    images: real images [N, *image_shape] as the model takes them, for the reference recipes only.
    Raises ValueError for a model, recipe, budget or image set that does not fit, naming what to change.
    """
    config = config or QuantConfig()
    chosen = _named(RECIPES, recipe, "recipe")
    budget = budget if isinstance(budget, Budget) else _named(BUDGETS, budget, "budget")
    if chosen.needs_images and images is None:
        raise ValueError(f"recipe '{recipe}' needs real images: pass images=, or use a recipe without data")
    if images is not None and not chosen.needs_images:
        raise ValueError(f"recipe '{recipe}' looks at no images: leave images= out")
    if images is not None and (tuple(images.shape[1:]) != tuple(image_shape) or len(images) == 0):
        raise ValueError(f"images have shape {tuple(images.shape)}, expected [N, {', '.join(map(str, image_shape))}]")
    if images is not None and not images.is_floating_point():
        raise ValueError(f"images are {images.dtype}: normalise them to the floats that the model takes")
    started = time.perf_counter()
    teacher, student = convert(model, config, tuple(image_shape))
    images = images.to(next(teacher.parameters())) if images is not None else None
    job = Job(teacher, student, config, tuple(image_shape), budget, seed, images, progress)
    chosen.run(job)
    float_bytes, quantized_bytes = model_bytes(job.student)
    return Result(job.student.eval(), {
        "recipe": recipe, "config": asdict(config), "convention": config.convention, "seed": seed,
        "budget": budget.name, **job.notes,
        "iterations": sum(job.notes.get(kind, 0) for kind in ("image_iterations", "finetune_iterations")),
        "seconds": round(time.perf_counter() - started, 2),
        "bytes_before": float_bytes, "bytes_after": quantized_bytes,
        "device": str(next(teacher.parameters()).device), "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__}})


@torch.inference_mode(False)
def synthesize(model: nn.Module, n: int = 256, *, image_shape: tuple[int, ...], seed: int = 0,
               budget: str | Budget = "standard", progress: bool = False) -> Tensor:
    """n images [n, *image_shape], in the scale that the model takes, made from its BatchNorm statistics alone.

    What a real toolkit wants as calibration data. Raises ValueError for a model without BatchNorm statistics.
    """
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"n must be a whole number of at least 1, got {n!r}")
    budget = budget if isinstance(budget, Budget) else _named(BUDGETS, budget, "budget")
    check_model(model)
    teacher, _ = convert(model, QuantConfig(), tuple(image_shape))
    images, _ = optimise_images(teacher, n, tuple(image_shape), iterations=budget.image_iterations,
                                batch_size=budget.image_batch, seed=seed, progress=progress)
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


def independent(result: Result) -> Result:
    """A copy of a result that shares nothing with it, for experiments that change the model."""
    return copy.deepcopy(result)
