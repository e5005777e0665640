"""Top-1, top-5 and agreement on ImageNet images as they stream by, several networks in one pass, with intervals.

Where no image is at hand, agreement with the full-precision network on synthetic images that no recipe has seen:
another number, and named as that. Evaluating reads and never writes: no range, no statistic, no mode changes.
"""
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .graph import evaluating
from .image_folder import ImageFolder, Preprocess
from .input_hooks import any_layout
from .layers import QuantLayer, quant_layers
from .memory import keep_freed_memory

BATCH = 8  # of 224x224 images: activations stay near the caches, and no core waits for the next image
Z95 = 1.959964  # standard normal quantile of a two-sided 95 % interval


@dataclass(frozen=True)
class Share:
    """A share of n images in percent, with its 95 % interval (Wilson 1927)."""

    hits: int
    n: int

    @property
    def percent(self) -> float:
        return 100 * self.hits / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """Low and high end in percent."""
        p, z2 = self.hits / self.n, Z95 * Z95
        middle = (p + z2 / (2 * self.n)) / (1 + z2 / self.n)
        half = Z95 / (1 + z2 / self.n) * math.sqrt(p * (1 - p) / self.n + z2 / (4 * self.n * self.n))
        return 100 * (middle - half), 100 * (middle + half)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.percent:.2f} % ({low:.1f} to {high:.1f})"


@dataclass
class Answers:
    """What one network said: the five likeliest classes int64 [N, 5] of each image, and the labels int64 [N]."""

    top: Tensor
    labels: Tensor

    @property
    def top1(self) -> Share:
        return Share(int((self.top[:, 0] == self.labels).sum()), len(self.labels))

    @property
    def top5(self) -> Share:
        return Share(int((self.top == self.labels[:, None]).any(1).sum()), len(self.labels))

    def agreement(self, other: "Answers") -> Share:
        """On how many images both say the same, right or wrong."""
        return Share(int((self.top[:, 0] == other.top[:, 0]).sum()), len(self.labels))

    def drop(self, full: "Answers") -> tuple[float, float]:
        """Points of top-1 lost against `full`, and half of the 95 % interval of that difference.

        The same images answer twice, so only those count on which the two differ: with b lost and c won of n, the
        difference (b - c) / n has variance (b + c - (b - c)^2 / n) / n^2.
        """
        before, after = full.top[:, 0] == full.labels, self.top[:, 0] == self.labels
        lost, won, n = int((before & ~after).sum()), int((after & ~before).sum()), len(before)
        return 100 * (lost - won) / n, 100 * Z95 * math.sqrt(max(0.0, lost + won - (lost - won) ** 2 / n)) / n


def evaluate(models: dict[str, nn.Module], folder: ImageFolder, preprocess: Preprocess, *, workers: int | None = None,
             progress: bool = False) -> dict[str, Answers]:
    """What each network says of every readable image, in one pass over the folder; `folder.unreadable` names the others.

    workers: processes that decode, see `ImageFolder.batches`. Raises DataError for a folder with too many damaged files
    and ValueError for a network that does not take images of this size.
    """
    top: dict[str, list[Tensor]] = {name: [] for name in models}
    labels = []
    bar = tqdm(total=len(folder), desc="evaluating", unit=" images", disable=not progress, leave=False)
    say = {name: any_layout(model) for name, model in models.items()}
    with bar, _ready(models.values()):
        for pixels, wanted in folder.batches(preprocess, BATCH, workers):
            images = normalise(torch.from_numpy(pixels), preprocess)
            for name, model in models.items():
                top[name].append(_top5(say[name], images))
            labels.append(torch.from_numpy(wanted))
            bar.update(len(wanted))
    if not labels:
        raise ValueError(f"no image of {folder.folder} could be read")
    return {name: Answers(torch.cat(top[name]), torch.cat(labels)) for name in models}


def synthetic_agreement(model: nn.Module, full: nn.Module, images: Tensor) -> Share:
    """On how many synthetic images [N, ...] (held out: made with another seed than any the recipe saw) both say the same."""
    same, own, wanted = 0, any_layout(model), any_layout(full)
    with _ready([model, full]):
        for batch in images.split(BATCH):
            same += int((_top5(own, batch)[:, 0] == _top5(wanted, batch)[:, 0]).sum())
    return Share(same, len(images))


def normalise(pixels: Tensor, preprocess: Preprocess) -> Tensor:
    """uint8 [N, H, W, 3] to what the network takes, float32 [N, 3, H, W], channels last."""
    mean, std = torch.tensor(preprocess.mean), torch.tensor(preprocess.std)
    return ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2)


def denormalise(images: Tensor, preprocess: Preprocess) -> Tensor:
    """For display: float [N, 3, H, W] as the network takes it to 0..1, cut off at both ends."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preprocess.mean, preprocess.std))
    return (images * std + mean).clamp(0, 1)


@torch.no_grad()  # and not inference_mode: what a model keeps from this pass may meet gradients in the next
def _top5(say: Callable[[Tensor], object], images: Tensor) -> Tensor:
    """The five likeliest classes [N, 5], best first. Raises ValueError, with the shapes, where the network refuses."""
    try:
        logits = say(images)
        return logits.topk(5).indices.cpu()
    except (RuntimeError, AttributeError) as error:
        raise ValueError(f"the network does not take images {tuple(images.shape[1:])} or does not give at least 5 "
                         f"logits for each: {str(error).splitlines()[0]}. It needs 3 channels (RGB) and the size it "
                         "was made for; set another with a Preprocess of its own") from error


@contextmanager
def _ready(models: Iterable[nn.Module]) -> Iterator[None]:
    """Inside the block the networks are in eval mode and the weights of quantized layers are rounded once, not per batch."""
    models = list(models)
    keep_freed_memory()
    layers = [layer for model in models for layer in quant_layers(model).values()]
    exact = [(layer.layer.weight, layer.weight_quantizer.enabled) for layer in layers]
    with ExitStack() as modes:
        for model in models:
            modes.enter_context(evaluating(model))
        try:
            for layer in layers:
                _use_rounded(layer)
            yield
        finally:
            for layer, (weight, enabled) in zip(layers, exact, strict=True):
                layer.layer.weight, layer.weight_quantizer.enabled = weight, enabled


@torch.no_grad()
def _use_rounded(layer: QuantLayer) -> None:
    layer.layer.weight = nn.Parameter(layer.weight_quantizer(layer.layer.weight), requires_grad=False)
    layer.weight_quantizer.enabled = False
