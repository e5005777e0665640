"""The simulation to the last bit: layers and sums of a deployed program computed in whole numbers.

The deployed program of `deploy` rounds where integers round, but adds up in floats, and now and then that decides on
which side of a tie a number falls. Here nothing is rounded but what the integer kernel rounds: predictions equal the
exported file's. Each layer is taken together with the quantizer behind it. Notebook 09 works one by hand.
"""
from dataclasses import dataclass

import torch
from torch import Tensor

from .deploy import grids, layer_parts
from .program import QUANTIZE, Program, Step, Value, without_unused
from .quantizer import Quantizer


def exact(program: Program) -> Program:
    """The deployed program with each layer computed in whole numbers, as an integer runtime does.

    Sums of floats are rounded on the way, and now and then that decides on which side of a tie a number falls; here
    nothing is rounded but what the integer kernel rounds.
    """
    found, users, steps = grids(program), program.users(), list(program.steps)
    for index, step in enumerate(program.steps):
        layer, readers = layer_parts(step), users.get(Value(index), [])
        if len(readers) != 1 or program.steps[readers[0]].name != QUANTIZE:
            continue
        output = program.steps[readers[0]].quantizer
        plain_sum = step.name == "add" and step.options.get("alpha", 1) == 1
        if plain_sum and all(isinstance(a, Value) and a in found for a in step.args):
            kernel = IntegerSum(*(found[a] for a in step.args), output)
            steps[readers[0]] = Step("integer_sum", step.args, step.shape, kernel)
        if not layer or not all(isinstance(a, Value) and a in found for a in layer[:2]):
            continue
        weight = layer[1] if step.name == "convolution" else program.steps[layer[1].step].args[0]
        quantizer = found[weight]
        integers = quantizer.integers(program.steps[weight.step].args[0]).float()
        kernel = IntegerLayer(step, found[layer[0]], integers, quantizer.scale.reshape(-1), output)
        steps[readers[0]] = Step("integer_layer", (layer[0],), step.shape, kernel)
    return without_unused(Program(steps, program.outputs, program.image_shape)).eval()


@dataclass(frozen=True)
class IntegerLayer:
    """A layer and the quantizer behind it, computed as integer kernels do: whole numbers up to the rounding at the end.

    layer: the step that it stands for. The sums are whole numbers in floats, which is exact up to 2**24.
    """

    layer: Step
    input: Quantizer
    weight: Tensor
    weight_scale: Tensor
    output: Quantizer

    def __call__(self, x: Tensor) -> Tensor:
        """Numbers on the input's grid to numbers on the output's grid."""
        scale, bias = self.input.scale.reshape(()), layer_parts(self.layer)[2]
        whole = (x / scale).round()
        step_size = scale * self.weight_scale
        if self.layer.name == "addmm":
            total = torch.nn.functional.linear(whole, self.weight)
        else:
            total = torch.ops.aten.convolution(whole, self.weight, None, *self.layer.args[3:])
        channels = (1, -1, *[1] * (total.ndim - 2))
        ratio = (step_size / self.output.scale.reshape(())).reshape(channels)
        if bias is not None:  # perhaps beyond 2**24, where a channel has small weights: rounded once, like int32 to float
            start = (bias.double() / step_size.double()).round().reshape(channels)
            total = total.add_(start.float()) if start.abs().max() < 2**22 else total.double().add_(start).float()
        q = total.mul_(ratio).round_().add_(self.output.zero_point).clamp_(self.output.quant_min, self.output.quant_max)
        return q.sub_(self.output.zero_point).mul_(self.output.scale.reshape(()))


@dataclass(frozen=True)
class IntegerSum:
    """A sum of two tensors and the quantizer behind it, rounded as the runtime's fused multiply-adds do."""

    first: Quantizer
    second: Quantizer
    output: Quantizer

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Numbers on the grids of both inputs to numbers on the output's grid."""
        out = self.output.scale.reshape(())
        ratios = [q.scale.reshape(()) / out for q in (self.first, self.second)]
        fixed = self.output.zero_point - (ratios[0] * self.first.zero_point + ratios[1] * self.second.zero_point)
        whole = [(x / q.scale.reshape(())).round() + q.zero_point for x, q in ((a, self.first), (b, self.second))]
        total = (whole[0].double() * ratios[0].double() + fixed.double()).float()
        total = (whole[1].double() * ratios[1].double() + total.double()).float()
        q = total.round_().clamp_(self.output.quant_min, self.output.quant_max)
        return q.sub_(self.output.zero_point).mul_(out)
