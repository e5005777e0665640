"""Accuracy and agreement of a classifier. Evaluating reads and never writes: no range, no statistic, no mode changes."""
import torch
from torch import Tensor, nn
from tqdm import tqdm

from .data import Dataset, Split, batches
from .graph import evaluating
from .input_hooks import any_layout

BATCH = 250  # of 32x32 images: large enough for two cores, small enough for their caches
LEAST = 8  # of larger ones


def batch_size(image_shape: tuple[int, ...]) -> int:
    """Images that are predicted at a time: the fewer the larger they are."""
    return max(LEAST, BATCH * 32 * 32 // (image_shape[-2] * image_shape[-1]))


@torch.no_grad()  # and not inference_mode: what a model keeps from this pass may meet gradients in the next
def predict(model: nn.Module, split: Split, dataset: Dataset, *, limit: int | None = None,
            progress: bool = False) -> Tensor:
    """Predicted class [N] of the first `limit` images of a split (all by default)."""
    device = next(model.parameters()).device
    split = Split(split.images[:limit], split.labels[:limit])
    size, predictions, say = batch_size(split.images.shape), [], any_layout(model)
    bar = tqdm(batches(split, size), "evaluating", -(-len(split) // size), disable=not progress, leave=False)
    with evaluating(model), bar:
        for images, _ in bar:
            predictions.append(say(dataset.normalise(images.to(device))).argmax(1).cpu())
    return torch.cat(predictions)


def accuracy(model: nn.Module, split: Split, dataset: Dataset, *, limit: int | None = None,
             progress: bool = False) -> float:
    """Top-1 accuracy in percent on the first `limit` images of a split (all by default)."""
    predictions = predict(model, split, dataset, limit=limit, progress=progress)
    return 100 * (predictions == split.labels[:limit]).double().mean().item()
