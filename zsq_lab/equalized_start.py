"""Whether `best` starts from cross-layer-equalized weights (`equalize`): tried, measured, taken back where it does not serve.

Equal channels need fewer levels. But ReLU6 has made MobileNetV2's channels alike already, and one range for all of them then
serves unequal ones worse: what it costs is seen before anything is learned.
"""
import copy

import torch
from torch import Tensor

from .blocks import required_blocks
from .distill import Features, dense_layers
from .equalize import equalize
from .graph import trace
from .job import Job
from .layers import quantize_model
from .starts import starting_error
from .tasks import relative_error

MAY_COST = 1.05  # of the error before: equal at the start ended better (ResNet-20, W2A2, seed 0: 14.2, not 18.8 points)
FEW = 8  # large images that decide


def equalize_where_it_serves(job: Job, images: Tensor) -> None:
    """Go on with both networks of the job as equalization leaves them: the same outputs, other weights.

    Taken back where the error at the start grows: by over 5 % in small networks, whose weights all move later; at all in large
    ones, whose blocks only choose roundings. Only `deployable`: scales move between layers whose BatchNorms are folded.
    """
    if job.config.convention != "deployable":
        return
    plain, error, may_cost = (job.teacher, job.student), *((_blocks_error, 1.0) if job.large else (_layers_error, MAY_COST))
    before = error(job, images)
    job.teacher = equalize(job.teacher, job.image_shape)
    job.student = copy.deepcopy(job.teacher)
    quantize_model(job.student, job.config, trace(job.student, job.image_shape))
    job.notes["equalized"] = error(job, images) <= may_cost * before
    if not job.notes["equalized"]:
        job.teacher, job.student = plain


@torch.no_grad()
def _layers_error(job: Job, images: Tensor) -> float:
    """Mean relative error of all layers' inputs on the first images, ranges fitted to them and nothing learned."""
    images, names = images[:job.calibration_batch], job.compared(dense_layers)
    job.fit(images)
    with Features(job.student, names) as own, Features(job.teacher, names) as wanted:
        job.student(images)
        job.teacher(images)
        return torch.stack([relative_error(own.values[name], wanted.values[name]) for name in names]).mean().item()


def _blocks_error(job: Job, images: Tensor) -> float:
    """Mean error of the blocks on a few images, each for itself and rounded in closed form."""
    images = images[:FEW]
    job.fit(images)
    return starting_error(job.student, job.teacher, images, required_blocks(job.student, job.image_shape))
