"""How good masks and boxes are: mIoU and mAP of torchmetrics, on what a network says about scenes.

mIoU: per class, intersection over union of all test pixels together, then the mean over the classes; unlabelled pixels
do not count. mAP: average precision by pycocotools, the mean over the classes, at IoU 0.5 and averaged over 0.5,
0.55 ... 0.95. A class that the test scenes do not show has neither, and no part in a mean: two networks are compared
over the same classes, and a pixel that one of them calls by such a name is a miss of the class that it is of.
Evaluating reads and never writes: no range, no statistic, no mode changes.
"""
from collections.abc import Iterator
from math import isnan, nan

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .graph import evaluating
from .input_hooks import any_layout
from .scenes import UNLABELLED, SceneDataset, Scenes
from .torchvision_compat import import_torchvision

BATCH = 16


def require_shown(scenes: Scenes) -> None:
    """Raises ValueError for scenes that show nothing to measure by: no labelled pixel, no box."""
    masks = isinstance(scenes.targets, Tensor)
    shown = (scenes.targets != UNLABELLED).any() if masks else any(len(target.boxes) for target in scenes.targets)
    if not shown:
        raise ValueError(f"the test scenes show no {'labelled pixel' if masks else 'box'}, so there is nothing to measure "
                         "by: take others, or more of them")


@torch.no_grad()  # and not inference_mode: what a model keeps from this pass may meet gradients in the next
def outputs(model: nn.Module, scenes: Scenes, dataset: SceneDataset,
            progress: bool = False) -> Iterator[tuple[Scenes, object]]:
    """Batches of scenes, each with what the model (in eval mode) says about it."""
    device, say = next(model.parameters()).device, any_layout(model)
    starts = range(0, len(scenes), BATCH)
    for start in tqdm(starts, "evaluating", disable=not progress, leave=False):
        part = Scenes(scenes.images[start:start + BATCH], scenes.targets[start:start + BATCH])
        yield part, say(dataset.normalise(part.images.to(device)))


def mean_iou(model: nn.Module, scenes: Scenes, dataset: SceneDataset, read, progress: bool = False) -> dict:
    """{"mIoU": percent, "per_class": {name: percent}}. read(model, output): masks int64 [N, H, W].

    Raises ValueError for scenes without a labelled pixel.
    """
    require_shown(scenes)
    import_torchvision()  # before torchmetrics, which imports it by itself and would not survive a broken one
    from torchmetrics.classification import MulticlassConfusionMatrix
    metric = MulticlassConfusionMatrix(len(dataset.classes), ignore_index=UNLABELLED, validate_args=False)
    with evaluating(model):
        for part, output in outputs(model, scenes, dataset, progress):
            metric.update(read(model, output).cpu(), part.targets.long())
    counts = metric.compute().double()  # [true class, said class]
    both = counts.diag()
    each = 100 * both / (counts.sum(0) + counts.sum(1) - both)
    each[counts.sum(1) == 0] = nan  # not there
    per_class = {name: value for name, value in zip(dataset.classes, each.tolist(), strict=True) if not isnan(value)}
    return {"mIoU": each.nanmean().item(), "per_class": per_class}


def mean_precision(model: nn.Module, scenes: Scenes, dataset: SceneDataset, read, progress: bool = False) -> dict:
    """{"mAP50", "mAP": percent, "per_class": {name: average precision at 0.5 : 0.95, percent}}.

    read(model, output): per image {"boxes", "scores", "labels"} as torchvision's detectors give them.
    Raises ValueError for scenes without a box.
    """
    require_shown(scenes)
    import_torchvision()
    from torchmetrics.detection import MeanAveragePrecision
    metric = MeanAveragePrecision(backend="pycocotools", class_metrics=True)
    metric.warn_on_many_detections = False
    with evaluating(model):
        for part, output in outputs(model, scenes, dataset, progress):
            wanted = [{"boxes": target.boxes, "labels": target.labels} for target in part.targets]
            metric.update([{key: value.cpu() for key, value in image.items()} for image in read(model, output)], wanted)
    result = metric.compute()
    classes = torch.atleast_1d(result["classes"]).tolist()
    each = torch.atleast_1d(result["map_per_class"]).double()
    per_class = {dataset.classes[index]: 100 * value for index, value in zip(classes, each.tolist(), strict=True)
                 if value >= 0}  # -1: seen, but not there
    return {"mAP50": 100 * result["map_50"].item(), "mAP": 100 * result["map"].item(), "per_class": per_class}
