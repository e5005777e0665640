"""Pictures of scenes: masks laid over images, boxes drawn on them, whatever says so (annotations or a network), row by row."""
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from torch import Tensor

from .scenes import UNLABELLED, Boxes

SHOWN = 0.5  # score from which a box is drawn


def scene_grid(images: Tensor, rows: dict[str, Sequence], classes: Sequence[str], *, scale: float = 1.7) -> Figure:
    """A figure with one row for each of `rows`, and above them the images [N, 3, H, W] with values in 0..1.

    rows: name -> for each image a mask int [H, W] of class indices, or boxes (`Boxes`, or {"boxes", "labels", "scores"}:
    those with a score of at least `SHOWN`). Below a legend, of masks; boxes carry the name of their class.
    """
    palette = colours(len(classes))
    n, ratio = len(images), images.shape[2] / images.shape[3]
    size = (n * scale + 0.9, (1 + len(rows)) * scale * ratio + 0.5)
    figure, axes = plt.subplots(1 + len(rows), n, figsize=size, squeeze=False)
    present: set[int] = set()
    for row, (name, annotations) in enumerate([("image", [None] * n), *rows.items()]):
        for axis, image, annotation in zip(axes[row], images, annotations, strict=True):
            draw_scene(axis, image, annotation, classes)
            present |= set(annotation.unique().tolist()) - {UNLABELLED} if isinstance(annotation, Tensor) else set()
        axes[row, 0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    if present:
        handles = [Patch(facecolor=palette[k], edgecolor="0.3", label=classes[k]) for k in sorted(present)]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)), fontsize=8)
    return figure


def draw_scene(axis: plt.Axes, image: Tensor, annotation, classes: Sequence[str]) -> None:
    """One image [3, H, W] with values in 0..1, and over it a mask or boxes (None: nothing), as in `scene_grid`."""
    picture, palette = np.asarray(image.detach().cpu().permute(1, 2, 0)), colours(len(classes))
    if isinstance(annotation, Tensor):
        picture = over(picture, np.asarray(annotation.cpu()).astype(int), palette)
    axis.imshow(picture, interpolation="nearest")
    if annotation is not None and not isinstance(annotation, Tensor):
        _boxes(axis, annotation, classes, palette)
    axis.set(xticks=[], yticks=[])
    axis.grid(False)


def colours(n: int) -> np.ndarray:
    """n colours [n, 3]: the colour-blind palette, then the same darker."""
    base = np.array(sns.color_palette("colorblind", 10))
    return np.concatenate([base * shade for shade in (1.0, 0.55, 0.3)])[np.arange(n) % 30]


def over(picture: np.ndarray, mask: np.ndarray, palette: np.ndarray, share: float = 0.65) -> np.ndarray:
    """The picture [H, W, 3] with the mask's colours over it; unlabelled pixels stay as they are."""
    known = (mask != UNLABELLED)[..., None] * share
    return picture * (1 - known) + palette[np.where(mask == UNLABELLED, 0, mask)] * known


def _boxes(axis: plt.Axes, annotation, classes: Sequence[str], palette: np.ndarray) -> None:
    found = {"boxes": annotation.boxes, "labels": annotation.labels} if isinstance(annotation, Boxes) else annotation
    scores = found.get("scores", [1.0] * len(found["labels"]))
    for box, label, score in zip(found["boxes"].tolist(), found["labels"].tolist(), scores, strict=True):
        if score >= SHOWN:
            axis.add_patch(Rectangle(box[:2], box[2] - box[0], box[3] - box[1], fill=False, edgecolor=palette[label],
                                     linewidth=1.5))
            axis.text(box[0], box[1], classes[label], fontsize=7, color="black", va="bottom",
                      bbox={"facecolor": palette[label], "pad": 0.5, "edgecolor": "none"})
