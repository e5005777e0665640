"""What a network is for: classes, masks or boxes. One small object each says what differs, and nobody else branches.

A `Task` knows how far two outputs are apart (for fine-tuning and for the game), what it means that an image shows a class,
how good the outputs are on a test set, where its data is and how a result is drawn. Recipes pass it on; the images'
BatchNorm statistics, the ranges and the features are the same for all networks. Notebook 08 compares two of them.
"""
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .distributed import mean_over_processes
from .graph import tensors

POSITIONS = 64  # one in so many positions of an output must show the class that an image was made for


@dataclass(frozen=True)
class Task:
    """name, metric: of the task and of the one number that counts, a key of `measure`'s result, in percent.

    classes(output): how many classes the output knows, None where the task cannot tell. label_loss(output, labels): how
    little images show the classes int64 [N] that they were made for. output_loss(student's, teacher's): what fine-tuning
    brings to zero. read(model, output): what the output says of each image, a class, a mask or boxes. measure(model,
    split, dataset, limit, progress): {metric: percent, ...}. dataset(profile, folder): one of its data sets. reads: the
    module's files that only `measure` and `dataset` need. per_image: how many small images one scene is worth.
    """

    name: str
    metric: str
    classes: Callable[[object], int | None]
    label_loss: Callable[[object, Tensor], Tensor]
    output_loss: Callable[[object, object], Tensor]
    read: Callable[[nn.Module, object], object]
    measure: Callable[..., dict]
    dataset: Callable
    reads: tuple[str, ...]
    per_image: int = 1

    def budget(self, budget):
        """The same work on scenes: one of them has as many positions to match and to learn from as `per_image` images."""
        if self.per_image == 1:
            return budget
        fewer = {"images": budget.images, "image_batch": budget.image_batch, "batch_size": budget.batch_size}
        return replace(budget, **{key: max(2, value // self.per_image) for key, value in fewer.items()})


def output_loss(student_output, teacher_output) -> Tensor:
    """KL(teacher || student) of class logits [N, K], averaged over the batch; relative squared error of anything else.

    Several outputs (tuples, lists, dictionaries, dataclasses of tensors): the sum over those of floats.
    Raises ValueError where there are none.
    """
    if not isinstance(teacher_output, Tensor):
        return torch.stack([output_loss(own, wanted) for own, wanted in _floats(student_output, teacher_output)]).sum()
    if teacher_output.ndim == 2 and teacher_output.shape[1] > 1:
        return F.kl_div(F.log_softmax(student_output, 1), F.log_softmax(teacher_output, 1),
                        reduction="batchmean", log_target=True)
    return relative_error(student_output, teacher_output)


def _floats(student_output, teacher_output) -> list[tuple[Tensor, Tensor]]:
    pairs = zip(tensors(student_output), tensors(teacher_output), strict=True)
    if floats := [(own, wanted) for own, wanted in pairs if wanted.is_floating_point()]:
        return floats
    raise ValueError(f"the model puts out {type(teacher_output).__name__}, in which no tensor of floats is seen: let it return "
                     "tensors, alone or in tuples, lists, dictionaries or dataclasses")


def relative_error(student: Tensor, teacher: Tensor) -> Tensor:
    """|student - teacher|^2 / |teacher|^2, the inverse of the signal-to-noise ratio."""
    error, size = mean_over_processes((student - teacher).square().sum()), mean_over_processes(teacher.square().sum())
    return error / (size + 1e-12)


def pixel_loss(student_output, teacher_output) -> Tensor:
    """KL(teacher || student) of the classes of each pixel, the mean over the pixels; logits [N, K, H, W].

    One channel, K = 1, is the logit of the one class that there is, against none. Several outputs (torchvision's
    {"out", "aux"}): the sum over those of floats. Raises ValueError where there are none.
    """
    return torch.stack([F.kl_div(_log_classes(own), _log_classes(wanted), reduction="none", log_target=True).sum(1).mean()
                        for own, wanted in _floats(student_output, teacher_output)]).sum()


def _log_classes(logits: Tensor) -> Tensor:
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], 1)
    return F.log_softmax(logits, 1)


def location_loss(student_output: dict[str, Tensor], teacher_output: dict[str, Tensor]) -> Tensor:
    """What the student gets wrong where the teacher sees something, in units of what the teacher sees.

    Classes [N, K, ...] are read through sigmoids: KL(teacher || student) of each, summed over all locations. Boxes
    [N, 4, ...]: mean absolute difference of the four numbers, each location weighted by the score of its surest class.
    Both over the sum of these scores: background, which is nearly everything, adds little.
    """
    own, wanted = student_output["classes"], teacher_output["classes"]
    truth = wanted.sigmoid()
    divergence = F.binary_cross_entropy_with_logits(own, truth, reduction="none") \
        - F.binary_cross_entropy_with_logits(wanted, truth, reduction="none")
    seen = truth.amax(1)
    apart = (student_output["boxes"] - teacher_output["boxes"]).abs().mean(1)
    return (divergence.sum() + (seen * apart).sum()) / seen.sum().clamp(min=1)


def shown_pixels(output, labels: Tensor) -> Tensor:
    """Cross-entropy to the wanted class [N] over the 1 in `POSITIONS` pixels of each image that show it most."""
    logits = next(tensors(output))
    return _surest(F.log_softmax(logits, 1), labels)


def shown_locations(output: dict[str, Tensor], labels: Tensor) -> Tensor:
    """The same for the scores of a detector's locations."""
    return _surest(F.logsigmoid(output["classes"]), labels)


def _surest(log_scores: Tensor, labels: Tensor) -> Tensor:
    wanted = log_scores[torch.arange(len(labels), device=labels.device), labels].flatten(1)
    return -wanted.topk(max(1, wanted.shape[1] // POSITIONS), dim=1).values.mean()


def _class_count(output) -> int | None:
    return output.shape[1] if isinstance(output, Tensor) and output.ndim == 2 else None


def _pixel_count(output) -> int | None:
    logits = next(tensors(output), None)
    return logits.shape[1] if logits is not None and logits.ndim == 4 and logits.shape[1] > 1 else None


def _location_count(output) -> int | None:
    if not isinstance(output, dict) or not {"classes", "boxes"} <= set(output):
        raise ValueError('a detector gives {"classes": [N, K, ...], "boxes": [N, 4, ...]} before anything is selected '
                         "from them: wrap yours (zsq_lab.detectors does it for torchvision's)")
    return output["classes"].shape[1]


def _most_likely(model: nn.Module, output) -> Tensor:
    return next(tensors(output)).argmax(1)


def _selected(model: nn.Module, output) -> list[dict[str, Tensor]]:
    return model.detections(output)


def _accuracy(model: nn.Module, split, dataset, limit: int | None = None, progress: bool = False) -> dict:
    from .evaluate import accuracy
    return {"accuracy": accuracy(model, split, dataset, limit=limit, progress=progress)}


def _iou(model: nn.Module, split, dataset, limit: int | None = None, progress: bool = False) -> dict:
    from .scene_metrics import mean_iou
    return mean_iou(model, split.first(limit), dataset, SEGMENTATION.read, progress)


def _precision(model: nn.Module, split, dataset, limit: int | None = None, progress: bool = False) -> dict:
    from .scene_metrics import mean_precision
    return mean_precision(model, split.first(limit), dataset, DETECTION.read, progress)


def _images(profile: str | None = None, folder: Path | None = None):
    from .data import find_dataset
    return find_dataset(profile)


def _masks(profile: str | None = None, folder: Path | None = None):
    from .scenes import find_scenes
    return find_scenes("camvid", "masks", profile, folder)


def _boxes(profile: str | None = None, folder: Path | None = None):
    from .scenes import find_scenes
    return find_scenes("bccd", "boxes", profile, folder)


CLASSIFICATION = Task("classification", "accuracy", _class_count, F.cross_entropy, output_loss, _most_likely, _accuracy,
                      _images, ("data", "evaluate"))
SEGMENTATION = Task("segmentation", "mIoU", _pixel_count, shown_pixels, pixel_loss, _most_likely, _iou,
                    _masks, ("scene_metrics",), 8)
DETECTION = Task("detection", "mAP50", _location_count, shown_locations, location_loss, _selected, _precision,
                 _boxes, ("scene_metrics",), 8)
TASKS = {task.name: task for task in (CLASSIFICATION, SEGMENTATION, DETECTION)}
ARCHITECTURES = {"segmenter": SEGMENTATION, "lite_segmenter": SEGMENTATION, "detector": DETECTION}


def task_of(model: str) -> Task:
    """The task of a shipped network by its name, `camvid/segmenter` or `segmenter`; classification for all others."""
    return ARCHITECTURES.get(model.split("/")[-1], CLASSIFICATION)
