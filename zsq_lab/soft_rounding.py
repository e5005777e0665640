"""Rounding that is learned (AdaRound, Nagel et al. 2020): each weight may go down or up, and gradients say which.

A weight w on a grid of step s stands between two grid points, n = floor(w / s) and n + 1. It is replaced by

    s (n + h(V)),    h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1)                                        (eq. 21-23)

with one free V for each weight. Two ways to come from there to a grid point are here. AdaRound's: a regulariser
1 - |2 h(V) - 1|^beta, whose beta falls while the V learn, drives every h(V) to 0 or 1 (eq. 24). Or straight through: the
forward pass takes the grid point that h(V) is nearer to, the backward pass the gradient of h(V); every step then sees the
very error that will be left. The sigmoid is stretched beyond both ends so that its gradient does not fade before it gets
there. `reconstruct` trains blocks with it.
"""
import torch
from torch import Tensor, nn

from .quantizer import Quantizer

LOW, HIGH = -0.1, 1.1  # gamma and zeta, the ends of the stretched sigmoid
FIRST_BETA, LAST_BETA = 20.0, 2.0
NEXT = 0.999  # nearly the next grid point
MARGIN = 0.05  # between h(V) and one half at the start


def rectified_sigmoid(v: Tensor) -> Tensor:
    """h(V), elementwise, in [0, 1]; the gradient is zero where it is clipped."""
    return (v.sigmoid() * (HIGH - LOW) + LOW).clamp(0, 1)


def inverse(share: Tensor) -> Tensor:
    """The V at which h(V) is `share`, elementwise, for values in [0, 1]."""
    return ((share - LOW) / (HIGH - LOW)).logit()


def undecided(share: Tensor, beta: float) -> Tensor:
    """1 - |2 h - 1|^beta: 0 at both ends, 1 in the middle, flat there while beta is large."""
    return 1 - (2 * share - 1).abs().pow(beta)


def annealed_beta(done: float) -> float:
    """beta after this share of the time in which the regulariser acts, on a straight line from 20 to 2."""
    return FIRST_BETA + (LAST_BETA - FIRST_BETA) * min(max(done, 0.0), 1.0)


class SoftRounding(nn.Module):
    """Stands in the place of a layer's weight quantizer while its roundings are learned.

    quantizer: range set; its scale may learn at the same time, the integers n stay. weight: what it rounds.
    start: the weight rounded in some way; h(V) begins on that side of one half, as near to w / s - n as it can be. Where the
    start is none of the two grid points around a weight, they are the start and the one next to it on the weight's side.
    decided: the forward pass takes grid points, the gradient goes straight through.
    """

    def __init__(self, quantizer: Quantizer, weight: Tensor, start: Tensor):
        super().__init__()
        self.quantizer, self.decided = quantizer, False
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
        """The weight as it is now; takes what a quantizer takes, and looks at V instead."""
        share = self.share()
        return self._at(share + (_side(share) - share).detach() if self.decided else share)

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
