"""Rounding that is learned (AdaRound, Nagel et al. 2020): each weight may go down or up, and gradients say which.

A weight w on a grid of step s stands between two grid points, n = floor(w / s) and n + 1. It is replaced by

    s (n + h(V)),    h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1)                                        (eq. 21-23)

with one free V for each weight. AdaRound drives every h(V) to 0 or 1 by a regulariser, over thousands of steps (eq. 24).
Here gradients go straight through instead: the forward pass takes the grid point that h(V) is nearer to, the backward pass
the gradient of h(V), so that every step sees the very error that will be left; with a few hundred steps that is as good
(`data/results/imagenet.md`). The sigmoid is stretched beyond both ends so that its gradient does not fade before it gets
there. `reconstruct` trains blocks with it.
"""
import torch
from torch import Tensor, nn

from .quantizer import Quantizer

LOW, HIGH = -0.1, 1.1  # gamma and zeta, the ends of the stretched sigmoid
NEXT = 0.999  # nearly the next grid point
MARGIN = 0.05  # between h(V) and one half at the start


def rectified_sigmoid(v: Tensor) -> Tensor:
    """h(V), elementwise, in [0, 1]; the gradient is zero where it is clipped."""
    return (v.sigmoid() * (HIGH - LOW) + LOW).clamp(0, 1)


def inverse(share: Tensor) -> Tensor:
    """The V at which h(V) is `share`, elementwise, for values in [0, 1]."""
    return ((share - LOW) / (HIGH - LOW)).logit()


class SoftRounding(nn.Module):
    """Stands in the place of a layer's weight quantizer while its roundings are learned.

    quantizer: range set; its scale may learn at the same time, the integers n stay. weight: what it rounds.
    start: the weight rounded in some way; h(V) begins on that side of one half, as near to w / s - n as it can be. Where the
    start is none of the two grid points around a weight, they are the start and the one next to it on the weight's side.
    """

    def __init__(self, quantizer: Quantizer, weight: Tensor, start: Tensor):
        super().__init__()
        self.quantizer = quantizer
        scale, zero_point = quantizer.scale.detach(), quantizer.zero_point
        begin = (start.detach() / scale + zero_point).round()
        exact = (weight.detach() / scale + zero_point).clamp(begin - NEXT, begin + NEXT)
        self.register_buffer("lower", exact.floor())
        up = begin > self.lower
        share = exact - self.lower
        share = torch.where(up, share.clamp(min=0.5 + MARGIN), share.clamp(max=0.5 - MARGIN))
        self.v = nn.Parameter(inverse(share), requires_grad=False)

    def share(self) -> Tensor:
        """How far up each weight is between its two grid points, h(V)."""
        return rectified_sigmoid(self.v)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight on the grid, with the gradient of h(V); takes what a quantizer takes, and looks at V instead."""
        share = self.share()
        return self._at(share + (_side(share) - share).detach())

    @torch.no_grad()
    def rounded(self) -> Tensor:
        """The weight on the grid: up where h(V) is at least one half."""
        return self._at(_side(self.share()))

    def _at(self, share: Tensor) -> Tensor:
        quantizer = self.quantizer
        integers = (self.lower + share).clamp(quantizer.quant_min, quantizer.quant_max)
        return (integers - quantizer.zero_point) * quantizer.scale


def _side(share: Tensor) -> Tensor:
    return (share >= 0.5).to(share.dtype)
