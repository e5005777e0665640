"""`setup()`: everything a notebook starts from, in one call.

The profile decides data and network. Real images are there to measure accuracy and for reference rows. Notebook 00.
"""
import os
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .checkpoints import full_name, load_model
from .data import Dataset, Split, find_dataset
from .evaluate import accuracy

NOTEBOOK_IMAGES = 2000  # test images of a notebook's quick measurement; the recorded results use all of them


@dataclass
class Lab:
    """Data, network and test images of a profile. Measures on the first `NOTEBOOK_IMAGES` test images unless told."""

    profile: str
    dataset: Dataset
    model: nn.Module
    facts: dict
    seed: int
    device: torch.device

    @property
    def image_shape(self) -> tuple[int, ...]:
        return self.dataset.image_shape

    def load(self, name: str) -> nn.Module:
        """Another network, by its name: `mobilenetv2` or `cifar10/mobilenetv2`."""
        return load_model(full_name(name, self.profile))[0].to(self.device)

    def accuracy(self, model: nn.Module, limit: int | None = NOTEBOOK_IMAGES) -> float:
        """Top-1 in percent on the first `limit` test images; None for all of them."""
        return accuracy(model, self.dataset.test(), self.dataset, limit=limit)

    def test_batch(self, n: int = 256) -> tuple[Tensor, Tensor]:
        """The first n test images as the model takes them (float [n, 3, 32, 32]) with their labels."""
        test = self.dataset.test()
        return self.dataset.normalise(test.images[:n]).to(self.device), test.labels[:n]

    def real_images(self, n: int = 512) -> Tensor:
        """n training images as the model takes them: for reference rows only, never for a recipe without data."""
        return real_images(self.dataset.train(), self.dataset, n, self.seed).to(self.device)


def real_images(train: Split, dataset: Dataset, n: int, seed: int) -> Tensor:
    """n training images, drawn with the seed, as the model takes them."""
    chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:n]
    return dataset.normalise(train.images[chosen])


def setup(profile: str | None = None, seed: int = 0, model: str = "resnet20") -> Lab:
    """Data and network of a profile (`cifar10`, `embedded`, or None for the first that is there).

    $ZSQ_PROFILE decides where `profile` is None. Nothing is downloaded.
    """
    dataset = find_dataset(profile or os.environ.get("ZSQ_PROFILE") or None)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network, facts = load_model(full_name(model, dataset.name))
    return Lab(dataset.name, dataset, network.to(device), facts, seed, device)
