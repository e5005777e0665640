"""Recipes that make images, or a generator of images, and learn from them; each is a few calls of the files that do it.

The faithful modes hold a paper's ingredients and nothing else; what the lab's own modes change is said beside them and
measured in notebooks 04 and 05.
"""
from functools import partial

import torch
from torch import Tensor

from . import adversary, zscgan
from .blocks import find_blocks, required_blocks
from .distill import (
    FAR,
    Sampler,
    dense_layers,
    feature_error,
    finetune,
    knowledge_loss,
    stage_layers,
    suited_loss,
    suited_rate,
)
from .equalized_start import equalize_where_it_serves
from .generators import WIDTHS, Generator
from .gznq import prior_images
from .image_maker import make_images
from .image_start import suited
from .images import count_classes
from .job import Job, learning_rate, pool_sampler
from .joint_rounding import exact_weights, round_together
from .memory import is_large
from .patches import patched
from .reconstruct import SCALE_RATE, reconstruct

SCENE_WIDTHS = (32, 16)  # of a generator: a scene has so many pixels that more channels would cost more than the network
MANY_CLASSES = 100  # from here on the label also conditions the generator's BatchNorms
ROUNDED_STEPS = 500  # or more: where the student starts FAR, roundings are learned on scenes; fewer steps serve weights better
BLOCK_SHARE, JOINT_SHARE = 3, 2  # a third of the steps for each block, half of them for all; more learn by heart
SCENE_SCALE_RATES = 10.0, 1.0  # of the scales there, for a block and for all; photographs: `data/results/imagenet.md`
PATCHED_STEPS = 2000  # or more: any student learns the images by heart in the end, one that starts FAR from its teacher sooner


def zeroq(job: Job) -> None:
    """Ranges from optimised images (Cai et al. 2020); of large ones no more are made than ranges are observed on."""
    job.fit(_optimised(job, min(job.range_images, job.budget.images) if job.large else None))


def distilled(job: Job) -> None:
    """Optimised images, then fine-tuning against the teacher."""
    _finetune_on(job, _optimised(job))


def best(job: Job) -> None:
    """Optimised images, equalized weights, then fine-tuning that compares at every layer. Where the student starts far from
    its teacher: outputs twice (`thorough_loss`), in longer steps, and on images with patches of others, as in long runs.

    Large images: roundings are learned block by block, then all at once; of scenes where it starts far and steps are many.
    """
    _best_on(job, _optimised(job))


def real_finetune(job: Job) -> None:
    """Reference: what `best` does, on real images. The difference of the two is what images made from statistics lack."""
    _best_on(job, job.images)


def reconstructed(job: Job) -> None:
    """Optimised images, then reconstruction block by block (BRECQ, Li et al. 2021)."""
    _reconstruct_on(job, _optimised(job))


def gznq(job: Job) -> None:
    """Ranges from images per category under a network's prior (He et al. 2021): a calibration set, as in the paper."""
    job.fit(_prior(job))


def gznq_finetuned(job: Job) -> None:
    """The same images, then fine-tuning."""
    _finetune_on(job, _prior(job))


def zs_cgan(job: Job) -> None:
    """A conditional generator trained the lab's way, then fine-tuning on its endless samples, compared at every layer."""
    _finetune_from(job, _trained_generator(job, zscgan.LAB), dense_layers)


def zs_cgan_paper(job: Job) -> None:
    """The same with the paper's two loss terms, plain Adam (Choi et al. 2022)."""
    _finetune_from(job, _trained_generator(job, zscgan.PAPER))


def zaq(job: Job) -> None:
    """The adversarial game the lab's way: a warm conditional generator, bounded gains, statistics kept, and a student that
    is compared at every layer."""
    _play(job, _trained_generator(job, zscgan.LAB), adversary.LAB, dense_layers)


def zaq_paper(job: Job) -> None:
    """The game of the paper (Liu et al. 2021): a cold unconditional generator, the two discrepancies, the activation term."""
    _play(job, _fresh_generator(job, conditional=False), adversary.PAPER)


def _optimised(job: Job, n: int | None = None) -> Tensor:
    n, settings = n or job.budget.images, suited(job.teacher, job.image_shape, job.task, seed=job.seed)
    run = job.shared("images", n, job.budget.image_iterations, job.budget.image_batch, settings)
    images, _ = make_images(job.teacher, n, job.image_shape, iterations=job.budget.image_iterations,
                            batch_size=job.budget.image_batch, seed=job.seed, progress=job.progress, run=run, task=job.task,
                            settings=settings)
    job.notes |= {"images": len(images), "image_iterations": job.budget.image_iterations}
    return images


def _prior(job: Job) -> Tensor:
    run = job.shared("prior", job.budget.images, job.budget.image_iterations, job.budget.image_batch)
    images, _ = prior_images(job.teacher, job.budget.images, job.image_shape, batch_size=job.budget.image_batch,
                             iterations=job.budget.image_iterations, seed=job.seed, progress=job.progress, run=run,
                             task=job.task)
    job.notes |= {"images": len(images), "image_iterations": job.budget.image_iterations}
    return images


