"""Second-order rounding: moments against unfolding by hand, descent against all roundings, a layer against its own output."""
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from networks import IMAGE, LAYER_TYPES, Mobile, awaken, images, layer_and_norm
from torch import nn

from zsq_lab.layers import QuantConfig, QuantLayer, convert, quant_layers
from zsq_lab.quantizer import Quantizer
from zsq_lab.ranges import fit_input_ranges, fit_weight_ranges
from zsq_lab.second_order import descend, input_moments, is_known, round_in_order, round_layer


def moments(n: int, seed: int = 0) -> torch.Tensor:
    x = torch.randn(n, 4 * n, generator=torch.Generator().manual_seed(seed)) + torch.randn(1, 4 * n)
    return (x @ x.T / x.shape[1])[None]


@pytest.mark.parametrize("layer, shape", [
    (nn.Conv2d(3, 4, 3, padding=1, stride=2), (5, 3, 6, 6)), (nn.Conv2d(4, 4, 3, groups=4), (5, 4, 6, 6)),
    (nn.Conv2d(6, 4, 1, groups=2), (5, 6, 3, 3)), (nn.Conv2d(3, 2, 1, stride=2), (2, 3, 5, 5)), (nn.Linear(7, 3), (6, 7))])
def test_the_moments_are_those_of_the_products_that_make_the_output(layer, shape):
    """Sum and sum of squares of the outputs follow from the inputs' moments: w m and w H w."""
    layer.bias.data.zero_()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 0.5
    total, products, n = input_moments(layer, x)
    weight = layer.weight.detach().reshape(len(total), -1, total.shape[1])
    with torch.no_grad():
        output = layer(x).transpose(0, 1).flatten(1)
    assert n == output.shape[1]
    torch.testing.assert_close((weight @ total[:, :, None]).reshape(-1), output.sum(1), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(((weight @ products) * weight).sum(2).reshape(-1), output.square().sum(1), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("groups", [1, 2])
def test_no_more_than_one_image_is_unfolded_at_once(monkeypatch, groups):
    """Eight of 224x224 with 64 channels would take two gigabytes."""
    layer = nn.Conv2d(4, 6, 3, padding=1, groups=groups)
    x = torch.randn(5, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    seen = F.unfold(x, 3, padding=1).unflatten(1, (groups, -1)).permute(1, 2, 0, 3).flatten(2)
    unfold, sizes = F.unfold, []
    monkeypatch.setattr(F, "unfold", lambda image, *more: sizes.append(len(image)) or unfold(image, *more))
    total, products, n = input_moments(layer, x)
    assert sizes == [1] * 5 and n == seen.shape[2]
    torch.testing.assert_close(total, seen.sum(2), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(products, seen @ seen.transpose(1, 2), rtol=1e-5, atol=1e-4)


def test_two_inputs_that_move_together_share_their_error():
    """w = (0.4, 0.4) on a grid of step 1: to nearest both vanish; with equal inputs one of them goes up, 0.8 is nearly 1."""
    weight, scale = torch.tensor([[[0.4, 0.4]]]), torch.ones(1, 1, 1)
    together = torch.tensor([[[1.0, 0.99], [0.99, 1.0]]])
    alone = torch.eye(2)[None]
    start = torch.zeros(1, 1, 2)
    assert descend(weight, start, scale, together, -8, 7).sum() == 1
    assert descend(weight, start, scale, alone, -8, 7).tolist() == [[[0, 0]]]
    assert start.sum() == 0, "the start is left as it is"


@pytest.mark.parametrize("seed", range(5))
def test_no_sweep_makes_it_worse_and_the_end_is_near_the_best_of_all_roundings(seed):
    generator = torch.Generator().manual_seed(seed)
    weight, scale, covariance = torch.randn(1, 1, 6, generator=generator), torch.full((1, 1, 1), 0.5), moments(6, seed)

    def error(integers):
        wrong = integers * scale - weight
        return ((wrong @ covariance) * wrong).sum().item()
    errors = [error(descend(weight, (weight / scale).round(), scale, covariance, -8, 7, sweeps=n)) for n in range(5)]
    assert all(after <= before + 1e-6 for before, after in zip(errors, errors[1:]))
    best = min(error((weight / scale).floor() + torch.tensor(ups)) for ups in product((0.0, 1.0), repeat=6))
    assert errors[-1] <= 3 * best + 1e-6 and errors[-1] <= errors[0]


def test_integers_stay_in_the_range():
    integers = descend(torch.full((1, 2, 3), 9.0), torch.full((1, 2, 3), 7.0), torch.ones(1, 2, 1), moments(3), -8, 7)
    assert integers.min() >= -8 and integers.max() <= 7


def test_blocks_of_columns_change_nothing_but_the_order_of_sums(monkeypatch):
    weight = torch.randn(1, 4, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scale, covariance = torch.full((1, 4, 1), 0.5, dtype=torch.float64), moments(12).double()
    whole = descend(weight, (weight / scale).round(), scale, covariance, -8, 7)
    monkeypatch.setattr("zsq_lab.second_order.COLUMNS", 5)
    assert torch.equal(whole, descend(weight, (weight / scale).round(), scale, covariance, -8, 7))


def test_a_layers_output_comes_nearer_and_its_mean_error_vanishes():
    x = images(16)
    _, student = convert(awaken(Mobile()), QuantConfig(3, 8), IMAGE)
    fit_weight_ranges(student, search=True)
    fit_input_ranges(student, [x], search=True)
    layer = next(iter(quant_layers(student).values()))
    own, exact = layer.layer, layer.layer.weight.clone()
    with torch.no_grad():
        seen = layer.input_quantizer(x)
        wanted, nearest = own(seen), layer(x)
    total, products, n = input_moments(own, seen)
    mean = total / n
    weight, scale, shift = round_layer(layer, mean, products / n - mean[:, :, None] * mean[:, None, :])
    assert torch.equal(own.weight, exact), "the layer keeps its own"
    with torch.no_grad():
        own.weight.copy_(weight)
        layer.weight_quantizer.scale.copy_(scale)
        own.bias.sub_(shift)
        rounded = layer(x)
        torch.testing.assert_close(layer.weight_quantizer(own.weight), own.weight)
    assert (rounded - wanted).square().sum() < 0.8 * (nearest - wanted).square().sum()
    assert (rounded - wanted).mean((0, 2, 3)).abs().max() < 1e-4


@pytest.mark.parametrize("layer, known", [
    (lambda: nn.Linear(25088, 4096), False), (lambda: nn.Linear(150_528, 10), False), (lambda: nn.Linear(4725, 1575), True),
    (lambda: nn.Conv2d(512, 512, 3), True), (lambda: nn.Conv2d(2688, 448, 1), True), (lambda: nn.Linear(2048, 1000), True),
    (lambda: nn.Conv2d(2688, 2688, 5, groups=2688), True)],
    ids=["VGG-16", "pixels", "a minute", "ResNet-50", "EfficientNet-Lite4", "the last of ResNet-50", "depthwise"])
def test_layers_that_would_take_hours_or_all_memory_are_not_known(layer, known):
    with torch.device("meta"):
        assert is_known(QuantLayer(layer(), Quantizer(4, symmetric=True, axis=0), [])) == known


def test_a_layer_that_is_too_wide_is_rounded_to_nearest(monkeypatch):
    x = images(4, (6, 5, 5))
    _, student = convert(awaken(nn.Sequential(nn.Conv2d(6, 4, 3))), QuantConfig(4, 8), (6, 5, 5))
    fit_weight_ranges(student, search=True)
    fit_input_ranges(student, [x], search=True)
    layer, = quant_layers(student).values()
    nearest = layer.weight_quantizer(layer.layer.weight)
    monkeypatch.setattr("zsq_lab.second_order.MOST", 54 * (54 + 40 * 4) - 1)  # 54 weights of a channel, 40 scales
    round_in_order([layer], student, x)
    assert torch.equal(layer.layer.weight, nearest)


def test_layers_of_every_kind_end_on_their_grids():
    for kind in LAYER_TYPES:
        model, shape = layer_and_norm(kind)
        x = images(4, shape)
        for convention in ("deployable", "literature"):
            _, student = convert(model, QuantConfig(4, 8, convention=convention), shape)
            fit_weight_ranges(student, search=True)
            fit_input_ranges(student, [x], search=True)
            layers = list(quant_layers(student).values())
            round_in_order(layers, student, x)
            for layer in layers:
                torch.testing.assert_close(layer.weight_quantizer(layer.layer.weight), layer.layer.weight, atol=1e-5, rtol=1e-5)
            known = isinstance(layers[0].layer, nn.Conv2d | nn.Linear) and convention == "deployable" and kind != "reflected"
            assert is_known(layers[0]) == known, kind
