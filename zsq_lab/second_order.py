"""Rounding a layer by what its inputs are like (Optimal Brain Quantization, Frantar & Alistarh 2022, by coordinate descent).

A layer's output error is e^T H e for each output channel, with e the channel's rounding errors and H the covariance of its
inputs: errors of inputs that move together can cancel. A mean error is what the bias takes away; but images from statistics
have not quite the means that photographs have, so that a share of it counts. One weight after the other goes to the grid
point at which the error is least, the others held fixed, until a few sweeps are done; and of several scales each channel
keeps the best. No gradient, seconds for a network.
"""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import BATCH, Reached, block_outputs
from .folding import output_axis
from .layers import QuantLayer

SWEEPS, COLUMNS = 4, 128  # over all weights; weights between which corrections are handed on one by one
RIDGE = 0.3  # added to H, as a share of its mean diagonal: what a few images cannot tell
MEANS_SHARE = 0.3  # of the squared mean inputs that counts although the bias takes their error away
FEW = 64  # weights of a channel up to which many scales are tried
SHARES = (torch.linspace(0.5, 1.15, 40), torch.linspace(0.7, 1.05, 6))  # of the scale that the range has: few, many weights
# Numbers in H and in the weights at all scales together, up to which a layer is rounded here: with as many, 4,700 inputs and
# 1,600 outputs, it takes a gigabyte and a minute on one core. ResNet-50's widest has half of them; the first linear of VGG-16,
# 25,088 to 4,096, would take 20 gigabytes and 1.7 hours.
MOST = 2**26


def is_known(layer: QuantLayer) -> bool:
    """Whether this file can round the layer: a linear or a zero-padded 2-d convolution, with a symmetric weight range, that
    is not too wide."""
    own = layer.layer
    plain = isinstance(own, nn.Conv2d) and own.padding_mode == "zeros" and not isinstance(own.padding, str)
    known = (isinstance(own, nn.Linear) or plain) and layer.weight_quantizer.symmetric and output_axis(own) == 0
    return known and _numbers(own) <= MOST


def _numbers(layer: nn.Module) -> int:
    """In the matrices H of a layer's groups, and in its weights at all scales that are tried."""
    inputs = layer.weight[0].numel()
    return inputs * (getattr(layer, "groups", 1) * inputs + len(SHARES[inputs > FEW]) * len(layer.weight))


@torch.no_grad()
def round_in_order(layers: list[QuantLayer], block: nn.Module, inputs: Tensor) -> None:
    """Round the layers of a block one after another, in the order in which they run, each on what it gets from those before.

    inputs: the block's, [N, ...]. Weights, weight scales and biases change in place: the mean error that is left in each
    channel goes into the bias. Layers that are not known are rounded to nearest.
    """
    order = []
    handles = [layer.register_forward_pre_hook(lambda layer, _: order.append(layer)) for layer in layers]
    block_outputs(block, inputs[:1])
    for handle in handles:
        handle.remove()
    for layer in dict.fromkeys(order):
        if not is_known(layer):
            layer.layer.weight.copy_(layer.weight_quantizer(layer.layer.weight))
            continue
        total, products, n = _moments_in(layer, block, inputs)
        mean = total / n
        covariance = products / n - (1 - MEANS_SHARE) * mean[:, :, None] * mean[:, None, :]
        weight, scale, shift = round_layer(layer, mean, covariance)
        layer.layer.weight.copy_(weight)
        layer.weight_quantizer.scale.copy_(scale)
        if layer.layer.bias is not None:
            layer.layer.bias.sub_(shift)


def _moments_in(layer: QuantLayer, block: nn.Module, inputs: Tensor) -> list:
    """`input_moments` of a layer, summed over all that the block's inputs bring to it; what comes after is not computed."""
    sums = []

    def watch(quantizer, _args, x):
        new = input_moments(layer.layer, x)
        sums[:] = [old + more for old, more in zip(sums, new, strict=True)] if sums else new
        if quantizer is layer.input_quantizers[-1]:
            raise Reached

    handles = [quantizer.register_forward_hook(watch) for quantizer in layer.input_quantizers]
    for batch in inputs.split(BATCH):
        try:
            block_outputs(block, batch)
        except Reached:
            pass
    for handle in handles:
        handle.remove()
    return sums


