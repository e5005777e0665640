"""Mixed precision: the front against brute force, the sensitivity against quantizing one layer by hand, the size kept."""
import itertools
from dataclasses import replace

import pytest
import torch
from networks import IMAGE, TINY, Residual, awaken, images, same_state
from torch import nn
from torch.testing import assert_close

from zsq_lab import QuantConfig, quantize
from zsq_lab.distill import output_loss
from zsq_lab.job import BUDGETS, LARGE_BUDGETS, Budget
from zsq_lab.layers import convert, quant_layers
from zsq_lab.mixed_precision import _rounded, assign_bits, pareto_front, sensitivity
from zsq_lab.quantizer import fake_quantize, integer_range, qparams_from_range
from zsq_lab.ranges import search_ranges
from zsq_lab.tasks import CLASSIFICATION, DETECTION, SEGMENTATION

WIDTHS = (2, 4, 8)


@pytest.mark.parametrize("seed", range(4))
def test_the_front_against_brute_force_on_eight_layers(seed):
    generator = torch.Generator().manual_seed(seed)
    errors = torch.rand(8, 3, generator=generator, dtype=torch.float64)  # not even sorted by width
    counts = torch.randint(1, 40, (8,), generator=generator).tolist()
    front = pareto_front(errors, counts, WIDTHS)
    every = [(sum(c * WIDTHS[w] for c, w in zip(counts, choice, strict=True)),
              sum(errors[layer, w].item() for layer, w in enumerate(choice)), choice)
             for choice in itertools.product(range(3), repeat=8)]
    for budget in (sum(counts) * bits for bits in (2.5, 3, 4, 5.5, 8)):
        best = min(error for size, error, _ in every if size <= budget)
        chosen = front.assignment(budget)
        assert sum(c * b for c, b in zip(counts, chosen, strict=True)) <= budget
        assert sum(errors[i, WIDTHS.index(b)].item() for i, b in enumerate(chosen)) == pytest.approx(best)
    assert (front.sizes.diff() > 0).all() and (front.errors.diff() < 0).all()
    with pytest.raises(ValueError, match="raise the size budget"):
        front.assignment(sum(counts) * 1.9)


def test_sensitivity_is_the_loss_with_one_layer_quantized():
    teacher, student = convert(awaken(Residual()), QuantConfig(), IMAGE)
    x, before = images(16), {name: value.clone() for name, value in student.state_dict().items()}
    errors = sensitivity(teacher, student, x, WIDTHS)
    assert errors.shape == (4, 3) and (errors[:, 0] > errors[:, 2]).all()
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())
    name, layer = list(quant_layers(student).items())[1]
    by_hand, _ = convert(awaken(Residual()), QuantConfig(), IMAGE)
    weight = by_hand.get_submodule(name).weight
    scale, zero = (q.reshape(-1, 1, 1, 1) for q in
                   qparams_from_range(*search_ranges(weight.flatten(1), 4, symmetric=True), 4, symmetric=True))
    weight.data = fake_quantize(weight, scale, zero, *integer_range(4, symmetric=True))
    with torch.no_grad():
        assert_close(errors[1, 1], output_loss(by_hand(x), teacher(x)), rtol=1e-4, atol=1e-6)


def test_an_interruption_leaves_every_weight_exact():
    teacher, student = convert(awaken(Residual()), QuantConfig(), IMAGE)
    before = {name: value.clone() for name, value in student.state_dict().items()}

    def interrupt(*_):
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        sensitivity(teacher, student, images(4), WIDTHS, replace(CLASSIFICATION, output_loss=interrupt))
    assert same_state(student.state_dict(), before)


def test_batches_of_images_are_averaged_and_the_layers_have_a_bar(capsys):
    teacher, student = convert(awaken(Residual()), QuantConfig(), IMAGE)
    x = images(16)
    halves = torch.stack([sensitivity(teacher, student, half, WIDTHS) for half in x.split(8)]).mean(0)
    assert capsys.readouterr().err == ""
    assert_close(sensitivity(teacher, student, x, WIDTHS, batch_size=8, progress=True), halves)
    assert "sensitivity of layers" in capsys.readouterr().err


