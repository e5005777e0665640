"""What goes wrong in generative training, noticed while it is cheap: NaN, an exploding discrepancy, mode collapse.

A run that fails stops within 50 iterations and says what happened, when, and which setting to change; the last state
that was sound stays on disk. Notebook 05 shows a collapse on purpose, and its cure.
"""
import math

import torch
from torch import Tensor

EVERY = 10  # iterations between two looks at the images
PATIENCE = 3  # looks in a row that must be bad before a run is stopped
COLLAPSED = 0.01  # variety below which a large batch is one image
ONE_MORE = 0.05  # of few images: what there must be beyond one, in images (V - 1)
EXPLODED = 20.0  # discrepancy in units of the teacher's own outputs


class Stopped(RuntimeError):
    """A generative training that cannot end well: says what happened, the iteration and what to change."""


@torch.no_grad()
def variety(images: Tensor, labels: Tensor | None = None) -> float:
    """How different the images [N, ...] are from each other: 0 when all are one, 1 when no two have anything in common.

    The Vendi score V (Friedman & Dieng 2022), exp of the entropy of the eigenvalues of the cosine matrix over N, is the
    number of different images in the batch; this is (V - 1) / (N - 1). With labels: the mean within the classes.
    NaN where no two images can be compared.
    """
    if labels is not None:
        groups = [images[labels == label] for label in labels.unique()]
        groups = [group for group in groups if len(group) > 1]
        return sum(map(variety, groups)) / len(groups) if groups else math.nan
    if len(images) < 2:
        return math.nan
    rows = images.detach().flatten(1).cpu().double()  # Apple's GPUs have neither doubles nor eigenvalues
    rows = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)
    eigenvalues = torch.linalg.eigvalsh(rows @ rows.t() / len(rows)).clamp(min=1e-12)
    score = torch.exp(-(eigenvalues * eigenvalues.log()).sum()).item()
    return (score - 1) / (len(rows) - 1)


def look(images: Tensor, labels: Tensor | None = None) -> tuple[float, bool]:
    """The variety of a batch, and whether it is that of a collapse.

    With labels: of the images that share one; where no two do, of the whole batch.
    """
    spread, group = variety(images, labels), len(images)
    if labels is not None and not math.isnan(spread):
        counts = labels.unique(return_counts=True)[1]
        group = counts[counts > 1].cpu().double().mean().item()
    elif labels is not None:
        spread = variety(images)
    return spread, spread < max(COLLAPSED, ONE_MORE / max(1, group - 1))


class Health:
    """Looks at a generative run; `check` raises `Stopped` when it has gone wrong."""

    def __init__(self, run: str):
        self.run, self.next_look, self.bad_looks = run, 0, 0

    def check(self, iteration: int, losses: dict[str, float], images: Tensor, labels: Tensor | None = None,
              discrepancy: float = 0.0) -> None:
        """losses: this iteration's numbers. discrepancy: mean |P - Q| over mean |P|, where there is a student."""
        wrong = [name for name, value in losses.items() if not math.isfinite(value)]
        if wrong:
            raise Stopped(f"{self.run} stopped at iteration {iteration}: {', '.join(wrong)} is not a number; lower the "
                          "learning rate, or use more bits or another recipe")
        if iteration < self.next_look:
            return
        self.next_look = iteration + EVERY
        exploded = discrepancy > EXPLODED
        spread, collapsed = look(images, labels)
        self.bad_looks = self.bad_looks + 1 if exploded or collapsed else 0
        if self.bad_looks < PATIENCE:
            return
        if exploded:
            raise Stopped(f"{self.run} stopped at iteration {iteration}: the discrepancy is {discrepancy:.0f} times "
                          "the teacher's outputs; lower the weight of the discrepancy or the student's learning rate, or use "
                          "more bits or another recipe")
        raise Stopped(f"{self.run} stopped at iteration {iteration}: mode collapse, the images of a batch are all "
                      f"alike (variety {spread:.3f}); raise the weight of the statistics or lower the learning rate")
