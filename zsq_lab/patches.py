"""Batches in which half of the images hold a patch of another one (CutMix, Yun et al. 2019).

There the label is mixed by area; here there is none, the teacher answers to whatever it sees. A few hundred synthetic images
become as many pairs of them, cut anywhere: variety is what they lack, for students that start far from their teacher most of
all (notebook 05).
"""
import torch
from torch import Tensor

from .distill import Sampler

SHARE = 0.5  # of the images of a batch
SMALLEST, LARGEST = 3 / 16, 5 / 8  # of the image's side: half of a patch's height or width, which end at the border


def patched(sampler: Sampler) -> Sampler:
    """The sampler's batches [N, C, *spatial] with patches; what has no positions stays as it is."""
    def draw(generator: torch.Generator) -> Tensor:
        return with_patches(sampler(generator), generator)
    return draw


def with_patches(batch: Tensor, generator: torch.Generator) -> Tensor:
    """The first SHARE of a batch [N, C, *spatial] with a rectangle of some image of the batch in each, at the same place."""
    n, spatial = int(SHARE * len(batch)), batch.shape[2:]
    if not spatial:
        return batch
    others = batch[torch.randperm(len(batch), generator=generator)[:n].to(batch.device)]
    inside = torch.ones(n, *[1] * (batch.ndim - 1), dtype=torch.bool)
    for dim, side in enumerate(spatial):
        middle = torch.randint(side, (n, 1), generator=generator)
        half = torch.randint(int(SMALLEST * side), int(LARGEST * side) + 1, (n, 1), generator=generator)
        along = (torch.arange(side) - middle).abs() < half
        inside = inside & along.reshape(n, 1, *[side if d == dim else 1 for d in range(len(spatial))])
    mixed = torch.cat([torch.where(inside.to(batch.device), others, batch[:n]), batch[n:]])
    return mixed.contiguous(memory_format=torch.channels_last) if mixed.ndim == 4 else mixed