@pytest.mark.parametrize("shape, batches", [((3, 128, 128), 2), ((3, 16, 16), 1)])
def test_images_are_those_of_the_quick_budget(tmp_path, monkeypatch, shape, batches):
    """Large ones have one of their own, in small batches."""
    monkeypatch.setitem(BUDGETS, "quick", Budget("quick", 4, 2, 1, 1, 4, 4))
    monkeypatch.setitem(LARGE_BUDGETS, "quick", Budget("quick", 4, 2, 1, 1, 2, 2))
    model = awaken(nn.Sequential(nn.Conv2d(3, 4, 3, 4), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                                 nn.Linear(4, 5)))
    assign_bits(model, QuantConfig(), shape, 0.2, shared=tmp_path)
    file, = tmp_path.glob("sensitivity_*/images.pt")
    made = torch.load(file, weights_only=True)["made"]
    assert [len(batch) for batch in made] == [4 // batches] * batches and made[0].shape[1:] == shape
    monkeypatch.setitem(BUDGETS, "quick", Budget("quick", 4, 3, 1, 1, 4, 4))
    monkeypatch.setitem(LARGE_BUDGETS, "quick", Budget("quick", 4, 3, 1, 1, 2, 2))
    assign_bits(model, QuantConfig(), shape, 0.2, shared=tmp_path)
    assert len(list(tmp_path.glob("sensitivity_*"))) == 2, "other iterations make other images"


def test_small_images_are_as_many_as_recorded_results_were_measured_with():
    """128 in 100 iterations, at once; of scenes an eighth."""
    budgets = [task.budget(BUDGETS["quick"]) for task in (CLASSIFICATION, SEGMENTATION, DETECTION)]
    assert [(b.images, b.image_iterations, b.image_batch) for b in budgets] == [(128, 100, 128), (16, 100, 16), (16, 100, 16)]


def test_the_budget_is_kept_and_the_same_images_serve_again(tmp_path):
    model = awaken(Residual())
    result = quantize(model, QuantConfig(8, 8), "squant", image_shape=IMAGE, size_budget=0.125, resume=tmp_path)
    bits = {name: layer.weight_quantizer.bits for name, layer in quant_layers(result.model).items()}
    assert bits == result.report["config"]["layer_bits"] and len(set(bits.values())) > 1
    counts = {name: layer.layer.weight.numel() for name, layer in quant_layers(result.model).items()}
    assert sum(counts[name] * bits[name] for name in bits) <= 0.125 * 32 * sum(counts.values())
    assert result.report["size_budget"] == 0.125 and len(list(tmp_path.glob("sensitivity_*"))) == 1
    assert assign_bits(model, QuantConfig(8, 8), IMAGE, 0.125, shared=tmp_path) == bits


def test_how_long_the_images_took_that_serve_again_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(BUDGETS, "quick", TINY)
    first, second = [], []
    for reused in (first, second):
        assign_bits(awaken(Residual()), QuantConfig(), IMAGE, 0.2, shared=tmp_path, reused=reused)
    assert [run.reused_seconds for run in first] == [0] and [run.reused_seconds > 0 for run in second] == [True]


def test_with_a_budget_the_named_weight_bits_decide_nothing():
    """Neither which layer gets how many nor how the recipe works with them."""
    wide, narrow = (quantize(awaken(Residual()), QuantConfig(bits, 8), "distilled", image_shape=IMAGE, size_budget=0.125,
                             budget=TINY) for bits in (8, 2))
    assert wide.report["config"] == narrow.report["config"]
    assert same_state(wide.model.state_dict(), narrow.model.state_dict())


@pytest.mark.parametrize("budget", [0, -1, 1.5])
def test_a_budget_that_is_no_share(budget):
    with pytest.raises(ValueError, match="share of the float size between 0 and 1"):
        assign_bits(awaken(Residual()), QuantConfig(), IMAGE, budget)


def test_layer_bits_are_checked():
    with pytest.raises(ValueError, match="layer_bits of 'fc': bits must be"):
        QuantConfig(layer_bits={"fc": 1})
    with pytest.raises(ValueError, match="'nowhere', which is no layer"):
        convert(awaken(Residual()), QuantConfig(layer_bits={"nowhere": 4}), IMAGE)


def test_an_assignment_may_fill_the_budget_to_the_last_bit():
    front = pareto_front(torch.tensor([[1.0, 0.0]]), [10], (2, 4))
    assert [front.assignment(bits) for bits in (20, 39.9, 40, 1000)] == [[2], [2], [4], [4]]


@pytest.mark.parametrize("symmetric", [True, False])
def test_output_channels_of_another_axis_are_rounded_each_for_itself(symmetric):
    """As of transposed convolutions, whose weight is [in, out, ...]."""
    weight = torch.randn(3, 5, 2, 2, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 6).view(1, 5, 1, 1)
    expected = torch.cat([_rounded(weight[:, i:i + 1], 1, 3, symmetric) for i in range(5)], 1)
    assert torch.equal(_rounded(weight, 1, 3, symmetric), expected)
    assert torch.equal(_rounded(weight.transpose(0, 1), 0, 3, symmetric), expected.transpose(0, 1))
