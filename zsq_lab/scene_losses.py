"""What a network of scenes learns from: how far its masks and its boxes are from the true ones.

Masks: cross-entropy with rare classes counting more, plus one minus a soft IoU (what is measured in the end). Boxes:
generalised IoU, and a class score that learns how well its box fits (quality focal loss, Li et al. 2020).
"""
import torch
import torch.nn.functional as F
from torch import Tensor

from .boxes import assign, generalised_iou, iou, locations, to_boxes
from .scene_models import STRIDE
from .scenes import UNLABELLED, Boxes


def class_weights(masks: Tensor, classes: int) -> Tensor:
    """[classes]: one over the square root of a class's share of the pixels, mean 1 over the pixels, at most 5."""
    counts = torch.bincount(masks[masks < classes].flatten().long(), minlength=classes).double()
    share = (counts / counts.sum()).clamp(min=1e-6)
    weights = share.rsqrt()
    return (weights / (weights * share).sum()).clamp(max=5).float()


def mask_loss(logits: Tensor, masks: Tensor, weights: Tensor) -> Tensor:
    """Weighted cross-entropy of logits [N, K, H, W] plus one minus the batch's soft IoU, mean over the classes present.

    Zero for a batch without any labelled pixel.
    """
    masks = masks.long()
    known = masks != UNLABELLED
    if not known.any():
        return 0 * logits.sum()  # the means over nothing would be NaN
    entropy = F.cross_entropy(logits, masks, weights, ignore_index=UNLABELLED)
    share = logits.softmax(1) * known[:, None]
    truth = F.one_hot(masks.where(known, torch.zeros_like(masks)), logits.shape[1]).permute(0, 3, 1, 2) * known[:, None]
    both, sizes = (share * truth).sum((0, 2, 3)), truth.sum((0, 2, 3))
    soft = both / (share.sum((0, 2, 3)) + sizes - both).clamp(min=1)
    return entropy + 1 - soft[sizes > 0].mean()


def box_loss(output: dict[str, Tensor], targets: list[Boxes]) -> Tensor:
    """Quality focal loss of the class logits plus twice one minus the generalised IoU, per location that has a box."""
    logits, logs = output["classes"], output["boxes"]
    centres = locations(*logits.shape[2:], STRIDE)
    assigned = [assign(target.boxes, target.labels, centres, STRIDE) for target in targets]
    wanted, labels = (torch.cat(parts) for parts in zip(*assigned, strict=True))
    has = labels >= 0
    logits = logits.permute(0, 2, 3, 1).flatten(0, 2)
    found = to_boxes(logs.permute(0, 2, 3, 1).flatten(1, 2), centres, STRIDE).flatten(0, 1)
    quality = torch.zeros_like(logits)
    quality[has, labels[has]] = iou(found[has], wanted[has]).detach()
    score = logits.sigmoid()
    focal = F.binary_cross_entropy_with_logits(logits, quality, reduction="none") * (score - quality).detach().square()
    return (focal.sum() + 2 * (1 - generalised_iou(found[has], wanted[has])).sum()) / max(1, int(has.sum()))
