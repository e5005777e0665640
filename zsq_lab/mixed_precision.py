"""Which layer gets how many bits: the best split of a size budget, without data (the idea of ZeroQ, Cai et al. 2020).

How much a layer suffers at a width is measured on synthetic images, one layer at a time. If those errors add up, the
best assignment of widths is a knapsack, solved here exactly: states that are larger and worse than another are dropped,
and what remains is the whole Pareto front of size against expected error. Notebook 06 draws it.
"""
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .code_version import files_version
from .image_maker import make_images
from .image_start import suited
from .job import MAKERS, fingerprint, named_budget
from .layers import QuantConfig, convert, quant_layers, quantization_off
from .quantizer import dequantize, integer_range, qparams_from_range, quantize
from .ranges import search_ranges
from .resume import RunState
from .tasks import CLASSIFICATION, Task

WIDTHS = (2, 3, 4, 5, 6, 8)


def assign_bits(model: nn.Module, config: QuantConfig, image_shape: tuple[int, ...], size_budget: float, seed: int = 0,
                shared: Path | None = None, task: Task = CLASSIFICATION, *, progress: bool = False,
                reused: list[RunState] | None = None) -> dict[str, int]:
    """Weight bits by layer name for a budget, a share of the weights' size in 32-bit floats; from the model alone.

    shared: a folder for the images that the sensitivity is measured on, those of the budget "quick". reused: takes the
    state of those images, whose `reused_seconds` went into them before. Raises ValueError for a budget that is not in 0..1 or
    too small for two bits a weight.
    """
    check_size_budget(size_budget)
    teacher, student = convert(model, config, image_shape)
    settings, work = suited(teacher, image_shape, task, seed=seed), named_budget("quick", image_shape, task)
    run = RunState()
    if shared:
        decides = (files_version(MAKERS["images"]), list(image_shape), seed, task.name, work.images, work.image_iterations,
                   work.image_batch, settings)
        run = RunState(shared / f"sensitivity_{fingerprint(teacher, *decides)}")
    if reused is not None:
        reused.append(run)
    images, _ = make_images(teacher, work.images, image_shape, iterations=work.image_iterations, batch_size=work.image_batch,
                            seed=seed, progress=progress, run=run, task=task, settings=settings)
    counts = [layer.layer.weight.numel() for layer in quant_layers(student).values()]
    errors = sensitivity(teacher, student, images, task=task, batch_size=work.image_batch, progress=progress)
    front = pareto_front(errors, counts)
    return dict(zip(quant_layers(student), front.assignment(size_budget * 32 * sum(counts)), strict=True))


def check_size_budget(share: float) -> None:
    """Raises ValueError for what is no share of the float size."""
    if not 0 < share <= 1:
        raise ValueError(f"size_budget must be a share of the float size between 0 and 1, got {share}")


@torch.no_grad()
def sensitivity(teacher: nn.Module, student: nn.Module, images: Tensor, widths: tuple[int, ...] = WIDTHS,
                task: Task = CLASSIFICATION, *, batch_size: int | None = None, progress: bool = False) -> Tensor:
    """Error of the outputs [L, W] when one layer's weights alone have a width, for each layer of `student` and width.

    images: synthetic, [N, ...], batch_size at a time (None: all); activations stay in floats. The error is the task's, KL
    for a classifier, the mean over the batches.
    """
    layers, batches = quant_layers(student), images.split(batch_size or len(images))
    wanted = [teacher(batch) for batch in batches]
    errors = torch.zeros(len(layers), len(widths))
    bar = tqdm(layers.values(), "sensitivity of layers", disable=not progress, leave=False)
    with quantization_off(student):
        for row, layer in enumerate(bar):
            weight, quantizer = layer.layer.weight, layer.weight_quantizer
            exact = weight.clone()
            try:
                for column, bits in enumerate(widths):
                    weight.copy_(_rounded(exact, quantizer.axis, bits, quantizer.symmetric))
                    losses = [task.output_loss(student(batch), own) for batch, own in zip(batches, wanted, strict=True)]
                    errors[row, column] = torch.stack(losses).mean()
            finally:  # an interruption must not leave it rounded
                weight.copy_(exact)
    return errors


def _rounded(weight: Tensor, axis: int, bits: int, symmetric: bool) -> Tensor:
    """The weight as it would be stored at `bits` with its own best ranges."""
    rows = weight.transpose(0, axis).reshape(weight.shape[axis], -1)
    ranges = search_ranges(rows, bits, symmetric=symmetric)
    scale, zero_point = (q.unsqueeze(1) for q in qparams_from_range(*ranges, bits, symmetric=symmetric))
    stored = dequantize(quantize(rows, scale, zero_point, *integer_range(bits, symmetric=symmetric)), scale, zero_point)
    return stored.reshape(weight.transpose(0, axis).shape).transpose(0, axis)


@dataclass
class Front:
    """The Pareto front: sizes [S] in bits, rising, expected errors [S], falling, and how each point is reached."""

    sizes: Tensor
    errors: Tensor
    _steps: list[tuple[Tensor, Tensor]]  # of each layer: the point before, and the width chosen
    widths: tuple[int, ...]

    def assignment(self, budget_bits: float) -> list[int]:
        """Bits of each layer at the best point within the budget. Raises ValueError when even the smallest is larger."""
        fits = int((self.sizes <= budget_bits).sum())
        if fits == 0:
            raise ValueError(f"the smallest assignment needs {int(self.sizes[0]) / 8000:.1f} kB of weights, the budget "
                             f"allows {budget_bits / 8000:.1f} kB: raise the size budget")
        point, bits = fits - 1, []
        for before, width in reversed(self._steps):
            bits.append(self.widths[int(width[point])])
            point = int(before[point])
        return bits[::-1]


def pareto_front(errors: Tensor, counts: list[int], widths: tuple[int, ...] = WIDTHS) -> Front:
    """All assignments that no other beats in both size and summed error; exact.

    errors: [L, W]. counts: number of weights of each layer. A point of the front of the first l layers can only come from
    a point of the front of the first l - 1: a worse beginning cannot lead to a better end, because both sums only add.
    """
    sizes, totals = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.float64)
    steps = []
    for row, count in zip(errors.double(), counts, strict=True):
        sizes, totals, keep = add_layer(sizes, totals, count * torch.tensor(widths), row)
        steps.append((keep // len(widths), keep % len(widths)))
    return Front(sizes, totals, steps, tuple(widths))


def add_layer(sizes: Tensor, errors: Tensor, more_size: Tensor, more_error: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One step of the dynamic programme: the front [S] of some layers, and of those with one more of W choices.

    Returns sizes [T], rising, errors [T], falling, and where each comes from: point * W + choice.
    """
    grown = (sizes[:, None] + more_size).flatten()
    summed = (errors[:, None] + more_error).flatten()
    order = torch.argsort(summed, stable=True)
    order = order[torch.argsort(grown[order], stable=True)]  # by size, the better first among equals
    best = summed[order].cummin(0).values
    keep = order[torch.cat([torch.ones(1, dtype=torch.bool), best[1:] < best[:-1]])]
    return grown[keep], summed[keep], keep
