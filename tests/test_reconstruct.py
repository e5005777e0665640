"""Block by block: which blocks there are, that each comes closer to its teacher, and that a resumed run is the same run."""
import pytest
import torch
from networks import IMAGE, Mobile, Residual, SharedConv, awaken, images, same_state, snapshot, teach
from torch import nn

from zsq_lab.efficientnet_lite import build
from zsq_lab.health import Stopped
from zsq_lab.layers import QuantConfig, convert
from zsq_lab.models import build as build_small
from zsq_lab.ranges import fit_input_ranges, fit_weight_ranges
from zsq_lab.reconstruct import find_blocks, reconstruct
from zsq_lab.resume import RunState


def pair(model, bits=4, shape=IMAGE, n=16):
    x = images(n, shape)
    teacher, student = convert(teach(awaken(model), x), QuantConfig(bits, bits), shape)
    fit_weight_ranges(student, search=True)
    fit_input_ranges(student, [x], search=True)
    return teacher, student, x


def test_blocks_of_known_networks():
    _, student, _ = pair(build_small("resnet20"), shape=(3, 16, 16), n=2)
    assert find_blocks(student, (3, 16, 16)) == ["conv1", *(f"layer{i}.{j}" for i in (1, 2, 3) for j in range(3)), "fc"]
    _, student = convert(build("efficientnet_lite0"), QuantConfig(), (3, 64, 64))
    assert find_blocks(student, (3, 64, 64)) == ["stem", *(f"blocks.{i}" for i in range(16)), "head", "classifier"]
    _, student, _ = pair(Mobile())
    assert find_blocks(student, IMAGE) == ["body", "fc"]


def test_a_layer_that_is_called_twice_is_left_alone():
    _, student, _ = pair(SharedConv())
    assert find_blocks(student, IMAGE) == ["stem"]


@pytest.mark.parametrize("network", [Residual, Mobile])
def test_every_block_and_the_output_come_closer_to_the_teacher(network):
    teacher, student, x = pair(network(), bits=3, n=64)
    kept, seen = snapshot(teacher), {}

    def distance():
        with torch.inference_mode():
            return ((student(x) - teacher(x)).square().sum() / teacher(x).square().sum()).item()
    before = distance()
    names = find_blocks(student, IMAGE)
    reconstruct(student, teacher, x, names, iterations=60, learning_rate=2e-3,
                on_block=lambda name, old, new: seen.update({name: (old, new)}))
    assert list(seen) == names
    assert sum(new for _, new in seen.values()) < 0.9 * sum(old for old, _ in seen.values())
    assert distance() < 0.8 * before
    assert same_state(kept, teacher.state_dict()) and not any(p.requires_grad for p in student.parameters())


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
    with pytest.raises(Stopped, match="reconstruction of block '.*' diverged at iteration .*lower the learning rate"):
        reconstruct(student, teacher, x, find_blocks(student, IMAGE), iterations=20, learning_rate=1e30)
