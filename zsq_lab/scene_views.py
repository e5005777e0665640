"""Random views of scenes for training: crops at random zoom, flips and colours, with their masks and boxes along.

A view moves the picture, its mask and its boxes by one and the same map, so that what is where stays true.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .scenes import UNLABELLED, Boxes

VISIBLE = 0.4  # share of a box that a crop must keep


@dataclass(frozen=True)
class Views:
    """Which part of each scene is shown: pixel p of the view lies at `centre + (p - middle) / zoom` of the scene.

    centre, zoom: [N, 2] as x, y; a negative zoom in x or y is a flip. size: height and width of the view.
    """

    centre: Tensor
    zoom: Tensor
    size: tuple[int, int]

    def points(self) -> tuple[Tensor, Tensor]:
        """Where the centres of the view's columns and rows lie in the scene: x [N, W], y [N, H] in pixels."""
        height, width = self.size
        x, y = torch.arange(width) + 0.5 - width / 2, torch.arange(height) + 0.5 - height / 2
        return self.centre[:, :1] + x / self.zoom[:, :1], self.centre[:, 1:] + y / self.zoom[:, 1:]

    def images(self, images: Tensor) -> Tensor:
        """float [N, C, H, W] of normalised images, 0 (their mean) beyond the edge."""
        height, width = images.shape[2:]
        x, y = self.points()
        grid = torch.stack([(2 * x / width - 1)[:, None].expand(-1, y.shape[1], -1),
                            (2 * y / height - 1)[:, :, None].expand(-1, -1, x.shape[1])], 3)
        return F.grid_sample(images, grid, align_corners=False)

    def masks(self, masks: Tensor) -> Tensor:
        """uint8 [N, H, W], unlabelled beyond the edge."""
        x, y = (points.floor().long() for points in self.points())
        height, width = masks.shape[1:]
        n = torch.arange(len(masks))[:, None, None]
        shown = masks[n, y.clamp(0, height - 1)[:, :, None], x.clamp(0, width - 1)[:, None]]
        beyond = ((x < 0) | (x >= width))[:, None] | ((y < 0) | (y >= height))[:, :, None]
        return shown.masked_fill(beyond, UNLABELLED)

    def boxes(self, targets: list[Boxes]) -> list[Boxes]:
        """The boxes in pixels of the view, cut off at its edge; those with less than `VISIBLE` of their area are gone."""
        height, width = self.size
        middle, shown = torch.tensor([width / 2, height / 2]), []
        for target, centre, zoom in zip(targets, self.centre, self.zoom, strict=True):
            corners = (target.boxes.view(-1, 2, 2) - centre) * zoom + middle
            whole = torch.cat([corners.amin(1), corners.amax(1)], 1)
            cut = torch.minimum(whole.clamp(min=0), torch.tensor([width, height, width, height]))
            area = (cut[:, 2:] - cut[:, :2]).clamp(min=0).prod(1)
            kept = area > VISIBLE * (whole[:, 2:] - whole[:, :2]).prod(1)
            shown.append(Boxes(cut[kept], target.labels[kept]))
        return shown


def draw_views(n: int, scene: tuple[int, int], generator: torch.Generator, *, crop: tuple[int, int] | None = None,
               zoom: tuple[float, float] = (1.0, 1.0), vertical: bool = False) -> Views:
    """Random views of n scenes of height and width `scene`, mirrored half of the time.

    crop: height and width of the view; None: all of the scene. zoom: from least to most, drawn evenly in logarithms.
    vertical: upside down half of the time, too.
    """
    size, (low, high) = crop or scene, zoom
    zooms = low * (high / low) ** torch.rand(n, 1, generator=generator)
    reach = (torch.tensor([scene[1], scene[0]]) - torch.tensor([size[1], size[0]]) / zooms).clamp(min=0) / 2
    centre = torch.tensor([scene[1], scene[0]]) / 2 + reach * (2 * torch.rand(n, 2, generator=generator) - 1)
    flip = torch.rand(n, 2, generator=generator) < torch.tensor([0.5, 0.5 if vertical else 0.0])
    return Views(centre, torch.where(flip, -zooms, zooms), size)


def recolour(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Normalised images with random contrast, brightness and tint."""
    n = len(images)
    contrast, brightness, tint = (torch.randn(n, c, 1, 1, generator=generator) for c in (1, 1, 3))
    return images * (1 + strength * contrast.clamp(-2, 2)) + strength * brightness + 0.4 * strength * tint
