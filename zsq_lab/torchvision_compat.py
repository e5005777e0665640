"""The one place that imports torchvision, so that a torchvision whose compiled part does not load is survived.

CPU builds of PyTorch beside the torchvision of another index fail at `import torchvision` with `operator
torchvision::nms does not exist`: its compiled library was made for another PyTorch, so it declares no operators, and
the Python part of torchvision then describes operators that are not there. Declared by hand, they let the import go on.
"""
import importlib
import re
import sys
from types import ModuleType

import torch
from torch import Tensor

# Operators that torchvision's Python files describe without asking whether the compiled library was loaded.
SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_declared: list[torch.library.Library] = []  # a declaration lives as long as its Library object


def import_torchvision() -> ModuleType:
    """torchvision, with `torchvision.ops.nms` supplied by `plain_nms` where its compiled operators do not load.

    Raises whatever `import torchvision` raises for any other reason (ModuleNotFoundError where it is not installed).
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
        if not missing or missing[1] not in SCHEMAS or _declared:
            raise
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]  # what the failed import left behind would be taken for the real thing
    _declare_operators()
    torchvision = importlib.import_module("torchvision")
    # The public function asks for the compiled library before it calls the operator, so it is replaced as well.
    boxes = importlib.import_module("torchvision.ops.boxes")
    boxes.nms = torchvision.ops.nms = plain_nms
    return torchvision


def is_patched() -> bool:
    """Whether torchvision's compiled operators were missing and `import_torchvision` supplied what the lab needs."""
    return bool(_declared)


def plain_nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Non-maximum suppression: the boxes that no kept box of higher score overlaps by more than `iou_threshold`.

    boxes: [N, 4] as x1, y1, x2, y2. scores: [N]. iou_threshold: intersection over union, 0..1.
    Returns int64 [kept], the indices of the kept boxes by falling score; of equal scores the earlier box goes first.
    """
    if boxes.ndim != 2 or boxes.shape[1] != 4 or scores.shape != boxes.shape[:1]:
        raise ValueError(f"nms takes boxes [N, 4] and scores [N], got {list(boxes.shape)} and {list(scores.shape)}")
    remaining = scores.argsort(descending=True, stable=True)
    boxes = boxes.double() if boxes.dtype == torch.float64 else boxes.float()  # half precision loses small overlaps
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept = []
    while remaining.numel():
        best, remaining = remaining[0], remaining[1:]
        kept.append(best)
        top_left = torch.maximum(boxes[best, :2], boxes[remaining, :2])
        bottom_right = torch.minimum(boxes[best, 2:], boxes[remaining, 2:])
        overlap = (bottom_right - top_left).clamp(min=0).prod(1)
        iou = overlap / (area[best] + area[remaining] - overlap)
        remaining = remaining[~(iou > iou_threshold)]  # two empty boxes have IoU 0/0: neither suppresses the other
    return torch.stack(kept) if kept else scores.new_empty(0, dtype=torch.int64)


def _declare_operators() -> None:
    library = torch.library.Library("torchvision", "FRAGMENT")
    _declared.append(library)
    for schema in SCHEMAS.values():
        library.define(schema)
    library.impl("nms", plain_nms, "CompositeExplicitAutograd")
