"""Pixels between black and white: what every photograph keeps to, and what a network's normalisation makes of the two ends.

Statistics alone do not forbid a pixel far darker than black. So what the optimiser moves is not a pixel but a number from
which one is made. Notebook 07.
"""
import torch
from torch import Tensor

PixelRange = tuple[float | tuple[float, ...], float | tuple[float, ...]]  # black, white: of all channels, or one of each
INSIDE = 0.98  # of the half range: where pixels that are to move on may begin at most, tanh being flat at its ends


def in_range(values: Tensor, pixel_range: PixelRange | None) -> Tensor:
    """Any numbers [N, C, *spatial] to pixels between the ends, m + h tanh((values - m) / h); unchanged where it is None.

    m, h: middle and half width of pixel_range = (black, white), what the darkest and the brightest pixel are to the network,
    each one number or one for each channel. Without ends the optimiser makes pixels much darker than black, which serves
    mean and deviation of a channel, and which no photograph has.
    """
    if pixel_range is None:
        return values
    middle, half = _ends(pixel_range, values)
    return middle + half * torch.tanh((values - middle) / half)


def out_of_range(pixels: Tensor, pixel_range: PixelRange | None) -> Tensor:
    """The numbers that `in_range` makes these pixels of; those near or beyond the ends count as INSIDE of the half range."""
    if pixel_range is None:
        return pixels
    middle, half = _ends(pixel_range, pixels)
    return middle + half * torch.atanh(((pixels - middle) / half).clamp(-INSIDE, INSIDE))


def _ends(pixel_range: PixelRange, like: Tensor) -> tuple[Tensor, Tensor]:
    """Middle and half width, broadcastable to [N, C, *spatial]. Raises ValueError for a range that is none."""
    try:
        low, high = (torch.as_tensor(end, dtype=like.dtype, device=like.device).reshape(-1, *[1] * (like.ndim - 2))
                     for end in pixel_range)
        sound = {len(low), len(high)} <= {1, like.shape[1]} and bool((low < high).all())
    except (TypeError, ValueError):
        sound = False
    if not sound:
        raise ValueError(f"pixel_range is {pixel_range!r}, expected (black, white), what the darkest and the brightest pixel are "
                         f"to the network, each one number or one for each of {like.shape[1]} channels, black below white")
    return (low + high) / 2, (high - low) / 2
