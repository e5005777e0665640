"""The quantizer against PyTorch's own fake quantization to the bit, LSQ's equations, and the laws of a grid."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from zsq_lab.quantizer import (
    Quantizer,
    choose_qparams,
    dequantize,
    fake_quantize,
    integer_range,
    qparams_from_range,
    quantize,
)

BITS = range(2, 17)
KINDS = pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "affine"])
values = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=30).map(torch.tensor)


def fitted(x: Tensor, bits: int, symmetric: bool, axis: int | None = None):
    return *choose_qparams(x, bits, symmetric=symmetric, axis=axis), *integer_range(bits, symmetric=symmetric)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def ties(scale: float, zero_point: int, quant_min: int, quant_max: int) -> Tensor:
    """Values exactly between two grid points, and the ends."""
    middle = torch.arange(quant_min - 3, min(quant_max, quant_min + 40) + 3) - zero_point + 0.5
    return torch.cat([middle, torch.tensor([quant_min - 0.5, quant_max + 0.5]) - zero_point]) * scale


@pytest.mark.parametrize("bits, symmetric, ends", [(2, True, (-2, 1)), (2, False, (0, 3)), (8, True, (-128, 127)),
                                                   (8, False, (0, 255)), (16, True, (-32768, 32767))])
def test_integer_range(bits, symmetric, ends):
    assert integer_range(bits, symmetric=symmetric) == ends


@pytest.mark.parametrize("bits", [0, 1, 17, -4, 4.0, "4", True, None])
def test_bits_outside_the_range_are_refused(bits):
    with pytest.raises(ValueError, match="bits must be a whole number from 2 to 16"):
        integer_range(bits, symmetric=True)


def test_parameters_worked_by_hand():
    scale, zero_point = choose_qparams(torch.tensor([-1.0, 3.0]), 2, symmetric=False)  # step 4/3, zero at 0.75
    assert scale == torch.tensor(4 / 3) and zero_point == 1
    scale, zero_point = choose_qparams(torch.tensor([-1.0, 3.0]), 2, symmetric=True)  # -3 .. 3 in three steps
    assert scale == 2 and zero_point == 0
    scale, zero_point = choose_qparams(torch.tensor([5.0, 255.0]), 8, symmetric=False)  # unsigned
    assert scale == 1 and zero_point == 0


@KINDS
@pytest.mark.parametrize("bits", BITS)
def test_per_tensor_agrees_with_pytorch_bit_for_bit(bits, symmetric):
    x = torch.cat([normal(500) * 3, ties(0.25, 1, *integer_range(bits, symmetric=symmetric))])
    ends = integer_range(bits, symmetric=symmetric)
    for_ties = torch.tensor(0.25), torch.tensor(1.0)
    for scale, zero_point in (choose_qparams(x[:400], bits, symmetric=symmetric), for_ties):
        oracle = torch.fake_quantize_per_tensor_affine(x, scale.item(), int(zero_point), *ends)
        assert torch.equal(fake_quantize(x, scale, zero_point, *ends), oracle)
        assert torch.equal(dequantize(quantize(x, scale, zero_point, *ends), scale, zero_point), oracle)


@KINDS
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("axis", [0, 1])
def test_per_channel_agrees_with_pytorch_bit_for_bit(bits, symmetric, axis):
    ends = integer_range(bits, symmetric=symmetric)
    x = normal(3, 5, 40) * torch.tensor([0.01, 1.0, 100.0]).reshape(3, 1, 1)
    edge = ties(0.5, 1, *ends)
    x = torch.cat([x, edge.expand(3, 5, -1)], dim=2)
    scale, zero_point = choose_qparams(x[..., :40], bits, symmetric=symmetric, axis=axis)
    assert scale.shape == ((3, 1, 1) if axis == 0 else (1, 5, 1))
    for s, z in [(scale, zero_point), (torch.full_like(scale, 0.5), torch.ones_like(zero_point))]:
        oracle = torch.fake_quantize_per_channel_affine(x, s.flatten(), z.flatten().to(torch.int32), axis, *ends)
        assert torch.equal(fake_quantize(x, s, z, *ends), oracle)
        assert torch.equal(dequantize(quantize(x, s, z, *ends), s, z), oracle)


@KINDS
def test_each_channel_gets_what_it_would_get_alone(symmetric):
    x = normal(4, 3, 7)
    scale, zero_point = choose_qparams(x, 5, symmetric=symmetric, axis=-2)
    for channel in range(3):
        alone = choose_qparams(x[:, channel], 5, symmetric=symmetric)
        assert (scale[0, channel, 0], zero_point[0, channel, 0]) == alone


@pytest.mark.parametrize("per_channel", [False, True])
def test_gradient_passes_straight_through_inside_and_stops_outside(per_channel):
    x = normal(6, 50) * 2
    scale = torch.full((6, 1), 0.3) if per_channel else torch.tensor(0.3)
    zero_point = torch.full_like(scale, 3.0)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    weights = normal(6, 50, seed=1)
    (fake_quantize(ours, scale, zero_point, 0, 7) * weights).sum().backward()
    (torch.fake_quantize_per_tensor_affine(theirs, 0.3, 3, 0, 7) * weights).sum().backward()
    assert torch.equal(ours.grad == 0, theirs.grad == 0)
    torch.testing.assert_close(ours.grad, theirs.grad)
    assert 0 < (ours.grad == 0).sum() < x.numel()


@pytest.mark.parametrize("shape", [(), (2,)], ids=["per tensor", "per channel"])
def test_a_tie_at_the_border_has_a_gradient_where_it_is_rounded_inwards(shape):
    """-8.5 goes to the even -8, which is on the grid; 7.5 goes to the even 8, which is not and is clamped."""
    x = torch.tensor([-8.5, 7.5, -8.25, 7.25, -8.75, 7.75]).reshape(3, 2) * 0.25
    x.requires_grad_()
    y = fake_quantize(x, torch.full(shape, 0.25), torch.zeros(shape), -8, 7)
    y.sum().backward()
    assert (y * 4).tolist() == [[-8, 7]] * 3
    assert x.grad.tolist() == [[1, 0], [1, 1], [0, 0]]


@given(bits=st.sampled_from(BITS), symmetric=st.booleans(), scale=st.floats(2.0**-30, 2.0**20, width=32),
       data=st.data())
@settings(max_examples=150, deadline=None)
def test_the_gradient_stops_at_the_float_where_pytorchs_does(bits, symmetric, scale, data):
    ends = integer_range(bits, symmetric=symmetric)
    zero_point = 0 if symmetric else data.draw(st.integers(*ends))
    border = (torch.tensor(ends) + torch.tensor([-0.5, 0.5]) - zero_point) * scale
    beside = border.view(torch.int32)[:, None] + torch.arange(-9, 10, dtype=torch.int32)
    x = beside.view(torch.float32)
    own, several, oracle = (x.clone().requires_grad_() for _ in range(3))
    fake_quantize(own, torch.tensor(scale), torch.tensor(float(zero_point)), *ends).sum().backward()
    fake_quantize(several, torch.full((2, 1), scale), torch.full((2, 1), float(zero_point)), *ends).sum().backward()
    torch.fake_quantize_per_tensor_affine(oracle, scale, zero_point, *ends).sum().backward()
    assert torch.equal(own.grad, oracle.grad)
    torch.testing.assert_close(several.grad, oracle.grad)  # there the gradient is scale * (1 / scale), nearly 1
    assert 0 < oracle.grad.sum() < oracle.numel()


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1, 1), (6, 1, 1, 1)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_gradient_of_the_scale_is_that_of_lsq(shape, channels_last):
    """Equation (3) of Esser et al. 2020, written out: round(v) - v inside, the end of the range outside."""
    x, weights = normal(6, 4, 5, 5) * 2, normal(6, 4, 5, 5, seed=1)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    scale = (torch.rand(shape, generator=torch.Generator().manual_seed(2)) * 0.2 + 0.2).requires_grad_()
    zero_point = torch.full(shape, 3.0)
    (fake_quantize(x, scale, zero_point, 0, 7) * weights).sum().backward()
    v = x / scale.detach()
    by_value = torch.where(v < -3.5, -3.0, torch.where(v > 4.5, 4.0, v.round() - v))
    expected = weights * by_value
    expected = expected.sum((1, 2, 3), keepdim=True) if shape[:1] == (6,) else expected.sum().reshape(shape)
    assert scale.grad.shape == shape
    torch.testing.assert_close(scale.grad, expected, rtol=1e-4, atol=1e-4)


def test_gradient_of_the_scale_agrees_with_pytorchs_learnable_quantizer():
    x, weights = normal(200) * 2, normal(200, seed=1)
    ours, theirs = torch.tensor(0.3, requires_grad=True), torch.tensor([0.3], requires_grad=True)
    (fake_quantize(x, ours, torch.tensor(2.0), 0, 7) * weights).sum().backward()
    oracle = torch._fake_quantize_learnable_per_tensor_affine(x, theirs, torch.tensor([2.0]), 0, 7, 1.0)
    (oracle * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad[0], rtol=1e-4, atol=1e-4)


@given(x=values, bits=st.sampled_from(BITS), symmetric=st.booleans())
@settings(max_examples=150, deadline=None)
def test_laws_of_a_fitted_grid(x, bits, symmetric):
    scale, zero_point, *ends = fitted(x, bits, symmetric)
    once = fake_quantize(x, scale, zero_point, *ends)
    assert torch.isfinite(once).all() and scale > 0
    assert torch.equal(fake_quantize(once, scale, zero_point, *ends), once), "idempotent"
    rounding = 4e-6 * x.abs().max()  # of the floats themselves, which 16 bits come near
    assert ((once - x).abs() <= scale / 2 + rounding).all(), "error at most half a step inside the range"
    order = x.argsort()
    assert (once[order].diff() >= 0).all(), "monotone"
    assert fake_quantize(torch.zeros(1), scale, zero_point, *ends) == 0, "zero is on the grid"
    assert ends[0] <= zero_point <= ends[1] and zero_point == zero_point.round()
    assert len(once.unique()) <= 2**bits


@given(x=values, bits=st.integers(2, 15), symmetric=st.booleans())
@settings(max_examples=80, deadline=None)
def test_one_more_bit_never_gives_a_wider_step(x, bits, symmetric):
    coarse, _ = choose_qparams(x, bits, symmetric=symmetric)
    fine, _ = choose_qparams(x, bits + 1, symmetric=symmetric)
    assert fine < coarse or (coarse == 1 and fine == 1)  # 1: all values are zero, or too small for a float's step


@KINDS
def test_more_bits_never_raise_the_squared_error(symmetric):
    x = normal(5000)
    errors = [(fake_quantize(x, *fitted(x, bits, symmetric)) - x).square().mean().item() for bits in BITS]
    assert errors == sorted(errors, reverse=True)
    assert errors[8] / errors[7] == pytest.approx(0.25, rel=0.1)  # a bit halves the step: a quarter of the error


@KINDS
def test_a_channel_of_zeros_stays_zero(symmetric):
    x = normal(3, 10)
    x[1] = 0
    scale, zero_point, *ends = fitted(x, 4, symmetric, axis=0)
    result = fake_quantize(x, scale, zero_point, *ends)
    assert torch.isfinite(result).all() and torch.isfinite(scale).all() and (scale > 0).all()
    assert (result[1] == 0).all() and (result[0] != 0).any()


def test_a_range_away_from_zero_is_widened_to_hold_it():
    scale, zero_point = qparams_from_range(torch.tensor([5.0, -9.0]), torch.tensor([9.0, -5.0]), 8, symmetric=False)
    assert torch.equal(scale, torch.full((2,), 9 / 255)) and torch.equal(zero_point, torch.tensor([0.0, 255.0]))


@pytest.mark.parametrize("x, problem", [(torch.tensor([1.0, torch.nan]), "NaN or infinity"),
                                        (torch.tensor([1.0, torch.inf]), "NaN or infinity"), (torch.ones(0), "empty")])
def test_bad_values_are_refused(x, problem):
    with pytest.raises(ValueError, match=problem):
        choose_qparams(x, 8, symmetric=True)


def test_integers_are_whole_and_stand_for_the_output():
    quantizer = Quantizer(4, symmetric=False)
    quantizer.set_range(torch.tensor(-1.0), torch.tensor(2.0))
    x = normal(100)
    integers = quantizer.integers(x)
    assert integers.dtype == torch.int32 and integers.min() == 0 and integers.max() == 15
    assert torch.equal(dequantize(integers, quantizer.scale, quantizer.zero_point), quantizer(x))


@pytest.mark.parametrize("training", [True, False])
def test_a_range_once_set_never_moves(training):
    quantizer = Quantizer(4, symmetric=True).train(training)
    quantizer.set_range(torch.tensor(-1.0), torch.tensor(1.0))
    before = quantizer.scale.item(), quantizer.zero_point.item()
    for factor in (1, 100, 1e6):
        quantizer(normal(50) * factor)
    assert (quantizer.scale.item(), quantizer.zero_point.item()) == before


def test_what_is_loaded_has_the_shape_of_the_file_and_the_type_of_the_quantizer():
    stored, quantizer = Quantizer(4, symmetric=False, axis=0), Quantizer(4, symmetric=False, axis=0).double()
    stored.set_range(torch.tensor([[-1.0], [-2.0]]), torch.tensor([[1.0], [3.0]]))
    quantizer.load_state_dict(stored.state_dict())
    for own, given in zip(quantizer.state_dict().values(), stored.state_dict().values(), strict=True):
        assert own.dtype == torch.float64 and torch.equal(own, given.double())


def test_a_disabled_quantizer_hands_on_the_very_tensor():
    quantizer = Quantizer(2, symmetric=True)
    quantizer.enabled = False
    x = normal(5)
    assert quantizer(x) is x


def test_a_learned_scale_moves_with_lsqs_step_size_factor():
    """Section 2.2 of the paper: the gradient is multiplied by 1 / sqrt(N * largest integer); the output is not."""
    x = normal(40)
    quantizer = Quantizer(4, symmetric=True)
    quantizer.set_range(torch.tensor(-1.0), torch.tensor(1.0))
    fixed = quantizer(x)
    quantizer.scale.requires_grad_(True)
    learned = quantizer(x)
    torch.testing.assert_close(learned, fixed)
    learned.sum().backward()
    plain = quantizer.scale.detach().clone().requires_grad_()
    fake_quantize(x, plain, quantizer.zero_point, -8, 7).sum().backward()
    torch.testing.assert_close(quantizer.scale.grad, plain.grad / (40 * 7) ** 0.5)


def test_a_scale_whose_gradient_would_be_no_number_counts_as_width_zero():
    x = torch.tensor([[1e-25, -1e-25], [1.0, -0.5]])
    scale, _ = choose_qparams(x, 4, symmetric=True, axis=0)
    assert scale[0] == 1 and scale[1] < 1
    assert (1 / scale.square()).isfinite().all()


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_small_values_in_half_precision_have_a_scale(kind):
    x = (1e-3 * torch.randn(64, generator=torch.Generator().manual_seed(0))).to(kind)
    scale, zero_point = choose_qparams(x, 8, symmetric=True)
    assert scale.dtype == torch.float32 and torch.equal(scale, choose_qparams(x.float(), 8, symmetric=True)[0])
    assert fake_quantize(x, scale, zero_point, -128, 127).abs().max() > 0
    assert choose_qparams(x, 16, symmetric=False)[1].isfinite().all()