def _fresh_generator(job: Job, *, conditional: bool) -> Generator:
    classes = count_classes(job.teacher, job.image_shape, job.task) if conditional else None
    with torch.random.fork_rng():
        torch.manual_seed(job.seed)
        generator = Generator(job.image_shape, classes, widths=WIDTHS if job.task.per_image == 1 else SCENE_WIDTHS,
                              condition="batchnorm" if (classes or 0) >= MANY_CLASSES else "embedding")
    return generator.to(next(job.teacher.parameters()).device)


def _trained_generator(job: Job, settings: zscgan.Settings) -> Generator:
    generator = _fresh_generator(job, conditional=True)
    run = job.shared("generator", settings.decides(), job.budget.generator_iterations, job.budget.image_batch)
    zscgan.train_generator(generator, job.teacher, iterations=job.budget.generator_iterations, settings=settings,
                           batch_size=job.budget.image_batch, seed=job.seed, progress=job.progress, run=run, task=job.task)
    job.notes["generator_iterations"] = job.budget.generator_iterations
    return generator


@torch.no_grad()
def _samples(generator: Generator, job: Job) -> Tensor:
    n, size, random = job.range_images, job.calibration_batch, torch.Generator().manual_seed(job.seed)
    return torch.cat([generator.sample(min(size, n - start), random)[0] for start in range(0, n, size)])


def _finetune_on(job: Job, images: Tensor) -> None:
    job.fit(images[:job.range_images])
    _finetune(job, pool_sampler(images, job.budget.batch_size))


def _best_on(job: Job, images: Tensor) -> None:
    equalize_where_it_serves(job, images)
    job.fit(images[:job.range_images])
    draw, steps = pool_sampler(images, job.budget.batch_size), job.budget.finetune_iterations
    if job.large:
        _round(job, images, required_blocks(job.student, job.image_shape), draw, (steps, job.budget.joint_iterations))
        return
    begun = _begun(job, images[:job.budget.batch_size])
    if begun >= FAR or steps >= PATCHED_STEPS:
        draw = patched(draw)
    if begun >= FAR and is_large(job.image_shape) and steps >= ROUNDED_STEPS:
        blocks = find_blocks(job.student, job.image_shape)
        _round(job, images, blocks, draw, (steps // BLOCK_SHARE, steps // JOINT_SHARE), dense_layers, suited_loss(begun),
               SCENE_SCALE_RATES)
    else:
        _finetune(job, draw, dense_layers, suited_loss(begun), suited_rate(begun))


def _reconstruct_on(job: Job, images: Tensor) -> None:
    job.fit(images[:job.range_images])
    blocks = required_blocks(job.student, job.image_shape)
    _round(job, images, blocks, pool_sampler(images, job.budget.batch_size), (job.budget.finetune_iterations, 0))


def _round(job: Job, images: Tensor, blocks: list[str], draw: Sampler, steps: tuple[int, int], find=stage_layers,
           loss=knowledge_loss, scale_rates: tuple[float, float] = (SCALE_RATE, SCALE_RATE)) -> None:
    """Learn the roundings of a student whose ranges are set: so many steps of each block, so many of all together."""
    exact, common = exact_weights(job.student), {"seed": job.seed, "progress": job.progress, "run": job.run}
    reconstruct(job.student, job.teacher, images, blocks, iterations=steps[0], scale_rate=scale_rates[0],
                batch_size=job.budget.batch_size, **common)
    job.notes |= {"finetune_iterations": steps[0], "batch_size": job.budget.batch_size}
    if steps[1]:
        round_together(job.student, job.teacher, exact, draw, job.compared(find), iterations=steps[1],
                       loss=partial(loss, task=job.task), scale_rate=scale_rates[1], **common)
        job.notes["joint_iterations"] = steps[1]


def _begun(job: Job, images: Tensor) -> float:
    """How far the student is from its teacher on these images before the first step."""
    begun = feature_error(job.student, job.teacher, images, job.compared(dense_layers))
    job.notes["feature_error"] = round(begun, 3)
    return begun


def _finetune_from(job: Job, generator: Generator, find=stage_layers) -> None:
    job.fit(_samples(generator, job))

    @torch.no_grad()
    def fresh(random: torch.Generator) -> Tensor:
        return generator.sample(job.budget.batch_size, random)[0]
    _finetune(job, fresh, find)


def _finetune(job: Job, sampler: Sampler, find=stage_layers, loss=knowledge_loss, rate: float | None = None) -> None:
    finetune(job.student, job.teacher, sampler, job.compared(find), seed=job.seed,
             iterations=job.budget.finetune_iterations, learning_rate=rate or learning_rate(job.config),
             progress=job.progress, run=job.run, loss=partial(loss, task=job.task))
    job.notes |= {"finetune_iterations": job.budget.finetune_iterations, "batch_size": job.budget.batch_size}


def _play(job: Job, generator: Generator, rules: adversary.Rules, find=stage_layers) -> None:
    job.fit(_samples(generator, job))
    adversary.play(generator, job.student, job.teacher, job.compared(), rules=rules,
                   iterations=job.budget.finetune_iterations, learning_rate=learning_rate(job.config),
                   batch_size=job.budget.batch_size, seed=job.seed, progress=job.progress, run=job.run, task=job.task,
                   learned=job.compared(find))
    job.notes |= {"finetune_iterations": job.budget.finetune_iterations, "batch_size": job.budget.batch_size}
