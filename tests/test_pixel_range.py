"""Pixels keep to their range, each channel to its own, and numbers come back from them."""
import pytest
import torch
from networks import IMAGE, images

from zsq_lab.pixel_range import INSIDE, in_range, out_of_range

BETWEEN = ((-1.0, -2.0, 0.0), 3.0)  # black of each channel, white of all


def test_pixels_in_range_by_hand():
    assert in_range(torch.tensor([[0.25]]), (0.0, 1.0)).item() == pytest.approx(0.5 + 0.5 * -0.462117, abs=1e-6)  # tanh(-1/2)
    x = 10 * images(16, IMAGE)
    made = in_range(x, BETWEEN)
    black = torch.tensor(BETWEEN[0]).view(3, 1, 1)
    assert (made >= black).all() and (made <= BETWEEN[1]).all()
    assert torch.allclose(made.amin((0, 2, 3)), black.flatten(), atol=1e-3), "each channel reaches its own black"
    order = x[:, 0].flatten().argsort()
    assert (made[:, 0].flatten()[order].diff() >= 0).all()
    assert in_range(x, None) is x and out_of_range(x, None) is x


def test_numbers_come_back_from_pixels_and_those_at_the_ends_can_move():
    x = images(4, IMAGE).clamp(-1, 2)
    assert torch.allclose(out_of_range(in_range(x, BETWEEN), BETWEEN), x, atol=1e-4)
    beyond = torch.full((1, 3, 2, 2), 99.0)
    inside = in_range(out_of_range(beyond, (-1.0, 1.0)), (-1.0, 1.0))
    assert torch.allclose(inside, torch.full_like(inside, INSIDE), atol=1e-4)
