"""The whole-number simulation, held against integers in NumPy: layers, sums, and which steps they replace."""
import numpy as np
import pytest
import torch
from exported import NETWORKS, Between, deployed, student
from networks import IMAGE, awaken, images, teach
from torch import nn

from zsq_lab.deploy import deploy, grids, layer_parts
from zsq_lab.integer_program import IntegerSum, exact
from zsq_lab.integer_reference import convolve
from zsq_lab.program import QUANTIZE, Value
from zsq_lab.quantizer import Quantizer


def grid(low: float, high: float, bits: int = 8) -> Quantizer:
    quantizer = Quantizer(bits, symmetric=False)
    quantizer.set_range(torch.tensor(low), torch.tensor(high))
    return quantizer


def integers(x: torch.Tensor, quantizer: Quantizer) -> np.ndarray:
    """Those of numbers on the grid, the zero point taken off."""
    whole = (x / quantizer.scale.reshape(())).double()
    assert (whole - whole.round()).abs().max() < 1e-3, "they are not on the grid"
    return whole.round().long().numpy()


def kinds(program) -> list[str]:
    return [step.name for step in program.steps]


def test_layers_and_sums_are_taken_with_the_quantizer_behind_them():
    _, program = deployed("residual")
    before = kinds(program)
    after = kinds(exact(program))
    assert after.count("integer_layer") == 3 and after.count("integer_sum") == 1, "the last layer answers in floats"
    assert "convolution" not in after and "add" not in after and "addmm" in after
    assert kinds(program) == before, "the program itself is left as it was"


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_nothing_changes_but_where_ties_fall(name):
    _, program = deployed(name)
    x = images(16)
    expected, got = program(x), exact(program)(x)
    assert (got - expected).norm() < 0.05 * expected.norm()
    assert ((got - expected).abs() > 1e-4 * expected.abs().max()).float().mean() < 0.3


def one_layer(bias: float, bits: int = 8):
    """A convolution with integers before and behind it: its deployed program and the index of the convolution."""
    network = awaken(nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 1)))
    with torch.no_grad():
        network[0].bias.copy_(bias * torch.tensor([1.0, -1, 0.5, -0.5, 0.1, 0]))
    program = deploy(student(network, bits, 8), IMAGE, images(32))
    return program, kinds(program).index("convolution")


@pytest.mark.parametrize("bias, bits", [(0.3, 8), (0.3, 3), (300.0, 8)])
@torch.no_grad()
def test_a_convolution_equals_integers_of_numpy(bias, bits):
    program, index = one_layer(bias, bits)
    step, found = program.steps[index], grids(program)
    x, weight, constant, _ = layer_parts(step)
    kernel = next(s for s in exact(program).steps if s.name == "integer_layer").function
    numbers = found[x](images(5))
    output = kernel.output
    got = integers(kernel(numbers), output) + int(output.zero_point)
    whole = integers(numbers, found[x])
    w = kernel.weight.long().numpy()
    scale = found[x].scale.double().reshape(()) * found[weight].scale.double().reshape(-1)
    start = (constant.double() / scale).round().long().numpy()
    total = convolve(whole, w, start, strides=(2, 2), pads=(1,) * 4, dilations=(1, 1), group=1)
    ratio = (scale / output.scale.double().reshape(())).numpy().reshape(1, -1, 1, 1)
    expected = np.clip(np.round(total * ratio) + int(output.zero_point), output.quant_min, output.quant_max)
    differs = got != expected  # the runtime's ratio is a float: a product next to a tie may fall to its other side
    assert differs.mean() < 0.002 and np.abs(got - expected).max() <= 1 and len(np.unique(got)) > 3


@torch.no_grad()
def test_a_linear_layer_becomes_one_too():
    network = teach(awaken(nn.Sequential(nn.Flatten(), nn.Linear(192, 7), nn.ReLU(), nn.Linear(7, 4))), images(8))
    program = deploy(student(network), IMAGE, images(32))
    whole = exact(program)
    assert kinds(whole).count("integer_layer") == 1
    torch.testing.assert_close(whole(images(6)), program(images(6)), rtol=0.05, atol=0.05)


@torch.no_grad()
def test_a_sum_equals_integers_of_numpy():
    a, b, out = grid(-1.0, 3.0), grid(0.0, 2.0, 6), grid(-0.5, 2.5, 7)
    draw = torch.Generator().manual_seed(0)
    x, y = a(4 * torch.rand(4000, generator=draw) - 1), b(2 * torch.rand(4000, generator=draw))
    got = integers(IntegerSum(a, b, out)(x, y), out) + int(out.zero_point)
    exactly = x.double() / out.scale.double().reshape(()) + y.double() / out.scale.double().reshape(())
    expected = (exactly.numpy().round() + int(out.zero_point)).clip(out.quant_min, out.quant_max)
    assert (got != expected).mean() < 0.01 and np.abs(got - expected).max() <= 1
    assert got.min() == 0 and got.max() == out.quant_max == 127, "it is cut off at both ends of the grid"


@torch.no_grad()
def test_a_sum_with_a_factor_stays_as_it_is():
    network = awaken(Between(lambda x: torch.add(x, x.relu(), alpha=0.5)))
    program, x = deploy(student(network), IMAGE, images(32)), images(9)
    assert kinds(exact(program)).count("add") == 1
    torch.testing.assert_close(exact(program)(x), program(x), rtol=0.02, atol=0.02)


def test_a_layer_whose_result_is_read_twice_stays_as_it_is():
    """Its float result is wanted as such: nothing may be rounded before."""
    _, program = deployed("residual")
    index = kinds(program).index("convolution")
    program.outputs = [*program.outputs, Value(index)]
    reader = next(i for i in program.users()[Value(index)])
    assert program.steps[reader].name == QUANTIZE
    both = exact(program)
    assert "convolution" in kinds(both), "an output is kept"
