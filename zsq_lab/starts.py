"""Where a block starts: its weights rounded without training, in the best of three ways; what the bias mends; the errors.

To nearest, in closed form (`rounding`, no image at all), or by second order (`second_order`, from what images bring to each
layer). Which of them is best is measured, block by block.
"""
import copy

import torch
from torch import Tensor, nn

from .blocks import block_inputs, block_outputs, chained
from .layers import QuantLayer, quant_layers
from .rounding import squant_rounded
from .second_order import round_in_order
from .tasks import relative_error

JUDGED = 32  # images that a block's error is measured on


def layers_of(block: nn.Module) -> list[QuantLayer]:
    """The quantized layers of a block, which may be one itself."""
    return [block] if isinstance(block, QuantLayer) else list(quant_layers(block).values())


@torch.no_grad()
def best_start(block: nn.Module, inputs: Tensor, wanted: Tensor) -> tuple[float, float, list[Tensor]]:
    """Round without training: to nearest, in closed form (SQuant) or by second order, whichever leaves the lower error.

    The winner's biases and scales are set in the block, its weights are returned and the block keeps the exact ones:
    (error with all weights rounded to nearest, the winner's error, its weights). Compared after `correct_bias`.
    """
    layers, before = layers_of(block), copy.deepcopy(block.state_dict())
    exact, found = [layer.layer.weight.clone() for layer in layers], []
    for start in (_nearest, _closed_form, lambda layers: round_in_order(layers, block, inputs)):
        start(layers)
        errors = correct_bias(block, inputs, wanted)
        found.append((*errors, [layer.layer.weight.clone() for layer in layers], copy.deepcopy(block.state_dict())))
        block.load_state_dict(before)
    _, error, weights, state = min(found, key=lambda one: one[1])
    block.load_state_dict(state)
    set_weights(layers, exact)
    return found[0][0], error, weights


@torch.no_grad()
def starting_error(student: nn.Module, teacher: nn.Module, images: Tensor, names: list[str]) -> float:
    """Mean over the blocks of the error that rounding in closed form leaves, each for itself on the teacher's activations.

    The student, whose ranges are set, stays as it is.
    """
    errors, inputs, follows = [], None, chained(teacher, names, images[:2])
    for name in names:
        inputs = inputs if inputs is not None and name in follows else block_inputs(teacher, name, images)
        wanted = block_outputs(teacher.get_submodule(name), inputs)
        block = copy.deepcopy(student.get_submodule(name))
        _closed_form(layers_of(block))
        errors.append(correct_bias(block, inputs, wanted)[1])
        inputs = wanted
    return sum(errors) / len(errors)


@torch.no_grad()
def correct_bias(block: nn.Module, inputs: Tensor, wanted: Tensor) -> tuple[float, float]:
    """Subtract the mean error of each output channel from the bias of the block's last layer, where that lowers the error.

    Returns |block(x) - y|^2 / |y|^2 before and after, over the first JUDGED images of inputs x and wanted outputs y.
    """
    x, y, bias = inputs[:JUDGED], wanted[:JUDGED], layers_of(block)[-1].layer.bias
    output = block_outputs(block, x)
    before = relative_error(output, y).item()
    if bias is None or y.ndim < 2 or y.shape[1] != len(bias):
        return before, before
    old = bias.clone()
    bias.sub_((output - y).mean([d for d in range(y.ndim) if d != 1]))
    after = relative_error(block_outputs(block, x), y).item()
    if after >= before:
        bias.copy_(old)
    return before, min(before, after)


@torch.no_grad()
def set_weights(layers: list[QuantLayer], weights: list[Tensor]) -> None:
    """Copy weights, one tensor for each layer, into the layers."""
    for layer, weight in zip(layers, weights, strict=True):
        layer.layer.weight.copy_(weight)


def _nearest(layers: list[QuantLayer]) -> None:
    set_weights(layers, [layer.weight_quantizer(layer.layer.weight) for layer in layers])


def _closed_form(layers: list[QuantLayer]) -> None:
    set_weights(layers, [squant_rounded(layer) for layer in layers])
