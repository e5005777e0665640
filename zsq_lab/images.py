"""Images from statistics: noise is optimised until its BatchNorm statistics match the stored ones (ZeroQ, Cai et al.
2020), with a class loss so that each image also is something to the network (as in DeepInversion and GZNQ).

The model is fixed and the image is the parameter, in a basis where its frequencies weigh as in natural images: steps
then paint patches before grain. Notebook 03 builds this loop and looks at it while it runs.
"""
from collections.abc import Callable
from math import cos, pi

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .bn_stats import BatchNormStatistics, require_statistics
from .precision import economical
from .resume import RunState
from .tasks import CLASSIFICATION, Task

BETAS = (0.5, 0.99)  # Adam's: a short memory, because the shifts make every gradient point a little elsewhere
SHIFT = 2  # pixels by which the whole batch moves at random before each look; of large images a 16th of the side


def count_classes(model: nn.Module, image_shape: tuple[int, ...], task: Task = CLASSIFICATION) -> int | None:
    """Number of classes that the model's output knows by its task ([N, K] means K to a classifier); None for none."""
    with torch.no_grad():  # and not inference_mode: what the model keeps from this pass may meet gradients in the next
        output = model(torch.zeros(2, *image_shape, device=next(model.parameters()).device))
    return task.classes(output)


def require_gradient(distance: Tensor) -> None:
    """Raise ValueError where what a network's statistics say cannot reach the images that it was given."""
    if not distance.requires_grad:
        raise ValueError("no gradient comes back through the model: its forward uses torch.no_grad(), inference_mode or "
                         "detach(). Take that out, or use a recipe that makes no images, such as 'squant'")


