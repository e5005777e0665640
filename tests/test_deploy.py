"""Placing quantizers for integers: where they move, which are added, and that nothing but the promised rounding
changes."""
import pytest
import torch
from exported import NETWORKS, deployed, student
from networks import IMAGE, Mobile, Residual, awaken, images, same_state, snapshot, teach
from torch import nn

from zsq_lab.deploy import NEW_BITS, deploy, grids, is_weight, layer_parts
from zsq_lab.layers import QuantConfig, quant_layers
from zsq_lab.program import INPUT, QUANTIZE, Value
from zsq_lab.recorder import record
from zsq_lab.recipes import quantize


def after(program, name):
    """The names of the steps behind each step called `name`."""
    users = program.users()
    return [[program.steps[i].name for i in users.get(Value(index), [])] for index, s in enumerate(program.steps)
            if s.name == name]


def test_every_layer_and_sum_of_a_residual_network_is_quantized_at_its_output():
    _, program = deployed("residual")
    assert after(program, "convolution") == [[QUANTIZE]] * 3 and after(program, "add") == [[QUANTIZE]]
    assert after(program, "mean") == [[QUANTIZE]] and after(program, "addmm") == [[]], "logits stay in floats"
    assert [program.steps[i].name for i in program.users()[INPUT]] == [QUANTIZE]


def test_ranges_of_the_student_are_kept_and_only_missing_ones_are_added():
    network = teach(awaken(Residual()), images(32))
    own = student(network)
    before = snapshot(own)
    program = deploy(own, IMAGE, images(32))
    scales = [float(q.scale) for layer in quant_layers(own).values() for q in layer.input_quantizers]
    placed = [float(s.quantizer.scale) for s in program.steps if s.name == QUANTIZE and not is_weight(s)]
    assert set(scales) <= set(placed) and len(placed) == len(scales) + 2, "before the sum and behind it"
    assert same_state(before, own.state_dict()), "the student is left untouched"


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_at_8_bits_little_changes(name):
    network, program = deployed(name)
    expected, got = network(images(16)), program(images(16))
    error = (got - expected).norm() / expected.norm()
    assert error < 0.12, float(error)


def test_a_shortcut_before_a_relu_keeps_its_negative_numbers():
    _, program = deployed("preactivation")
    (stem,) = [i for i, s in enumerate(program.steps) if s.name == "convolution"][:1]
    (place,) = program.users()[Value(stem)]
    assert program.steps[place].name == QUANTIZE and program.steps[place].quantizer.zero_point > 0


@pytest.mark.parametrize("name, bits", [("residual", 3), ("residual", 4), ("pooled", 4)])
def test_a_shortcut_is_not_squeezed_into_the_few_bits_of_its_neighbour(name, bits):
    _, program = deployed(name, bits)
    for index, step in enumerate(program.steps):
        if step.name == "add":
            assert all(grids(program)[value].bits == NEW_BITS for value in step.args), index
    assert {q.bits for i, s in enumerate(program.steps) if (p := layer_parts(s)) and p[0] in grids(program)
            and (q := grids(program)[p[0]])} == {bits, 8}, "layers read their own bits, the first one the image's"


def test_parts_of_the_channels_keep_ranges_of_their_own():
    """What one of them needs would cut the others off, or be too coarse for them."""
    _, program = deployed("parts")
    scale, behind = {}, [program.users()[Value(i)] for i, s in enumerate(program.steps) if s.name == "slice"]
    for part in (0, 1):
        (scale[part],) = [float(program.steps[i].quantizer.scale) for index, s in enumerate(program.steps) if s.name == "split"
                          for i in program.users()[Value(index, part)] if program.steps[i].name == QUANTIZE]
    assert scale[1] > 4 * scale[0]
    assert [[program.steps[i].name for i in users] for users in behind[1:]] == [[QUANTIZE]] * 2


@torch.no_grad()
def test_without_branches_nothing_changes_but_the_bias():
    layers = (nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.Flatten(), nn.Linear(80, 3))
    network = teach(awaken(nn.Sequential(*layers)), images(8))
    own = student(network)
    program = deploy(own, IMAGE, images(8))
    torch.testing.assert_close(program(images(4)), own(images(4)), rtol=1e-3, atol=2e-2)
    assert len(program.quantizers) == len(record(own, IMAGE).quantizers)


def test_biases_lie_on_the_accumulators_grid_and_fit_32_bits():
    network = teach(awaken(Mobile()), images(32))
    with torch.no_grad():
        network.body[0].weight[2] = 1e-12  # a channel that hardly has weights, and a bias beside it
        network.body[1].running_var[2] = 1.0
        network.body[1].bias[2] = 5.0
    program = deploy(student(network), IMAGE, images(32))
    found = grids(program)
    for step in program.steps:
        if (parts := layer_parts(step)) and parts[2] is not None:
            step_size = found[parts[0]].scale.double() * found[parts[1]].scale.reshape(-1).double()
            integers = parts[2].double() / step_size
            assert torch.allclose(integers, integers.round(), rtol=1e-6) and integers.abs().max() < 2**31


def test_bounds_of_clamps_lie_on_the_grid():
    network = teach(awaken(Mobile()), images(32))
    program = deploy(student(network, recipe="dfq"), IMAGE, images(32))
    found = grids(program)
    for step in program.steps:
        if step.name in ("hardtanh", "minimum"):
            bound = torch.as_tensor(step.args[-1], dtype=torch.float32)
            assert torch.allclose(found[step.args[0]](bound), bound)


def test_models_that_no_integer_runtime_takes_are_refused():
    network = awaken(Residual())
    with pytest.raises(ValueError, match="no quantized layer"):
        deploy(network, IMAGE, images(4))
    with pytest.raises(ValueError, match="at most 8"):
        deploy(student(network, 9), IMAGE, images(4))
    literature = quantize(network, QuantConfig(8, 8, convention="literature"), "rtn-noise", image_shape=IMAGE).model
    with pytest.raises(ValueError, match="convention 'literature'"):
        deploy(literature, IMAGE, images(4))
    for wrong in (images(4) * float("nan"), images(4)[:0]):
        with pytest.raises(ValueError, match="calibration images"):
            deploy(student(network), IMAGE, wrong)