@torch.no_grad()
def input_moments(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, int]:
    """Sums over inputs x of a layer, as its weights meet them: [G, D], of products [G, D, D], and their number.

    G: groups, D: weights of an output channel; a layer that `is_known`.
    """
    if isinstance(layer, nn.Linear):
        parts = [x.reshape(1, -1, x.shape[-1]).transpose(1, 2)]
    elif layer.kernel_size == (1, 1) and layer.padding == (0, 0):
        parts = [_by_group(x[:, :, ::layer.stride[0], ::layer.stride[1]].flatten(2), layer.groups)]
    else:  # image by image: a batch of large ones, unfolded, takes gigabytes
        parts = (_by_group(F.unfold(image, layer.kernel_size, layer.dilation, layer.padding, layer.stride), layer.groups)
                 for image in x.split(1))
    total, products, n = 0, None, 0
    for seen in parts:
        other = seen.transpose(1, 2)
        total, n = total + seen.sum(2), n + seen.shape[2]
        products = seen @ other if products is None else products.baddbmm_(seen, other)
    return total, products, n


def _by_group(columns: Tensor, groups: int) -> Tensor:
    """[G, D, N * L] of columns [N, G * D, L]."""
    return columns.unflatten(1, (groups, -1)).permute(1, 2, 0, 3).flatten(2)


@torch.no_grad()
def descend(weight: Tensor, start: Tensor, scale: Tensor, covariance: Tensor, quant_min: int, quant_max: int,
            sweeps: int = SWEEPS) -> Tensor:
    """Integers [G, R, D] of weights [G, R, D] that lower e^T H e from the integers `start` on; zero point 0.

    scale: [G, R, 1]. covariance: H [G, D, D]. No step makes a row's error larger.
    """
    integers, size = start.clone(), covariance.diagonal(dim1=1, dim2=2)
    for _ in range(sweeps):
        for first in range(0, weight.shape[2], COLUMNS):
            block = slice(first, first + COLUMNS)
            slope = (integers * scale - weight) @ covariance[:, :, block]  # half of the error's gradient
            own = covariance[:, block, block]
            for column in range(own.shape[2]):
                at = first + column
                step = slope[:, :, column] / size[:, None, at] / scale[:, :, 0]
                better = (integers[:, :, at] - step).round().clamp(quant_min, quant_max)
                moved = (better - integers[:, :, at]) * scale[:, :, 0]
                integers[:, :, at] = better
                slope += moved[:, :, None] * own[:, column, None, :]
    return integers


@torch.no_grad()
def round_layer(layer: QuantLayer, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The rounded weight of a layer with a symmetric weight range, the scales that suit it, and the mean error per channel.

    mean: [G, D] and covariance [G, D, D] of its inputs. The layer keeps its own.
    """
    quantizer, groups = layer.weight_quantizer, len(covariance)
    weight = layer.layer.weight.reshape(groups, -1, covariance.shape[1])
    ridge = RIDGE * covariance.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-12)
    covariance = covariance + ridge[:, None, None] * torch.eye(weight.shape[2], device=weight.device)
    shares = SHARES[weight.shape[2] > FEW].to(weight)
    channels = weight.shape[1]
    rows = weight[:, :, None].expand(-1, -1, len(shares), -1).reshape(groups, -1, weight.shape[2])
    scale = (quantizer.scale.reshape(groups, channels, 1) * shares).reshape(groups, -1, 1)
    ends = quantizer.quant_min, quantizer.quant_max
    integers = descend(rows, (rows / scale).round().clamp(*ends), scale, covariance, *ends)
    wrong = integers * scale - rows
    error = ((wrong @ covariance) * wrong).sum(2).reshape(groups, channels, len(shares))
    best = error.argmin(2)[:, :, None, None]
    rounded = (integers * scale).reshape(groups, channels, len(shares), -1).gather(2, best.expand(-1, -1, 1, rows.shape[2]))
    scales = scale.reshape(groups, channels, len(shares)).gather(2, best[..., 0])
    shift = ((rounded[:, :, 0] - weight) @ mean[:, :, None]).reshape(-1)
    return rounded.reshape(layer.layer.weight.shape), scales.reshape(quantizer.scale.shape), shift