@torch.inference_mode(False)  # gradients are needed here, whatever the caller has switched off
def optimise_images(teacher: nn.Module, n: int, image_shape: tuple[int, ...], *, iterations: int = 300,
                    batch_size: int = 256, learning_rate: float = 0.2, class_weight: float = 0.02,
                    statistics_weight: float = 1.0, amplitude: float = 1.0, correlation: float = 0.0,
                    labels: Tensor | None = None, begin: Tensor | None = None, seed: int = 0,
                    on_step: Callable[[int, Tensor, dict[str, float]], None] | None = None,
                    progress: bool = False, run: RunState | None = None, phase: str = "images",
                    task: Task = CLASSIFICATION) -> tuple[Tensor, Tensor | None]:
    """n images [n, *image_shape] in the model's own (normalised) scale, and the labels they were made for (or None).

    teacher: eval mode, any model with BatchNorm statistics, folded or not. labels: int64 [n]; None deals the classes out
    evenly. task: what it means that an image shows its class. amplitude: deviation of the noise at the start, 1 for inputs
    normalised to deviation 1. correlation: as `colour` takes it. begin: images [n, *image_shape] to go on from instead of
    noise. phase: the name that this work's state has in `run`.
    on_step(iteration, images, {"statistics", "class"}) is called after each iteration.
    Raises ValueError for a model without statistics or gradients, RuntimeError when the optimisation diverges.
    """
    require_statistics(teacher, "making images")
    device = next(teacher.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    classes = count_classes(teacher, image_shape, task)
    if classes and labels is None:
        labels = torch.arange(n) % classes
        labels = labels[torch.randperm(n, generator=generator)]
    run = run or RunState()
    state = run.load(phase) or {"made": [], "iteration": 0}
    made, first = [images.to(device) for images in state["made"]], state["iteration"]
    batches = [range(start, min(start + batch_size, n)) for start in range(0, n, batch_size)]
    bar = tqdm(total=iterations * len(batches), initial=iterations * len(made) + first, desc=phase,
               disable=not progress, leave=False)
    with BatchNormStatistics(teacher) as statistics, bar, economical(teacher, image_shape, min(n, batch_size)):
        for batch in batches[len(made):]:
            if begin is None:
                white, base = amplitude * torch.randn(len(batch), *image_shape, generator=generator).to(device), 0.0
            else:
                base = begin[batch.start:batch.stop].to(device)
                white = torch.zeros_like(base)
            white.requires_grad_(True)
            wanted = labels[batch.start:batch.stop].to(device) if labels is not None else None
            optimizer = torch.optim.Adam([white], lr=learning_rate, betas=BETAS)
            if first:  # the middle of a batch
                white.data.copy_(state["white"])
                optimizer.load_state_dict(state["optimizer"])
                generator.set_state(state["generator"])
            for iteration in range(first, iterations):
                optimizer.param_groups[0]["lr"] = learning_rate * 0.5 * (1 + cos(pi * iteration / iterations))
                output = teacher(_jitter(base + colour(white, correlation), generator))
                distance = statistics.loss()
                require_gradient(distance)
                class_loss = task.label_loss(output, wanted) if wanted is not None else distance.new_zeros(())
                loss = statistics_weight * distance + class_weight * class_loss
                if not torch.isfinite(loss):
                    raise RuntimeError(f"making images diverged at iteration {iteration}: lower the learning rate "
                                       f"({learning_rate}) or the class weight ({class_weight}), or use a recipe that makes "
                                       "no images, such as 'squant'")
                white.grad, = torch.autograd.grad(loss, white)
                optimizer.step()
                bar.update()
                run.save(phase, lambda: {"made": made, "white": white.detach(), "optimizer": optimizer.state_dict(),
                                         "generator": generator.get_state(), "iteration": iteration + 1})
                if on_step:
                    losses = {"statistics": distance.item(), "class": class_loss.item()}
                    on_step(iteration, base + colour(white.detach(), correlation), losses)
            made.append(base + colour(white.detach(), correlation))
            first = 0
    run.save(phase, lambda: {"made": made, "iteration": 0}, now=True)
    return torch.cat(made), labels


def colour(white: Tensor, correlation: float = 0.0, slope: float = 1.0) -> Tensor:
    """White noise [N, C, *spatial] to noise whose amplitude falls as 1 / frequency, as in natural images; same deviation.

    correlation: of any two channels, from 0 (each for itself) up to, but not including, 1 (grey). slope: of the amplitude over
    the frequency on logarithmic axes.
    Linear and smooth to differentiate. Inputs without positions ([N, C]) stay as they are.
    """
    spatial = white.shape[2:]
    if not spatial:
        return white
    dims = tuple(range(2, white.ndim))
    axes = torch.meshgrid(*(torch.fft.fftfreq(size, device=white.device) for size in spatial), indexing="ij")
    frequency = torch.stack(axes).square().sum(0).sqrt().clamp(min=1 / max(spatial))
    amplitude = frequency ** -slope
    amplitude = (amplitude / amplitude.square().mean().sqrt())[..., : spatial[-1] // 2 + 1]
    images = _alike(torch.fft.irfftn(torch.fft.rfftn(white, dim=dims) * amplitude, s=spatial, dim=dims), correlation)
    return images.contiguous(memory_format=torch.channels_last) if images.ndim == 4 else images


def _alike(images: Tensor, correlation: float) -> Tensor:
    """Independent channels mixed by the symmetric root of their correlation matrix, which has two different eigenvalues."""
    if not correlation:
        return images
    channels, apart = images.shape[1], (1 - correlation) ** 0.5
    common = (1 + (channels - 1) * correlation) ** 0.5
    return apart * images + (common - apart) * images.mean(1, keepdim=True)


def _jitter(images: Tensor, generator: torch.Generator) -> Tensor:
    """The batch shifted by a few pixels (around the edge) and flipped half of the time: no pixel is special."""
    if images.ndim != 4:
        return images
    most = max(SHIFT, min(images.shape[2:]) // 16)
    down, right = torch.randint(-most, most + 1, (2,), generator=generator).tolist()
    shifted = torch.roll(images, (down, right), (2, 3))
    return shifted.flip(3) if torch.rand((), generator=generator) < 0.5 else shifted
