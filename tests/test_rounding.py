"""Closed-form rounding: flips by hand and by brute force, the sums that SQuant promises, and whole students."""
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import LAYER_TYPES, layer_and_norm, snapshot
from torch import Tensor

from zsq_lab import rounding
from zsq_lab.layers import QuantConfig, convert, quant_layers
from zsq_lab.quantizer import choose_qparams
from zsq_lab.ranges import fit_weight_ranges
from zsq_lab.rounding import flip_sums, squant, squant_integers, squant_rounded

SIGNED = (-8, 7)


def all_allowed(error: Tensor) -> Tensor:
    return torch.ones_like(error, dtype=torch.bool)


def test_flips_worked_by_hand():
    error = torch.tensor([[0.4, 0.3, 0.4, -0.1],      # sum 1.0: one flip, of the first of the two largest
                          [-0.45, -0.4, -0.3, -0.4],  # sum -1.55: two flips upwards
                          [0.2, 0.2, -0.1, 0.1]])     # sum 0.4: none
    assert flip_sums(error, all_allowed(error)).tolist() == [[-1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]


def test_a_forbidden_element_is_passed_over():
    error = torch.tensor([[0.4, 0.3, 0.4]])
    assert flip_sums(error, torch.tensor([[False, True, True]])).tolist() == [[0, 0, -1]]
    assert flip_sums(error, torch.zeros(1, 3, dtype=torch.bool)).tolist() == [[0, 0, 0]]


errors = st.lists(st.floats(-0.5, 0.5), min_size=1, max_size=9).map(lambda v: torch.tensor([v], dtype=torch.float64))


@given(errors)
@settings(max_examples=150, deadline=None)
def test_after_the_flips_a_row_sums_to_half_a_step_at_most(error):
    flips = flip_sums(error, all_allowed(error))
    assert (error + flips).sum().abs() <= 0.5 + 1e-9
    assert ((error + flips).abs() <= 1).all(), "still next to the exact value"
    assert flips.abs().sum() == error.sum().abs().round()


@given(errors)
@settings(max_examples=60, deadline=None)
def test_no_other_choice_of_flips_costs_less(error):
    """Against all 2^N choices: among those with the smallest sum, none has a smaller squared error."""
    ours = (error + flip_sums(error, all_allowed(error)))[0]
    other_side = torch.where(error[0] > 0, -1.0, 1.0).double()
    choices = torch.tensor(list(product([0.0, 1.0], repeat=error.shape[1])), dtype=torch.float64)
    choices = choices * other_side + error[0]
    allowed = choices[choices.sum(1).abs() <= 0.5 + 1e-9]
    assert ours.square().sum() <= allowed.square().sum(1).min() + 1e-9


@pytest.mark.parametrize("shape", [(4, 6, 9), (8, 3, 25), (5, 16, 1), (4, 1, 9)])
@pytest.mark.parametrize("seed", range(3))
def test_sums_of_kernels_and_channels_are_what_squant_promises(shape, seed):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.3
    scale = weight.abs().amax((1, 2), keepdim=True) / 120  # nothing is clipped, each weight may go either way
    integers = squant_integers(weight, scale, torch.zeros(1), -128, 127)
    exact = weight / scale
    error = integers - exact
    assert torch.equal(integers, integers.round()) and integers.min() >= -128 and integers.max() <= 127
    assert (error.abs() <= 1 + 1e-4).all(), "one of the two neighbours"
    assert (error.sum(2).abs() <= 1 + 1e-4).all(), "half a step for each kernel, and one flip more for its channel"
    assert (error.sum((1, 2)).abs() <= 0.5 + 1e-3).all(), "each channel"
    nearest = exact.round() - exact
    if shape[1] * shape[2] > 20:
        assert error.sum((1, 2)).abs().sum() < nearest.sum((1, 2)).abs().sum()


weights = st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 9), st.integers(0, 2**20)).map(
    lambda drawn: 6 * torch.rand(drawn[:3], generator=torch.Generator().manual_seed(drawn[3])).double() - 3)


