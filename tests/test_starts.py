"""Where blocks start: the best of three roundings, the error it leaves, and a mean error that the bias takes away."""
import pytest
import torch
from networks import IMAGE, Mobile, awaken, images, same_state, snapshot, teach
from torch import nn

from zsq_lab.blocks import block_outputs, find_blocks
from zsq_lab.layers import QuantConfig, convert, quant_layers
from zsq_lab.ranges import fit_input_ranges, fit_weight_ranges
from zsq_lab.reconstruct import softly_rounded
from zsq_lab.rounding import squant
from zsq_lab.starts import best_start, correct_bias, starting_error
from zsq_lab.tasks import relative_error


def pair(model: nn.Module, bits: int) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    x = images(16)
    teacher, student = convert(teach(awaken(model), x), QuantConfig(bits, bits), IMAGE)
    fit_weight_ranges(student, search=True)
    fit_input_ranges(student, [x], search=True)
    return teacher, student, x


def test_a_block_starts_from_the_rounding_that_leaves_the_least():
    teacher, student, x = pair(Mobile(), bits=3)
    block, wanted = student.body, block_outputs(teacher.body, x)
    exact = [layer.layer.weight.clone() for layer in quant_layers(block).values()]
    nearest = relative_error(block_outputs(block, x), wanted).item()
    before, error, start = best_start(block, x, wanted)
    assert before == pytest.approx(nearest) and error < 0.7 * nearest
    assert all(torch.equal(own, layer.layer.weight) for own, layer in zip(exact, quant_layers(block).values(), strict=True))
    _, other, _ = pair(Mobile(), bits=3)
    squant(other.body)
    assert error <= correct_bias(other.body, x, wanted)[1] + 1e-6
    with softly_rounded(block, start):
        pass
    assert relative_error(block_outputs(block, x), wanted).item() == pytest.approx(error, rel=1e-3)


def test_the_mean_error_goes_into_the_bias():
    teacher, student, x = pair(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), bits=2)
    wanted = teacher(x)
    before, after = correct_bias(student, x, wanted)
    assert after < before
    assert (block_outputs(student, x) - wanted).mean((0, 2, 3)).abs().max() < 1e-4
    assert correct_bias(student, x, wanted)[1] == pytest.approx(after)


def test_the_starting_error_is_that_of_each_block_for_itself_and_changes_nothing():
    teacher, student, x = pair(Mobile(), bits=3)
    before, names, errors = snapshot(student), find_blocks(student, IMAGE), []
    found = starting_error(student, teacher, x, names)
    assert same_state(before, student.state_dict())
    squant(student)
    pooled = teacher.body(x).mean((2, 3))
    for block, own, seen in ((student.body, teacher.body, x), (student.fc, teacher.fc, pooled)):
        errors.append(correct_bias(block, seen, own(seen))[1])
    assert names == ["body", "fc"] and found == pytest.approx(sum(errors) / 2, rel=1e-4)
