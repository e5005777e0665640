"""Data-free quantization by moving scale around (DFQ, Nagel et al. 2019): no image is ever made.

ReLU lets a positive factor pass: relu(s x) = s relu(x). So the factor of a channel may move from one layer into the
next until both have equal weight ranges (section 4.1). Channels far from zero hand their constant part on (4.2, bias
absorption), and the mean error that rounding leaves is subtracted from the bias (4.3). Notebook 02 does all three on
MobileNetV2.
"""
import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .bn_stats import remembered_activations, require_statistics
from .folding import FoldedBatchNorm, output_axis, replace_module
from .graph import Graph, trace
from .layers import quant_layers, quantization_off
from .trials import require_unchanged, takes_factors

ROUNDS = 20  # sweeps over all pairs; ranges are equal to a percent after about ten
NEGLIGIBLE = 1e-5  # a channel whose range is below this share of the largest is dead: no factor revives it
ABSORBED_DEVIATIONS = 3  # a channel's mean minus this many deviations is never reached by ReLU's kink


class ClippedReLU(nn.Module):
    """min(max(x, 0), cap) with a cap [C] for each channel: what ReLU6 becomes when its channels are rescaled."""

    def __init__(self, cap: Tensor):
        super().__init__()
        self.register_buffer("cap", cap)

    def forward(self, x: Tensor) -> Tensor:
        return torch.minimum(x.clamp(min=0), self.cap.reshape(1, -1, *[1] * (x.ndim - 2)))


@dataclass
class Pair:
    """Two layers with nothing but a folded BatchNorm and an activation between them."""

    first: nn.Module
    second: nn.Module
    norm: FoldedBatchNorm | None
    activation: nn.Module | None  # ReLU6 or ClippedReLU, None for ReLU or no activation
    rectified: bool


def find_pairs(graph: Graph) -> list[Pair]:
    """The pairs of layers between which a channel's scale can move without changing what the model computes."""
    return [pair for index in graph.layers() if (pair := _follow(graph, index))]


def _follow(graph: Graph, index: int) -> Pair | None:
    node = graph.nodes[index]
    pair = Pair(node.module, None, None, None, False)
    if len(graph.calls(pair.first)) > 1 or not takes_factors(pair.first, node.input_shape):
        return None
    while len(graph.consumers(index)) == 1:
        index = graph.consumers(index)[0]
        node = graph.nodes[index]
        module = node.module
        if module is not None and len(graph.calls(module)) > 1 and not isinstance(module, nn.ReLU):
            return None
        if index in graph.layers():
            pair.second = module
            if isinstance(pair.first, nn.Linear) != isinstance(module, nn.Linear):
                return None  # their channels lie in different dimensions
            if not takes_factors(module, node.input_shape):
                return None
            return pair if input_rows(module).shape[0] == output_rows(pair.first).shape[0] else None
        if isinstance(module, FoldedBatchNorm):
            pair.norm = module
        elif isinstance(module, nn.ReLU6 | ClippedReLU) and pair.activation is None:
            if isinstance(pair.first, nn.Linear) and len(node.input_shape) > 2:
                return None  # its channels lie last, where no ClippedReLU looks for them
            pair.activation, pair.rectified = module, True
        elif isinstance(module, nn.ReLU) or module is None and node.name in ("relu", "relu_"):
            pair.rectified = True
        elif not isinstance(module, nn.Identity | nn.Dropout | nn.Dropout2d | nn.ZeroPad2d):  # zero times any factor is zero
            return None
    return None


def output_rows(layer: nn.Module) -> Tensor:
    """The weight with one row [C_out, ...] for each output channel; a view that shares memory where it can."""
    weight = layer.weight.detach()
    if output_axis(layer) == 0:
        return weight.reshape(weight.shape[0], -1)
    per_group = weight.reshape(layer.groups, -1, *weight.shape[1:]).transpose(1, 2)
    return per_group.reshape(layer.out_channels, -1)


def input_rows(layer: nn.Module) -> Tensor:
    """The weight with one row [C_in, ...] for each input channel."""
    weight = layer.weight.detach()
    if output_axis(layer) == 1:
        return weight.reshape(weight.shape[0], -1)
    groups = getattr(layer, "groups", 1)
    per_group = weight.reshape(groups, -1, *weight.shape[1:]).transpose(1, 2)
    return per_group.reshape(groups * weight.shape[1], -1)


def _scale_outputs(layer: nn.Module, factor: Tensor) -> None:
    weight = layer.weight
    if output_axis(layer) == 0:
        weight.mul_(factor.reshape(-1, *[1] * (weight.ndim - 1)))
    else:
        weight.view(layer.groups, -1, *weight.shape[1:]).mul_(
            factor.reshape(layer.groups, 1, -1, *[1] * (weight.ndim - 2)))
    if layer.bias is not None:
        layer.bias.mul_(factor)


def _scale_inputs(layer: nn.Module, factor: Tensor) -> None:
    weight = layer.weight
    if output_axis(layer) == 1:
        weight.mul_(factor.reshape(-1, *[1] * (weight.ndim - 1)))
    else:
        groups = getattr(layer, "groups", 1)
        weight.view(groups, -1, *weight.shape[1:]).mul_(factor.reshape(groups, 1, -1, *[1] * (weight.ndim - 2)))


