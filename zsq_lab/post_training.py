"""Recipes that make no image: ranges from noise, from BatchNorm's memory, or (for reference) from real images.

All take seconds. Notebook 02 goes through them and shows at which width they break.
"""
from .bn_stats import remembered_activations, require_statistics
from .equalize import absorb_biases, correct_biases, equalize
from .graph import trace
from .job import Job
from .layers import quantize_model
from .rounding import squant as round_in_closed_form


def rtn_noise(job: Job) -> None:
    """Round to nearest; ranges from noise: the floor for everything else."""
    job.fit(job.noise(job.range_images))


def rtn_bn(job: Job) -> None:
    """Round to nearest; ranges from what BatchNorm remembers."""
    require_statistics(job.student, "recipe 'rtn-bn'")
    with remembered_activations(job.student, job.seed):
        job.fit(job.noise(job.statistics_images))


def dfq(job: Job) -> None:
    """Data-free quantization (Nagel et al. 2019): equalization, bias absorption, bias correction."""
    if job.config.convention != "deployable":
        raise ValueError("recipe 'dfq' moves scales between folded layers: use convention 'deployable'")
    require_statistics(job.student, "recipe 'dfq'")
    equal = absorb_biases(equalize(job.teacher, job.image_shape), job.image_shape)
    job.student = quantize_model(equal, job.config, trace(equal, job.image_shape))
    rtn_bn(job)
    correct_biases(job.student, job.image_shape, seed=job.seed)


def squant(job: Job) -> None:
    """Closed-form rounding (Guo et al. 2022) on the ranges of `rtn_bn`."""
    rtn_bn(job)
    round_in_closed_form(job.student)


def real_ranges(job: Job) -> None:
    """Reference: ranges from real images."""
    job.fit(job.images[:job.range_images])
