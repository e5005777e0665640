"""Boxes on a grid and back: which location of a detector answers for which box, and which boxes its outputs mean.

Every location of the grid stands for one point of the image and says, without anchors, how far the four sides of its
box are (FCOS, Tian et al. 2019). A box is [x0, y0, x1, y1] in pixels. Notebook 08 decodes one by hand.
"""
import torch
from torch import Tensor

from .torchvision_compat import import_torchvision

RADIUS = 1.5  # locations around the centre of a box that learn it, in strides
MAX_LOG = 6.0  # of a distance in strides: no box is larger than this, and no exponential overflows


def locations(height: int, width: int, stride: int) -> Tensor:
    """Centres [height * width, 2] as x, y in pixels of a grid's cells, row by row."""
    y, x = torch.meshgrid((torch.arange(height) + 0.5) * stride, (torch.arange(width) + 0.5) * stride, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], 1)


def to_boxes(logs: Tensor, centres: Tensor, stride: int) -> Tensor:
    """Boxes [..., L, 4] from log distances [..., L, 4] (left, upper, right, lower, in strides) at `centres` [L, 2]."""
    distances = logs.clamp(max=MAX_LOG).exp() * stride
    return torch.cat([centres - distances[..., :2], centres + distances[..., 2:]], -1)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes [..., 4], element by element; 0 where both are empty."""
    overlap, union, _ = _areas(a, b)
    return overlap / union.clamp(min=1e-9)


def generalised_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU minus the share of the common hull that neither box covers (Rezatofighi et al. 2019): -1..1, with a gradient
    where boxes do not touch."""
    overlap, union, hull = _areas(a, b)
    return overlap / union.clamp(min=1e-9) - (hull - union) / hull.clamp(min=1e-9)


def assign(boxes: Tensor, labels: Tensor, centres: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Which box each location learns: boxes [L, 4] and labels int64 [L], -1 for a location without one.

    A location learns a box that it lies in, within `RADIUS` strides of its centre; of several the smallest. A box too
    small for that is learned by the location nearest to its centre.
    """
    if len(boxes) == 0:
        return centres.new_zeros(len(centres), 4), centres.new_full((len(centres),), -1, dtype=torch.int64)
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    away = (centres[:, None] - middle).abs().amax(2)  # [L, boxes]
    inside = ((centres[:, None] > boxes[:, :2]) & (centres[:, None] < boxes[:, 2:])).all(2)
    candidate = inside & (away < RADIUS * stride)
    candidate[away.argmin(0), torch.arange(len(boxes))] = True
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    smallest, chosen = torch.where(candidate, area, torch.inf).min(1)
    return boxes[chosen], torch.where(smallest.isfinite(), labels[chosen], -1)


def decode(classes: Tensor, logs: Tensor, stride: int, *, threshold: float = 0.05, overlap: float = 0.5,
           most: int = 100) -> list[dict[str, Tensor]]:
    """What a detector's outputs mean: per image {"boxes" [k, 4], "scores" [k], "labels" int64 [k]} by falling score.

    classes: logits [N, K, h, w]. logs: [N, 4, h, w]. Of two boxes of one class that overlap (IoU) by more than
    `overlap` the surer one stays (non-maximum suppression); at most `most` boxes, each with a score above `threshold`;
    boxes end at the edge of the image.
    """
    height, width = classes.shape[2:]
    centres = locations(height, width, stride).to(classes.device)
    scores = classes.sigmoid().flatten(2)  # [N, K, L]
    boxes = to_boxes(logs.flatten(2).transpose(1, 2), centres, stride)
    limit = torch.tensor([width, height, width, height], device=classes.device) * stride
    boxes = torch.minimum(boxes.clamp(min=0), limit)
    return [suppress(own, score, threshold, overlap, most) for own, score in zip(boxes, scores, strict=True)]


def suppress(boxes: Tensor, scores: Tensor, threshold: float, overlap: float, most: int) -> dict[str, Tensor]:
    """The boxes [L, 4] with scores [K, L] that survive, as `decode` says."""
    labels, places = (scores > threshold).nonzero(as_tuple=True)
    scores, boxes = scores[labels, places], boxes[places]
    top = scores.argsort(descending=True, stable=True)[: 10 * most]
    labels, scores, boxes = labels[top], scores[top], boxes[top]
    apart = boxes + labels[:, None] * (boxes.max() + 1 if len(boxes) else 0)  # boxes of two classes never meet
    kept = import_torchvision().ops.nms(apart, scores, overlap)[:most]
    return {"boxes": boxes[kept], "scores": scores[kept], "labels": labels[kept]}


def _areas(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Areas of the intersection, the union and the smallest box around both."""
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    overlap = (high - low).clamp(min=0).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - overlap
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1)
    return overlap, union, hull
