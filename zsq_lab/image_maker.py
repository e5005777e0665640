"""Images for any network: begun as its first BatchNorm suggests (`image_start`), large ones at a smaller side first.

A convolution does not mind the side of an image, and what an image shows is decided at its coarse scale, where an iteration
costs half. So large images get twice the iterations for the same time, and only the last of them paint what is fine.
"""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .image_start import suited
from .images import optimise_images
from .memory import is_large
from .resume import RunState
from .tasks import CLASSIFICATION, Task

SMALL, MULTIPLE = 5 / 7, 32  # of the side (224: 160), in whole multiples: strides halve most networks' images five times
LATE_RATE = 0.5  # of the learning rate, once the images have their full size


def make_images(teacher: nn.Module, n: int, image_shape: tuple[int, ...], *, iterations: int, batch_size: int, seed: int = 0,
                task: Task = CLASSIFICATION, progress: bool = False, run: RunState | None = None, settings: dict | None = None,
                **changes) -> tuple[Tensor, Tensor | None]:
    """n images [n, *image_shape] in the model's own scale and their labels, with the settings that suit the network.

    iterations: on each batch, counted as if all were at full size. settings: what `suited` says, from a caller who has asked
    it already, to name a kept state by it. changes: settings of `optimise_images` that differ.
    Raises as `optimise_images` does.
    """
    settings = (settings or suited(teacher, image_shape, task, seed=seed)) | changes
    common = {"batch_size": batch_size, "seed": seed, "task": task, "progress": progress, "run": run}
    small = smaller(teacher, image_shape, task)
    if small is None:
        return optimise_images(teacher, n, image_shape, iterations=iterations, **common, **settings)
    late = iterations // 2  # the other half is worth as many again at the small side
    images, labels = optimise_images(teacher, n, small, iterations=2 * (iterations - late), phase="small_images", **common,
                                     **settings)
    begin = F.interpolate(images, size=tuple(image_shape[1:]), mode="bicubic", align_corners=False)
    settings |= {"labels": labels, "learning_rate": LATE_RATE * settings["learning_rate"]}
    return optimise_images(teacher, n, image_shape, iterations=late, begin=begin, **common, **settings)


def smaller(teacher: nn.Module, image_shape: tuple[int, ...], task: Task = CLASSIFICATION) -> tuple[int, ...] | None:
    """The shape at which large images begin; None where images are not large, or the network takes no other size."""
    if task is not CLASSIFICATION or not is_large(image_shape):
        return None
    shape = (image_shape[0], *(int(side * SMALL) // MULTIPLE * MULTIPLE for side in image_shape[1:]))
    try:
        with torch.no_grad():
            teacher(torch.zeros(2, *shape, device=next(teacher.parameters()).device))
    except Exception:  # a linear layer that counts positions raises RuntimeError, timm AssertionError: there is no one kind
        return None
    return shape
