"""Programs: every way of writing a model gives steps that compute the same,
and what cannot be written down is refused."""
import pytest
import torch
import torch.nn.functional as F
from exported import NETWORKS, Function, student
from networks import IMAGE, LAYER_TYPES, SharedConv, awaken, images, layer_and_norm, snapshot
from torch import nn

from zsq_lab.program import QUANTIZE
from zsq_lab.recorder import record


def count_hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_the_program_computes_what_the_model_computes(name):
    network = awaken(NETWORKS[name]())
    for model in (network, student(network)):
        before, hooks = snapshot(model), count_hooks(model)
        program = record(model, IMAGE)
        for n in (1, 7):
            torch.testing.assert_close(program(images(n)), model(images(n)))
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
        assert count_hooks(model) == hooks


@pytest.mark.parametrize("kind", LAYER_TYPES)
@torch.no_grad()
def test_all_kinds_of_layers(kind):
    network, shape = layer_and_norm(kind)
    torch.testing.assert_close(record(network, shape)(images(3, shape)), network(images(3, shape)))


@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_linear_layers_that_read_every_position_take_batches_of_any_size(bias):
    network = awaken(nn.Sequential(nn.Flatten(2), nn.Linear(64, 6, bias=bias), nn.ReLU(), nn.Linear(6, 5, bias=bias)))
    program = record(network, IMAGE)
    for n in (1, 7):
        torch.testing.assert_close(program(images(n)), network(images(n)))


@torch.no_grad()
def test_quantizers_stay_in_one_piece_and_call_sites_apart():
    model = student(awaken(SharedConv()))
    program = record(model, IMAGE)
    kinds = [step.name for step in program.steps]
    assert kinds.count(QUANTIZE) == 6 and "round" not in kinds and "clamp" not in kinds
    torch.testing.assert_close(program(images(3)), model(images(3)))


def test_the_steps_read_like_the_formula():
    layers = (nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(256, 2))
    lines = str(record(awaken(nn.Sequential(*layers)), IMAGE))
    assert [line.split("(")[0] for line in lines.splitlines()] == ["%0 = convolution", "%1 = relu", "%2 = view",
                                                                   "%3 = addmm"]
    assert "convolution(image, tensor[4, 3, 1, 1], tensor[4], [1, 1]" in lines


def _changes_a_view(x):
    y = x.flatten(1)
    y.relu_()
    return x.sum((1, 2, 3))


def _writes_into(x):
    x[:, 0] = 0
    return x


@pytest.mark.parametrize("function, message", [
    (_changes_a_view, "view was changed in place"), (_writes_into, "view was changed in place"),
    (lambda x: x * len(x), "something else than the model"),
    (lambda x: x + torch.ones(len(x), 1, 1, 1), "batches of any size"),
    (lambda x: x if x.sum() > 1e9 else x * x.mean().item(), "something else than the model"),
    (lambda x: torch.ones(2), "does not depend on its input")])
def test_what_cannot_be_written_down_is_refused(function, message):
    with pytest.raises(ValueError, match=message):
        record(Function(function), IMAGE)


@torch.no_grad()
def test_unused_steps_are_left_out_and_several_outputs_come_back():
    def function(x):
        x.abs()
        low, high = x.split([1, 2], 1)
        return {"low": F.relu(low), "high": high}
    program = record(Function(function), IMAGE)
    assert "abs" not in str(program)
    low, high = program(images(3))
    assert torch.equal(low, images(3)[:, :1].relu()) and torch.equal(high, images(3)[:, 1:])