def _cap_each_channel(model: nn.Module, pairs: list[Pair]) -> None:
    """Replace each pair's ReLU6 by one whose cap of 6 every channel has for itself."""
    for pair in pairs:
        if isinstance(pair.activation, nn.ReLU6):
            rows = output_rows(pair.first)
            clipped = ClippedReLU(rows.new_full((len(rows),), 6.0))
            replace_module(model, pair.activation, clipped)
            pair.activation = clipped


@torch.no_grad()
def equalize(teacher: nn.Module, image_shape: tuple[int, ...]) -> nn.Module:
    """A copy of a folded model whose neighbouring layers have equal weight ranges; its output is the same.

    ReLU6 takes part: its cap of 6 is rescaled with its channel, so that the output does not change (DFQ itself replaces
    ReLU6 by ReLU, which changes it). Raises ValueError where the output would change all the same.
    """
    model = copy.deepcopy(teacher)
    graph = trace(model, image_shape)
    pairs = find_pairs(graph)
    _cap_each_channel(model, pairs)
    for _ in range(ROUNDS):
        for pair in pairs:
            first, second = output_rows(pair.first).abs().amax(1), input_rows(pair.second).abs().amax(1)
            factor = (second / first).sqrt()  # r1 f = r2 / f = sqrt(r1 r2), eq. (11)
            alive = (first > NEGLIGIBLE * first.max()) & (second > NEGLIGIBLE * second.max())
            factor = torch.where(alive, factor, torch.ones_like(factor))
            _scale_outputs(pair.first, factor)
            _scale_inputs(pair.second, 1 / factor)
            if pair.norm is not None:
                pair.norm.mean.mul_(factor)
                pair.norm.std.mul_(factor)
            if pair.activation is not None:
                pair.activation.cap.mul_(factor)
    require_unchanged(graph, model, image_shape, "equalizing its weights", "call the layer, or use another recipe")
    return model


@torch.no_grad()
def absorb_biases(model: nn.Module, image_shape: tuple[int, ...]) -> nn.Module:
    """Move the part of a bias that ReLU never cuts, c = max(0, mean - 3 std), into the next layer's bias; in place.

    Above c, relu(x) = relu(x - c) + c, and the next layer turns the constant c into W c. A cap moves along:
    min(x, cap) = min(x - c, cap - c) + c. Exact where the pre-activation stays above c and the next layer does not pad
    with zeros, near enough elsewhere. Transposed convolutions, which spread a constant unevenly, take no part.
    """
    pairs = find_pairs(trace(model, image_shape))
    _cap_each_channel(model, pairs)
    for pair in pairs:
        if pair.norm is None or not pair.rectified or output_axis(pair.second) == 1:
            continue
        constant = (pair.norm.mean - ABSORBED_DEVIATIONS * pair.norm.std).clamp(min=0)
        if pair.activation is not None:
            constant = torch.minimum(constant, pair.activation.cap)
            pair.activation.cap.sub_(constant)
        pair.first.bias.sub_(constant)
        pair.norm.mean.sub_(constant)
        second = pair.second
        kernel = second.weight.reshape(*second.weight.shape[:2], -1).sum(2)  # the response to a constant, off the border
        groups = getattr(second, "groups", 1)
        passed = kernel.reshape(groups, -1, kernel.shape[1]) @ constant.reshape(groups, -1, 1)
        bias = second.bias if second.bias is not None else 0
        second.bias = nn.Parameter(passed.reshape(-1) + bias, requires_grad=False)
    return model


@torch.no_grad()
def correct_biases(student: nn.Module, image_shape: tuple[int, ...], *, seed: int = 0, samples: int = 64) -> None:
    """Subtract from each bias the mean error that weight rounding causes, E[(W_q - W) x], with x as BatchNorm remembers.

    Of a layer that is called several times: the mean over its calls.
    Changes `student` (ranges already set) in place. Raises ValueError for a model without BatchNorm statistics.
    """
    require_statistics(student, "bias correction")
    inputs: dict[str, list[Tensor]] = {}  # of each layer, one for each of its calls
    layers = quant_layers(student)
    handles = [quantizer.register_forward_pre_hook(_keep_mean(inputs, name))
               for name, layer in layers.items() for quantizer in layer.input_quantizers]
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(samples, *image_shape, generator=generator).to(next(student.parameters()).device)
    try:
        with quantization_off(student), remembered_activations(student, seed):
            student(images)
    finally:
        for handle in handles:
            handle.remove()
    for name, means in inputs.items():
        quantized, layer = layers[name], layers[name].layer
        if not all(takes_factors(layer, tuple(mean.shape)) for mean in means):
            continue
        error = quantized.weight_quantizer(layer.weight) - layer.weight
        bias = {} if layer.bias is None else {"bias": torch.zeros_like(layer.bias)}
        shifts = [_mean_of_channels(layer, functional_call(layer, {"weight": error, **bias}, (mean,))) for mean in means]
        shift = torch.stack(shifts).mean(0)  # one bias for all calls
        layer.bias = nn.Parameter((layer.bias if layer.bias is not None else 0) - shift, requires_grad=False)


def _keep_mean(inputs: dict[str, list[Tensor]], name: str):
    def hook(_quantizer, args):
        inputs.setdefault(name, []).append(args[0].mean(0, keepdim=True))
    return hook


def _mean_of_channels(layer: nn.Module, output: Tensor) -> Tensor:
    channel = output.ndim - 1 if isinstance(layer, nn.Linear) else 1
    return output.mean([d for d in range(output.ndim) if d != channel])