@given(weights)
@settings(max_examples=100, deadline=None)
def test_the_channel_step_moves_a_kernel_from_half_a_step_to_one_at_most(weight):
    """Kernels alone, each as its own channel, keep to half a step; of those in a channel, some go up to a whole one."""
    def sums(weight: Tensor) -> Tensor:
        return (squant_integers(weight, torch.ones(1), torch.zeros(1), *SIGNED) - weight).sum(2)

    alone, together = sums(weight.reshape(-1, 1, weight.shape[2])).reshape(weight.shape[:2]), sums(weight)
    assert (alone.abs() <= 0.5 + 1e-9).all()
    assert (together.sum(1).abs() <= 0.5 + 1e-9).all(), "each channel"
    moved = (together - alone).round()
    torch.testing.assert_close(together - alone, moved)
    assert (together[moved != 0].abs() >= 0.5 - 1e-9).all() and (together.abs() <= 1 + 1e-9).all()
    assert torch.equal(moved.abs().sum(1), alone.sum(1).abs().round()), "no more kernels than are needed"


def test_a_kernel_beyond_half_a_step_by_hand():
    """Three kernels of one weight 0.6, each rounded to 1: the channel is 1.2 out, so one goes down to 0, 0.6 out."""
    integers = squant_integers(torch.full((1, 3, 1), 0.6), torch.ones(1), torch.zeros(1), *SIGNED)
    assert sorted(integers.flatten().tolist()) == [0, 1, 1]


def test_kernel_worked_by_hand():
    """Kernel errors +0.4 +0.4 +0.4 (one flip), and -0.2 -0.2 +0.1; the channel then sums to -0.1: no flip more."""
    weight = torch.tensor([[[0.6, 1.6, 2.6], [1.2, 2.2, 0.9]]])
    result = squant_integers(weight, torch.ones(1), torch.zeros(1), *SIGNED)
    assert sorted(result[0, 0].tolist()) in ([0, 2, 3], [1, 1, 3], [1, 2, 2])
    assert result[0, 1].tolist() == [1, 2, 1]


def test_integers_stay_on_the_grid_and_clipped_weights_stay_at_its_end():
    weight = torch.tensor([[[9.0, -20.0, 7.4, 6.6, 6.6, 6.6, 6.6]]])
    result = squant_integers(weight, torch.ones(1), torch.zeros(1), *SIGNED)
    assert result[0, 0, :3].tolist() == [7, -8, 7]
    assert result.max() <= 7 and (result[0, 0, 3:] >= 6).all()


def test_a_channel_of_zeros_stays_zero():
    weight = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))
    weight[1] = 0
    scale, zero_point = choose_qparams(weight, 4, symmetric=True, axis=0)
    assert (squant_integers(weight, scale, zero_point, *SIGNED)[1] == 0).all()


@pytest.mark.parametrize("convention", ["deployable", "literature"])
@pytest.mark.parametrize("kind", LAYER_TYPES)
def test_a_students_weights_end_on_their_grid(kind, convention):
    model, shape = layer_and_norm(kind)
    _, student = convert(model, QuantConfig(3, 8, convention=convention), shape)
    fit_weight_ranges(student, search=convention == "deployable")
    (layer,) = quant_layers(student).values()
    before = snapshot(student)
    exact = layer.layer.weight.clone()
    nearest = layer.weight_quantizer(exact)
    squant(student)
    weight = layer.layer.weight
    torch.testing.assert_close(layer.weight_quantizer(weight), weight)
    assert ((weight - nearest).abs() <= layer.weight_quantizer.scale * 1.001).all()
    assert {k for k, v in student.state_dict().items() if not torch.equal(v, before[k])} <= {
        name for name in before if name.endswith("layer.weight")}
    others = [d for d in range(weight.ndim) if d != layer.weight_quantizer.axis]
    inside = (nearest - exact).abs() <= layer.weight_quantizer.scale * 0.5001
    own, rounded = (((w - exact) * inside).sum(others, keepdim=True).abs() for w in (weight, nearest))
    assert (own <= torch.maximum(rounded, layer.weight_quantizer.scale * 0.5001)).all()


@pytest.mark.parametrize("convention", ["deployable", "literature"])
@pytest.mark.parametrize("at_a_time", [1, 20])
def test_slices_of_a_large_layer_round_as_the_whole(convention, at_a_time, monkeypatch):
    _, student = convert(torch.nn.Sequential(torch.nn.Linear(9, 7)), QuantConfig(3, 8, convention=convention), (9,))
    fit_weight_ranges(student, search=False)
    (layer,) = quant_layers(student).values()
    whole = squant_rounded(layer)
    monkeypatch.setattr(rounding, "AT_A_TIME", at_a_time)
    assert torch.equal(squant_rounded(layer), whole)
    assert not torch.equal(whole, layer.layer.weight)
