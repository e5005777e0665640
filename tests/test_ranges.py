"""Ranges: the search against brute force and the textbook's Gaussian, constants read as themselves, and then frozen."""
import pytest
import torch
from networks import IMAGE, Residual, awaken, images, same_state, snapshot
from torch import Tensor

from zsq_lab.layers import QuantConfig, convert, quant_layers
from zsq_lab.quantizer import choose_qparams
from zsq_lab.ranges import fit_input_ranges, fit_weight_ranges, full_ranges, search_ranges


def student_of(model=None, bits: int = 4):
    return convert(model or awaken(Residual()), QuantConfig(bits, bits), IMAGE)[1]


def squared_error(x: Tensor, low: Tensor, high: Tensor, bits: int, symmetric: bool) -> Tensor:
    """Mean squared error of a range, with PyTorch's own quantization."""
    scale, zero_point = choose_qparams(torch.stack([low, high]), bits, symmetric=symmetric)
    ends = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
    return (torch.fake_quantize_per_tensor_affine(x, scale.item(), int(zero_point), *ends) - x).square().mean()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_search_finds_the_least_error_of_all_shrunk_ranges(bits, symmetric):
    x = images(3, (400,)) ** 3 + 0.5
    low, high = search_ranges(x, bits, symmetric=symmetric)
    for row in range(3):
        full = x[row].min().clamp(max=0), x[row].max().clamp(min=0)
        candidates = [squared_error(x[row], *(end * k / 64 for end in full), bits, symmetric) for k in range(1, 65)]
        found = squared_error(x[row], low[row], high[row], bits, symmetric)
        torch.testing.assert_close(found, torch.stack(candidates).min(), rtol=1e-4, atol=1e-9)
        assert found <= squared_error(x[row], *full, bits, symmetric) * (1 + 1e-5)


@pytest.mark.parametrize("bits, step", [(2, 0.9957), (3, 0.5860), (4, 0.3352), (5, 0.1881)])
def test_search_finds_the_textbooks_step_for_a_gaussian(bits, step):
    """Max (1960), "Quantizing for minimum distortion", table II: the best uniform step for N(0, 1)."""
    x = torch.randn(1, 200_000, generator=torch.Generator().manual_seed(0))
    low, high = search_ranges(x, bits, symmetric=False)
    scale, _ = choose_qparams(torch.cat([low, high]), bits, symmetric=False)
    assert scale.item() == pytest.approx(step, rel=0.12)  # his grid has no zero, ours has


@pytest.mark.parametrize("search", [True, False])
@pytest.mark.parametrize("batches", [1, 5, 50])
@pytest.mark.parametrize("constant", [1.0, -0.3, 250.0])
def test_constant_input_reads_its_own_range_however_many_batches_pass(batches, constant, search):
    student = student_of()
    fit_input_ranges(student, [torch.full((2, *IMAGE), constant)] * batches, search=search)
    quantizer = quant_layers(student)["stem"].input_quantizer
    assert quantizer.scale.item() == pytest.approx(abs(constant) / 255, rel=1e-6)
    torch.testing.assert_close(quantizer(torch.full((3,), constant)), torch.full((3,), constant))


def test_min_max_ranges_are_exact_and_independent_of_the_order():
    batches = list(images(30).split(7))
    scales = []
    for order in (batches, batches[::-1], [torch.cat(batches)]):
        student = student_of()
        fit_input_ranges(student, order, search=False)
        scales.append({name: layer.input_quantizer.scale.item() for name, layer in quant_layers(student).items()})
    x = torch.cat(batches)
    assert scales[0]["stem"] == pytest.approx((x.max() - x.min()).item() / 255)
    assert scales[1] == pytest.approx(scales[0], rel=1e-4) and scales[2] == pytest.approx(scales[0], rel=1e-4)


@pytest.mark.parametrize("search", [True, False])
def test_a_weight_channel_of_zeros_stays_zero_and_finite(search):
    model = awaken(Residual())
    with torch.no_grad():
        model.conv_a.weight[2] = 0
        model.bn_b.weight[1] = 0
    student = student_of(model)
    fit_weight_ranges(student, search=search)
    fit_input_ranges(student, [images(8)], search=search)
    for name, channel in (("conv_a", 2), ("conv_b", 1)):
        layer = quant_layers(student)[name]
        quantized = layer.weight_quantizer(layer.layer.weight)
        assert torch.isfinite(quantized).all() and (quantized[channel] == 0).all() and (quantized[0] != 0).any()
    assert torch.isfinite(student(images(4))).all()


def test_an_input_of_zeros_is_handled():
    student = student_of()
    fit_input_ranges(student, [torch.zeros(2, *IMAGE)], search=True)
    assert quant_layers(student)["stem"].input_quantizer(torch.zeros(3)).tolist() == [0, 0, 0]


def test_weight_ranges_are_those_of_each_output_channel():
    student = student_of()
    fit_weight_ranges(student, search=False)
    for layer in quant_layers(student).values():
        widest = layer.layer.weight.flatten(1).abs().amax(1)
        torch.testing.assert_close(layer.weight_quantizer.scale.flatten(), 2 * widest / 15)


@pytest.mark.parametrize("training", [False, True])
def test_ranges_are_frozen_whatever_passes_later(training):
    student = student_of()
    fit_weight_ranges(student, search=True)
    fit_input_ranges(student, [images(8)], search=True)
    student.train(training)
    before = snapshot(student)
    for factor in (1, 1000):
        student(factor * images(8, seed=2))
    assert same_state(before, student.state_dict())


def test_fitting_observes_the_unquantized_network_and_leaves_no_hook():
    student = student_of(bits=2)
    fit_weight_ranges(student, search=False)
    fit_input_ranges(student, [images(8)], search=False)
    first = {n: layer.input_quantizer.scale.clone() for n, layer in quant_layers(student).items()}
    fit_input_ranges(student, [images(8)], search=False)  # a second time, now that ranges are set
    assert all(torch.equal(first[n], layer.input_quantizer.scale) for n, layer in quant_layers(student).items())
    assert not any(m._forward_pre_hooks for layer in quant_layers(student).values() for m in layer.input_quantizers)


def test_sampling_depends_on_the_seed_only():
    scales = []
    for seed in (0, 0, 1):
        student = student_of()
        random_state = torch.get_rng_state()
        fit_input_ranges(student, images(40).split(20), search=True, seed=seed)
        assert torch.equal(torch.get_rng_state(), random_state)
        scales.append(torch.stack([layer.input_quantizer.scale for layer in quant_layers(student).values()]))
    assert torch.equal(scales[0], scales[1]) and not torch.equal(scales[0], scales[2])


def test_no_images_and_broken_images_are_named():
    with pytest.raises(ValueError, match="saw no input: pass at least one batch"):
        fit_input_ranges(student_of(), [], search=True)
    with pytest.raises(ValueError, match="the input of layer 'stem' has NaN or infinity: check the calibration images"):
        fit_input_ranges(student_of(), [torch.full((2, *IMAGE), torch.nan)], search=True)


def test_full_ranges():
    low, high = full_ranges(torch.tensor([[1.0, -2.0, 3.0], [4.0, 5.0, 6.0]]))
    assert low.tolist() == [-2, 4] and high.tolist() == [3, 6]
