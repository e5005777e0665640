"""How images begin: with the contrast and the colours that the network's first BatchNorm remembers.

A network's inputs may deviate by 1 or by a fifth of that, as its makers normalised them; the channels of photographs are
almost one, those of other data need not be. The first layer still knows both: of all noise that goes through it, that which is
like its inputs comes nearest to what its BatchNorm remembers. Notebook 03.
"""
from math import prod

import torch
from torch import nn

from .blocks import block_inputs
from .bn_stats import BatchNormStatistics, batch_statistics, layer_distance, require_statistics, stored_statistics
from .images import colour
from .memory import is_large
from .tasks import CLASSIFICATION, Task

AMPLITUDES = tuple(2.0 ** (step / 2) for step in range(-6, 3))  # 1/8 to 2
CORRELATIONS = (0.0, 0.3, 0.6, 0.75, 0.85, 0.9, 0.95)
PIXELS = 8 * 224 * 224  # that are looked at, in at most MOST images
MOST = 128
RATE = 0.2  # times the amplitude
# Where there is time for few iterations (large images, scenes among them): from a share of the contrast, each adding some. Large
# photographs are smoother than 1 / frequency (1.4, measured). With more weight on the class a classifier is surer than of
# photographs; a scene shows its class in few positions, and needs all of it.
LARGE_CONTRAST, LARGE_RATE, LARGE_CLASS_WEIGHT, LARGE_SLOPE = 0.28, 0.25, 0.003, 1.25


@torch.no_grad()
def natural_noise(teacher: nn.Module, image_shape: tuple[int, ...], *, seed: int = 0,
                  slope: float = 1.0) -> tuple[float, float]:
    """Amplitude, of AMPLITUDES, and correlation of the channels at which coloured noise comes nearest to the first memory.

    slope: of the noise, as `images.colour` takes it. Raises ValueError for a model without BatchNorm statistics.
    """
    require_statistics(teacher, "making images")
    device, generator = next(teacher.parameters()).device, torch.Generator().manual_seed(seed)
    samples = max(2, min(MOST, PIXELS // prod(image_shape[1:])))
    white = torch.randn(samples, *image_shape, generator=generator).to(device)
    with BatchNormStatistics(teacher) as statistics:
        teacher(white[:2])
        first = next(iter(statistics.distances()))
    stored = stored_statistics(teacher.get_submodule(first))
    distances = {}
    for correlation in CORRELATIONS if len(image_shape) > 1 and image_shape[0] > 1 else (0.0,):
        noise = colour(white, correlation, slope)
        for amplitude in AMPLITUDES:
            seen = batch_statistics(block_inputs(teacher, first, amplitude * noise))
            distances[amplitude, correlation] = layer_distance(*seen, *stored).item()
    return min(distances, key=distances.get)


def suited(teacher: nn.Module, image_shape: tuple[int, ...], task: Task = CLASSIFICATION, *, seed: int = 0) -> dict[str, float]:
    """The settings of `images.optimise_images` that suit a network, its task and the size of its images."""
    if not is_large(image_shape):
        amplitude, correlation = natural_noise(teacher, image_shape, seed=seed)
        return {"amplitude": amplitude, "learning_rate": RATE * amplitude, "correlation": correlation}
    amplitude, correlation = natural_noise(teacher, image_shape, seed=seed, slope=LARGE_SLOPE)
    amplitude *= LARGE_CONTRAST
    settings = {"amplitude": amplitude, "learning_rate": LARGE_RATE * amplitude, "correlation": correlation}
    return settings | ({"class_weight": LARGE_CLASS_WEIGHT} if task is CLASSIFICATION else {})
