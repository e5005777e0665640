"""Rounding in closed form (SQuant, Guo et al. 2022): a few weights are rounded the other way so that errors cancel.

Rounding each weight to its nearest grid point is best for the weight and not for the layer: a layer sums over its
kernel, and neighbouring inputs are alike. SQuant flips just enough roundings that the errors of every kernel sum to at
most half a step; then one more in a few kernels, so that those of every output channel do too: the errors of such a
kernel sum to between half a step and one. No data, no gradient, milliseconds. Notebook 02 works a kernel by hand.
"""
import torch
from torch import Tensor, nn

from .layers import QuantLayer, quant_layers

AT_A_TIME = 1 << 22  # weights: a dozen numbers are held for each, and VGG's first linear has a hundred million


def flip_sums(error: Tensor, allowed: Tensor) -> Tensor:
    """Which way to move the integers of each row so that its errors sum to at most one half: -1, 0 or +1, [R, N].

    error: integer minus exact value, [R, N]. A row whose sum is s needs round(|s|) flips; the elements with the largest
    error of the sign of s take them, at the least cost in squared error. allowed: bool [R, N], which may move.
    """
    total = error.sum(1, keepdim=True)
    direction = -total.sign()
    gain = torch.where(allowed & (error * direction < 0), error.abs(), torch.full_like(error, -1.0))
    order = gain.argsort(dim=1, descending=True, stable=True)
    rank = order.argsort(dim=1)  # place of each element in that order
    return torch.where((rank < total.abs().round()) & (gain > 0), direction, torch.zeros_like(error))


def squant_integers(weight: Tensor, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int) -> Tensor:
    """Integers [O, I, K] for a weight [O, I, K] (output channel, input channel, kernel position), SQuant-E, -K and -C.

    scale, zero_point: broadcastable to weight. Every integer is one of the two next to the exact value, or clipped.
    Where no weight lies at an end of the range, the errors of a channel sum to at most half a step, of a kernel to one.
    """
    exact = weight / scale + zero_point
    nearest = exact.round().clamp(quant_min, quant_max)
    # Clipped weights lie outside the range by choice; their error is not rounding error and is left out of the sums.
    # The largest weight of a min-max grid lies just at the end, half a step out: that is rounding still.
    inside = (exact > quant_min - 0.5001) & (exact < quant_max + 0.5001)
    error = torch.where(inside, nearest - exact, torch.zeros_like(exact))

    def may_move(current: Tensor, error: Tensor) -> Tensor:
        target = current - error.sign()
        return inside & (target >= quant_min) & (target <= quant_max)

    out_channels, in_channels, positions = weight.shape
    rows = error.reshape(-1, positions)
    kernel_step = flip_sums(rows, may_move(nearest, error).reshape(rows.shape)).reshape(weight.shape)
    integers, error = nearest + kernel_step, error + kernel_step
    # One more flip at most in each kernel: its best candidate stands for the kernel in the channel's sum. Where the
    # kernel was flipped past its exact sum, that candidate is its last flip, and taking it back costs nothing.
    kernel_error = error.sum(2)
    direction = -kernel_error.sum(1, keepdim=True).sign()
    movable = may_move(integers, error) & (error * direction.unsqueeze(2) < 0)
    gain = torch.where(movable, error.abs(), torch.full_like(error, -1.0))
    best, position = gain.max(2)
    channel_step = flip_sums(kernel_error, best > 0)
    return integers.scatter_add(2, position.unsqueeze(2), channel_step.unsqueeze(2))


@torch.no_grad()
def squant(student: nn.Module) -> None:
    """Replace each weight of a student, whose weight ranges are set, by its SQuant-rounded value; in place."""
    for layer in quant_layers(student).values():
        layer.layer.weight.copy_(squant_rounded(layer))


@torch.no_grad()
def squant_rounded(layer: QuantLayer) -> Tensor:
    """The SQuant-rounded weight of a layer whose weight range is set; the layer keeps its own."""
    quantizer, weight = layer.weight_quantizer, layer.layer.weight
    axis = quantizer.axis
    by_channel = weight.transpose(0, axis)
    as_rows = by_channel.reshape(by_channel.shape[0], by_channel.shape[1], -1)
    ends = (quantizer.quant_min, quantizer.quant_max)
    scales, zero_points = (q.transpose(0, axis).reshape(-1, 1, 1).expand(len(as_rows), 1, 1)
                           for q in (quantizer.scale, quantizer.zero_point))
    channels = max(1, AT_A_TIME * len(as_rows) // as_rows.numel())  # in a slice; each is rounded for itself
    slices = zip(*(values.split(channels) for values in (as_rows, scales, zero_points)), strict=True)
    rounded = torch.cat([(squant_integers(rows, scale, zero_point, *ends) - zero_point) * scale
                         for rows, scale, zero_point in slices])
    return rounded.reshape(by_channel.shape).transpose(0, axis)
