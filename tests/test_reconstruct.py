"""Block by block: that each comes closer to its teacher, and that a resumed run is the same run."""
import pytest
import torch
from networks import IMAGE, Mobile, Residual, awaken, images, same_state, snapshot, teach
from torch import nn

from zsq_lab.blocks import find_blocks
from zsq_lab.health import Stopped
from zsq_lab.layers import QuantConfig, convert, quant_layers
from zsq_lab.ranges import fit_input_ranges, fit_weight_ranges
from zsq_lab.reconstruct import images_per_step, reconstruct
from zsq_lab.resume import RunState


def pair(model, bits=4, shape=IMAGE, n=16, activation_bits=None):
    x = images(n, shape)
    teacher, student = convert(teach(awaken(model), x), QuantConfig(bits, activation_bits or bits), shape)
    fit_weight_ranges(student, search=True)
    fit_input_ranges(student, [x], search=True)
    return teacher, student, x


@pytest.mark.parametrize("network", [Residual, Mobile])
def test_every_block_and_the_output_come_closer_to_the_teacher(network):
    teacher, student, x = pair(network(), bits=3, n=64)
    kept, seen = snapshot(teacher), {}

    def distance():
        with torch.inference_mode():
            return ((student(x) - teacher(x)).square().sum() / teacher(x).square().sum()).item()
    before = distance()
    names = find_blocks(student, IMAGE)
    reconstruct(student, teacher, x, names, iterations=60,
                on_block=lambda name, old, new: seen.update({name: (old, new)}))
    assert list(seen) == names
    assert sum(new for _, new in seen.values()) < 0.9 * sum(old for old, _ in seen.values())
    assert distance() < 0.8 * before
    assert same_state(kept, teacher.state_dict()) and not any(p.requires_grad for p in student.parameters())


def test_ranges_of_inputs_that_are_far_too_wide_are_learned():
    teacher, student, x = pair(Residual(), bits=8, activation_bits=4, n=64)
    fitted = {name: layer.input_quantizer.scale.item() for name, layer in quant_layers(student).items()}
    for layer in quant_layers(student).values():
        layer.input_quantizer.scale.data.mul_(2.5)
    reconstruct(student, teacher, x, find_blocks(student, IMAGE), iterations=60, scale_rate=10.0)
    inner = [name for name, layer in quant_layers(student).items() if layer.input_quantizer.bits == 4]
    assert len(inner) > 2
    assert all(quant_layers(student)[name].input_quantizer.scale.item() < 1.6 * fitted[name] for name in inner)


def test_the_blocks_error_is_that_of_its_output_on_the_inputs_that_it_gets():
    """The last block of a chain gives the network's output: its error is the network's."""
    teacher, student, x = pair(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)))
    seen = {}
    reconstruct(student, teacher, x, find_blocks(student, IMAGE), iterations=2, learning_rate=1e-3, batch_size=5,
                on_block=lambda name, old, new: seen.update({name: new}))
    with torch.inference_mode():
        wanted = teacher(x)
        error = ((student(x) - wanted).square().sum() / wanted.square().sum()).item()
    assert list(seen)[-1] == "4" and seen["4"] == pytest.approx(error, rel=1e-3)


def test_an_interrupted_run_ends_with_the_same_numbers(tmp_path):
    class Stop(Exception):
        pass

    results = []
    for broken in (False, True):
        teacher, student, x = pair(Residual())
        names = find_blocks(student, IMAGE)
        settings = {"iterations": 3, "learning_rate": 1e-3, "run": RunState(tmp_path / str(broken), every=0)}
        if broken:
            def interrupt(name, *_):
                if name == names[1]:
                    raise Stop
            with pytest.raises(Stop):
                reconstruct(student, teacher, x, names, on_block=interrupt, **settings)
            _, student, _ = pair(Residual())
        reconstruct(student, teacher, x, names, **settings)
        results.append(snapshot(student))
    assert same_state(*results)


def test_divergence_is_named():
    teacher, student, x = pair(Residual())
    with pytest.raises(Stopped, match="reconstruction of block '.*' diverged at iteration .*lower the learning rate .*, or use "
                                      "more bits or recipe 'distilled'"):
        reconstruct(student, teacher, x, find_blocks(student, IMAGE), iterations=20, learning_rate=1e30)


def test_after_training_every_weight_is_on_its_grid():
    teacher, student, x = pair(Residual(), bits=3)
    reconstruct(student, teacher, x, find_blocks(student, IMAGE), iterations=5)
    for layer in quant_layers(student).values():
        torch.testing.assert_close(layer.weight_quantizer(layer.layer.weight), layer.layer.weight, rtol=1e-5, atol=1e-6)


def test_large_inputs_come_in_smaller_batches():
    assert [images_per_step(torch.zeros(1, 2, side, side), 16) for side in (7, 28, 56, 112, 224)] == [16, 16, 4, 1, 1]
    assert images_per_step(torch.zeros(1, 5), 16) == 16
