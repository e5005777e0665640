"""Soft rounding: h(V) by hand, its two grid points and no other, the gradient that goes straight through."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zsq_lab.quantizer import Quantizer
from zsq_lab.soft_rounding import SoftRounding, inverse, rectified_sigmoid


def soft(weight: torch.Tensor, scale: float = 0.5, bits: int = 4, start: torch.Tensor | None = None) -> SoftRounding:
    quantizer = Quantizer(bits, symmetric=True)
    quantizer.scale.data.fill_(scale)
    return SoftRounding(quantizer, weight, quantizer(weight) if start is None else start)


def test_h_worked_by_hand():
    v = torch.tensor([0.0, 10.0, -10.0, 1.0])
    expected = [0.5, 1.0, 0.0, 1.2 / (1 + torch.tensor(-1.0).exp().item()) - 0.1]
    assert rectified_sigmoid(v).tolist() == pytest.approx(expected)


@given(st.floats(-1e4, 1e4))
@settings(max_examples=100, deadline=None)
def test_h_stays_between_zero_and_one(v):
    assert 0 <= rectified_sigmoid(torch.tensor(v)).item() <= 1


@given(st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_the_inverse_is_the_inverse(share):
    assert rectified_sigmoid(inverse(torch.tensor(share, dtype=torch.float64))).item() == pytest.approx(share, abs=1e-9)


def test_the_gradient_of_h_is_that_of_the_stretched_sigmoid_and_ends_where_it_is_clipped():
    v = torch.tensor([0.0, 0.7, 5.0, -5.0], requires_grad=True)
    rectified_sigmoid(v).sum().backward()
    inside = [1.2 * s * (1 - s) for s in (0.5, torch.tensor(0.7).sigmoid().item())]
    assert v.grad.tolist() == pytest.approx([*inside, 0.0, 0.0])


def test_the_start_is_on_the_side_that_was_asked_for_and_else_the_weight_itself():
    weight = torch.tensor([0.1, 0.2, 0.4, -0.1, -0.4])  # 0.2, 0.4, 0.8, -0.2, -0.8 steps
    assert soft(weight).share().tolist() == pytest.approx([0.2, 0.4, 0.8, 0.8, 0.2])
    other = soft(weight, start=torch.tensor([0.5, 0.0, 0.0, -0.5, -0.5]))
    assert other.share().tolist() == pytest.approx([0.55, 0.4, 0.45, 0.45, 0.2])
    assert other.rounded().tolist() == [0.5, 0.0, 0.0, -0.5, -0.5]


def test_training_never_leaves_the_two_neighbouring_grid_points():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(200, generator=generator)
    rounding, wanted = soft(weight), torch.randn(200, generator=generator)
    rounding.v.requires_grad_(True)
    optimizer = torch.optim.Adam([rounding.v], lr=0.2)
    low, high = (end.clamp(-8, 7) * 0.5 for end in ((weight / 0.5).floor(), (weight / 0.5).floor() + 1))
    for _ in range(60):
        optimizer.zero_grad()
        current = rounding(weight)
        assert ((current - low).abs().minimum((current - high).abs()) < 1e-6).all()
        (current - wanted).square().sum().backward()
        optimizer.step()
    rounded = rounding.rounded()
    assert ((rounded == low) | (rounded == high)).all()
    torch.testing.assert_close(rounding(weight), rounded)
    nearer = torch.where((wanted - low).abs() < (wanted - high).abs(), low, high)
    assert (rounded == nearer).float().mean() > 0.95


def test_straight_through_the_value_is_on_the_grid_and_the_gradient_that_of_h():
    weight = torch.tensor([0.1, 0.4])
    rounding = soft(weight)
    rounding.v.requires_grad_(True)
    value = rounding(weight)
    assert value.tolist() == [0.0, 0.5]
    own, = torch.autograd.grad(value.sum(), rounding.v)
    expected, = torch.autograd.grad(rounding.share().sum(), rounding.v)
    torch.testing.assert_close(own, 0.5 * expected)


def test_the_scale_learns_and_the_integers_stay():
    weight = torch.tensor([0.1, 0.4, -1.3])
    rounding = soft(weight)
    rounding.quantizer.scale.requires_grad_(True)
    rounding(weight).sum().backward()
    assert rounding.quantizer.scale.grad.item() == pytest.approx(0 + 1 - 3)
    rounding.quantizer.scale.data.fill_(0.6)
    torch.testing.assert_close(rounding.rounded(), torch.tensor([0.0, 0.6, -1.8]))
    torch.testing.assert_close(rounding.quantizer(rounding.rounded()), rounding.rounded())


def test_weights_beyond_the_range_are_clipped_to_its_end():
    weight = torch.tensor([10.0, -10.0, 3.6])
    rounding = soft(weight)
    assert rounding.rounded().tolist() == [3.5, -4.0, 3.5] and rounding(weight).tolist() == [3.5, -4.0, 3.5]
