"""What a recipe works with: its budget, the pair of networks, ranges from images, batches from a pool."""
import hashlib
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from types import BuiltinFunctionType, FunctionType

import torch
from torch import Tensor, nn

from .code_version import files_version
from .distill import Sampler, stage_layers
from .graph import Graph, trace
from .layers import QuantConfig, quant_layers
from .memory import is_large
from .ranges import fit_input_ranges, fit_weight_ranges
from .resume import RunState
from .tasks import CLASSIFICATION, Task

CALIBRATION_BATCH = 128
RANGE_IMAGES = 512  # more change no range; of scenes fewer, as `Task.per_image` says
MAKERS = {"images": "image_maker", "prior": "gznq", "generator": "zscgan"}  # the file that makes what recipes share


@dataclass(frozen=True)
class Budget:
    """How much work a recipe may do: images and the iterations on each batch of them, iterations of a generator, of
    fine-tuning (of each block, where they are reconstructed), of rounding all blocks together; and the sizes of batches."""

    name: str
    images: int
    image_iterations: int
    finetune_iterations: int
    generator_iterations: int = 300
    image_batch: int = 128
    batch_size: int = 64
    joint_iterations: int = 0


# 1, 6 and 30 minutes for ResNet-20 on two cores without AVX-512
BUDGETS = {b.name: b for b in (Budget("quick", 128, 100, 150, 60), Budget("standard", 1024, 80, 600, 300),
                               Budget("long", 2048, 100, 2400, 3000))}
# For images of 128x128 pixels and more, where one costs what fifty small ones do; batches that fit into 8 GiB. Passes forwards
# and backwards through EfficientNet-Lite0 on one core: nine images a second; a step of all blocks together takes 3.2 seconds.
LARGE_BUDGETS = {b.name: b for b in (Budget("quick", 64, 15, 40, 60, 16, 16, 20),
                                     Budget("standard", 512, 20, 60, 300, 16, 16, 500),
                                     Budget("long", 2048, 60, 1000, 5000, 32, 32, 4000))}


def named_budget(name: str, image_shape: tuple[int, ...], task: Task) -> Budget:
    """The budget of a name for a task on images of this shape. Raises ValueError, listing the names, for an unknown one."""
    if name not in BUDGETS:
        raise ValueError(f"unknown budget '{name}': expected one of {', '.join(BUDGETS)}")
    return LARGE_BUDGETS[name] if task is CLASSIFICATION and is_large(image_shape) else task.budget(BUDGETS[name])


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
    run: RunState = field(default_factory=RunState)
    stages: list[str] | None = None  # the layers whose inputs are compared; None: found in the model's structure
    task: Task = CLASSIFICATION
    notes: dict = field(default_factory=dict)  # goes into the report
    reused: list[RunState] = field(default_factory=list)

    def shared(self, kind: str, *settings) -> RunState:
        """State of a phase that does not depend on the bits: whoever runs it first leaves the result to all others.

        kind: of MAKERS.
        """
        if self.run.folder is None:
            return RunState()
        made_by = files_version(MAKERS[kind])
        digest = fingerprint(self.teacher, kind, made_by, list(self.image_shape), self.seed, self.task.name, *settings)
        self.reused.append(RunState(self.run.folder.parent / f"{kind}_{digest}"))
        return self.reused[-1]

    def compared(self, find: Callable[[Graph], list[str]] = stage_layers) -> list[str]:
        """The layers whose inputs are compared: `stages`, or what is found. Raises ValueError where that is none."""
        found = self.stages or find(trace(self.teacher, self.image_shape))
        if not found:
            raise ValueError(f"no layer is found to compare features at: {_some_of(self.student)}")
        return list(found)

    @property
    def large(self) -> bool:
        """Whether these are photographs to be classified, of which few make a batch."""
        return self.task is CLASSIFICATION and is_large(self.image_shape)

    @property
    def range_images(self) -> int:
        """Images that ranges are observed on: more change no range; a large image has more positions."""
        return 64 if self.large else RANGE_IMAGES // self.task.per_image

    @property
    def calibration_batch(self) -> int:
        """Images that pass at once where ranges are observed."""
        return 16 if self.large else CALIBRATION_BATCH // self.task.per_image

    @property
    def statistics_images(self) -> int:
        """Images' worth of values that are drawn from the statistics."""
        return 64 if self.large else self.calibration_batch

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
        fit_input_ranges(self.student, images.split(self.calibration_batch), search=self.search, seed=self.seed)


class UnknownLayer(ValueError):
    """One of `stages` is no layer that the student quantizes."""


def check_stages(stages: list[str] | None, student: nn.Module) -> None:
    """Raises UnknownLayer, which names some that there are, for a name that no quantized layer has."""
    if unknown := [name for name in stages or () if name not in quant_layers(student)]:
        raise UnknownLayer(f"no layer '{unknown[0]}' to compare features at: {_some_of(student)}")


def _some_of(student: nn.Module) -> str:
    return ("name layers that the forward pass reaches with stages=, among "
            f"{', '.join(list(quant_layers(student))[:8])}, ...")


def fingerprint(teacher: nn.Module, *decides, images: Tensor | None = None) -> str:
    """16 hex digits of what decides a result: the network, its numbers and its code, JSON-able settings, images."""
    files = {type(module).__module__.rpartition(".")[2] for module in teacher.modules()
             if type(module).__module__.startswith(f"{__package__}.")}
    digest = hashlib.sha256(json.dumps([files_version(*sorted(files)), str(teacher), *decides]).encode())
    for tensor in (*teacher.state_dict().values(), *([images] if images is not None else [])):
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    for module in teacher.modules():
        if type(module).__module__.partition(".")[0] not in ("torch", __package__):
            digest.update(repr(_written_by_others(module)).encode())
    return digest.hexdigest()[:16]


def _written_by_others(module: nn.Module) -> tuple:
    """What a module of the user's computes beyond its numbers: its class's source, its plain values, its functions' names."""
    values = {name: getattr(value, "__qualname__", value) for name, value in vars(module).items()
              if isinstance(value, int | float | str | FunctionType | BuiltinFunctionType)}
    return _source(type(module)), values


@cache  # Python reads the whole file of a class to find it
def _source(kind: type) -> str:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):  # written in a notebook or typed into an interpreter: what was made of it
        code = getattr(kind.forward, "__code__", None)
        return repr(code and (code.co_code, code.co_names, [c for c in code.co_consts if isinstance(c, int | float | str)]))


def learning_rate(config: QuantConfig) -> float:
    """Adam's rate by the narrowest width: few levels need long steps, many are spoilt by them."""
    return {2: 1e-3, 3: 5e-4, 4: 2e-4}.get(config.narrowest, 5e-5)


def pool_sampler(images: Tensor, batch_size: int) -> Sampler:
    """Draws batches from a pool [N, ...], half of the images mirrored."""
    def draw(generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(images), (batch_size,), generator=generator)
        flip = torch.rand(batch_size, generator=generator) < 0.5
        batch = images[chosen.to(images.device)]
        batch = torch.where(flip.to(batch.device)[:, None, None, None], batch.flip(-1), batch) if batch.ndim == 4 else batch
        return batch.contiguous(memory_format=torch.channels_last) if batch.ndim == 4 else batch
    return draw
