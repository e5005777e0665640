"""The generator: a small network from noise, and a label where it is conditional, to images of any size.

One network stands for endlessly many images. It grows a small map by doublings, as in DCGAN and the generators of ZAQ
(Liu et al. 2021) and ZS-CGAN (Choi et al. 2022), and ends in a BatchNorm that puts its pixels on the scale of normalised
images. Its BatchNorms always use the batch at hand, so that there is no training mode to forget. It is sized so that a
step costs less than a forward and backward pass of ResNet-20. Notebook 04 builds it.
"""
from math import ceil, log2

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .distributed import batch_norm, part

NOISE_SIZE, LABEL_SIZE = 64, 16
WIDTHS = (64, 32)  # channels before the last doubling and after it
CONDITIONS = ("embedding", "batchnorm")


class ConditionalBatchNorm(nn.Module):
    """BatchNorm of [N, C, H, W] whose scale and shift belong to the label: y = gamma[label] * norm(x) + beta[label].

    Keeps hundreds of classes apart where one embedded label among the noise would be washed out.
    """

    def __init__(self, channels: int, classes: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False, track_running_stats=False)
        self.gamma, self.beta = nn.Embedding(classes, channels), nn.Embedding(classes, channels)
        nn.init.normal_(self.gamma.weight, 1.0, 0.1)
        nn.init.normal_(self.beta.weight, 0.0, 0.1)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return batch_norm(x, self.norm) * self.gamma(labels)[..., None, None] + self.beta(labels)[..., None, None]


class Generator(nn.Module):
    """Noise [N, NOISE_SIZE] and labels int64 [N] (None where `classes` is None) to images [N, *image_shape].

    image_shape: (channels, height, width). classes: None for an unconditional generator. condition: where the label
    enters, as an embedding beside the noise, or also as the scale and shift of every BatchNorm ("batchnorm").
    Raises ValueError for shapes and conditions that it cannot make.
    """

    def __init__(self, image_shape: tuple[int, ...], classes: int | None = None, *, condition: str = "embedding",
                 widths: tuple[int, int] = WIDTHS):
        super().__init__()
        if len(image_shape) != 3 or min(image_shape[1:]) < 4:
            raise ValueError(f"a generator draws images (channels, height, width) of at least 4x4 pixels, got {image_shape}: "
                             "use recipe 'distilled', which takes inputs of any shape")
        if condition not in CONDITIONS:
            raise ValueError(f"unknown condition '{condition}': expected one of {', '.join(CONDITIONS)}")
        self.image_shape, self.classes = tuple(image_shape), classes
        doublings = max(1, min(5, int(log2(min(image_shape[1:]) / 4))))
        self.base = tuple(ceil(side / 2**doublings) for side in image_shape[1:])
        self.embedding = nn.Embedding(classes, LABEL_SIZE) if classes else None
        first, last = widths
        self.expand = nn.Linear(NOISE_SIZE + (LABEL_SIZE if classes else 0), first * self.base[0] * self.base[1])
        channels = [first] * doublings + [last]
        by_label = classes if condition == "batchnorm" else None
        self.norms = nn.ModuleList(_norm(c, by_label) for c in channels)
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1, bias=False)
                                          for a, b in zip(channels, channels[1:]))
        self.draw = nn.Conv2d(last, image_shape[0], 3, padding=1)
        self.pixels = nn.BatchNorm2d(image_shape[0], track_running_stats=False)
        self.to(memory_format=torch.channels_last)

    def forward(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        code = noise if self.embedding is None else torch.cat([noise, self.embedding(labels)], 1)
        x = self.expand(code).reshape(len(code), -1, *self.base).contiguous(memory_format=torch.channels_last)
        x = self._activate(x, 0, labels)
        for index, convolution in enumerate(self.convolutions, 1):
            x = convolution(F.interpolate(x, scale_factor=2, mode="nearest"))
            x = self._activate(x, index, labels)
        height, width = self.image_shape[1:]
        return batch_norm(self.draw(x)[:, :, :height, :width], self.pixels)

    def _activate(self, x: Tensor, index: int, labels: Tensor | None) -> Tensor:
        norm = self.norms[index]
        return F.leaky_relu(norm(x, labels) if isinstance(norm, ConditionalBatchNorm) else batch_norm(x, norm), 0.2)

    def sample(self, n: int, generator: torch.Generator, labels: Tensor | None = None, *,
               shared: bool = False) -> tuple[Tensor, Tensor | None]:
        """n images and their labels; labels default to all classes equally often, in random order.

        shared: draw only this process's part of the n (`distributed`).
        """
        device = self.draw.weight.device
        noise = torch.randn(n, NOISE_SIZE, generator=generator).to(device)
        if self.classes and labels is None:
            labels = deal_labels(n, self.classes, generator)
        labels = labels.to(device) if self.classes else None
        noise, labels = (part(noise), part(labels)) if shared else (noise, labels)
        return self(noise, labels), labels


def deal_labels(n: int, classes: int, generator: torch.Generator) -> Tensor:
    """int64 [n]: every class n // classes or one more times, which ones get more drawn anew, in random order."""
    deck = torch.cat([torch.randperm(classes, generator=generator) for _ in range(ceil(n / classes))])[:n]
    return deck[torch.randperm(n, generator=generator)]


def _norm(channels: int, classes: int | None) -> nn.Module:
    return ConditionalBatchNorm(channels, classes) if classes else nn.BatchNorm2d(channels, track_running_stats=False)
