"""Equalization keeps the output and evens the ranges; absorption and correction against closed forms."""
import copy
from math import erf, exp, pi, sqrt

import pytest
import torch
import torch.nn.functional as F
from networks import IMAGE, LAYER_TYPES, Mobile, Residual, SharedConv, SharedReLU, awaken, images, same_state, snapshot
from torch import Tensor, nn

from zsq_lab.equalize import (
    ClippedReLU,
    absorb_biases,
    correct_biases,
    equalize,
    find_pairs,
    input_rows,
    output_rows,
)
from zsq_lab.folding import fold_batchnorms, replace_module
from zsq_lab.graph import trace
from zsq_lab.layers import QuantConfig, convert, float_copy
from zsq_lab.quantizer import choose_qparams, fake_quantize
from zsq_lab.ranges import fit_input_ranges, fit_weight_ranges


def folded(model: nn.Module, shape: tuple[int, ...] = IMAGE) -> nn.Module:
    copied = float_copy(model).double()
    return fold_batchnorms(copied, trace(copied, shape))


def unbalanced(model: nn.Module) -> nn.Module:
    """Channels of very different size, as MobileNetV2 has them, so that equalization has something to do."""
    with torch.no_grad():
        for index, module in enumerate(m for m in model.modules() if isinstance(m, nn.Conv2d)):
            channels = len(module.weight)
            module.weight.mul_(torch.logspace(-1.5, 1.5, channels).roll(index).reshape(-1, 1, 1, 1))
    return model


def assert_same_output(model: nn.Module, other: nn.Module, shape: tuple[int, ...] = IMAGE, x: Tensor | None = None):
    x = 3 * images(8, shape).double() if x is None else x
    torch.testing.assert_close(other(x), model(x), rtol=1e-8, atol=1e-8)


def test_two_by_two_worked_by_hand():
    """Ranges (4, 1) and (1, 4): factors sqrt(r2 / r1) = 1/2 and 2 make both (2, 2), equation (11)."""
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).requires_grad_(False)
    model[0].weight.copy_(torch.tensor([[4.0, 2.0], [1.0, -0.5]]))
    model[0].bias.copy_(torch.tensor([1.0, 1.0]))
    model[2].weight.copy_(torch.tensor([[1.0, 4.0], [-0.5, 2.0]]))
    equal = equalize(model, (2,))
    assert equal[0].weight.tolist() == [[2, 1], [2, -1]] and equal[0].bias.tolist() == [0.5, 2]
    assert equal[2].weight.tolist() == [[2, 2], [-1, 1]]
    assert model[0].weight[0, 0] == 4, "the input model was changed"


@pytest.mark.parametrize("network", [Residual, Mobile, SharedConv, SharedReLU])
def test_the_output_is_kept_and_pairs_end_with_equal_ranges(network):
    model = folded(unbalanced(awaken(network())))
    before = snapshot(model)
    equal = equalize(model, IMAGE)
    assert_same_output(model, equal)
    assert same_state(before, model.state_dict())
    for pair in find_pairs(trace(equal, IMAGE)):
        torch.testing.assert_close(output_rows(pair.first).abs().amax(1), input_rows(pair.second).abs().amax(1),
                                   rtol=0.05, atol=0)


def test_relu6_needs_its_cap_rescaled():
    """Naive scaling, with the cap left at 6, changes the output of the same network."""
    model = folded(unbalanced(awaken(Mobile())))
    equal = equalize(model, IMAGE)
    caps = [m for m in equal.modules() if isinstance(m, ClippedReLU)]
    assert len(caps) == 2 and any((m.cap - 6).abs().max() > 1 for m in caps)
    assert_same_output(model, equal)
    naive = copy.deepcopy(equal)
    for clipped in caps:
        naive = replace_module(naive, dict(naive.named_modules())[name_of(equal, clipped)], nn.ReLU6())
    x = 3 * images(8).double()
    assert (naive(x) - model(x)).abs().max() > 0.01 * model(x).abs().max()


def name_of(model: nn.Module, module: nn.Module) -> str:
    return next(name for name, m in model.named_modules() if m is module)


@pytest.mark.parametrize("kind", LAYER_TYPES)
def test_every_kind_of_layer_takes_part_on_both_sides(kind):
    layer, norm, shape = LAYER_TYPES[kind]
    first = layer()
    if kind == "linear":
        before, after = nn.Linear(3, 3), nn.Linear(4, 5)
    else:
        plain = {"1": nn.Conv1d, "2": nn.Conv2d, "3": nn.Conv3d}[type(first).__name__[-2]]
        before, after = plain(shape[0], shape[0], 1), plain(4, 5, 1)
    model = folded(awaken(nn.Sequential(before, nn.ReLU(), first, norm(4), nn.ReLU(), after)), shape)
    model[0].weight.mul_(torch.logspace(-1, 1, shape[0]).reshape(-1, *[1] * (model[0].weight.ndim - 1)))
    equal = equalize(model, shape)
    assert len(find_pairs(trace(model, shape))) == 2
    assert not same_state(model.state_dict(), equal.state_dict())
    assert_same_output(model, equal, shape)


class Wired(nn.Module):
    """Two layers wired in a way that no scale may cross."""

    def __init__(self, case: str):
        super().__init__()
        self.case = case
        self.a, self.b, self.c = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)
        self.wide, self.relu6, self.again = nn.Linear(6, 3), nn.ReLU6(), nn.ReLU6()

    def forward(self, x: Tensor):
        a = self.a(5 * x)
        match self.case:
            case "sum":
                return self.b(F.relu(a) + x)
            case "branch":
                return self.b(F.relu(a)) + a
            case "returned":
                a = F.relu(a)
                return self.b(a), {"features": a}
            case "sigmoid":
                return self.b(torch.sigmoid(a))
            case "functional relu6":
                return self.b(F.relu6(a))
            case "ReLU6 twice":
                return self.b(self.again(self.relu6(a)))
            case "ReLU6 shared":
                return self.c(self.relu6(self.b(self.relu6(a))))
            case "linear on the last axis":
                return self.wide(F.relu(a))
            case "offset":
                return self.b(F.relu(a + 1))


@pytest.mark.parametrize("case", ["sum", "branch", "returned", "sigmoid", "functional relu6", "ReLU6 twice",
                                  "ReLU6 shared", "linear on the last axis", "offset"])
def test_no_scale_crosses_what_is_not_homogeneous(case):
    shape = (6, 6, 6)
    model = folded(awaken(Wired(case)), shape)
    model.a.weight.mul_(torch.logspace(-1, 1, 6).reshape(-1, 1, 1, 1))
    equal = equalize(model, shape)
    assert_same_output(model, equal, shape)
    assert find_pairs(trace(model, shape)) == []


@pytest.mark.parametrize("activation, shape, pairs", [(nn.ReLU6, (4, 4), 0), (nn.ReLU6, (3, 4), 0), (nn.ReLU, (4, 4), 1),
                                                      (nn.ReLU6, (4,), 1)])
def test_no_scale_crosses_a_cap_between_linears_on_sequences(activation, shape, pairs):
    """On [N, L, C] the channels are the last dimension; with L = C a cap along the wrong one raises no error."""
    model = folded(awaken(nn.Sequential(nn.Linear(4, 4), activation(), nn.Linear(4, 4))), shape)
    model[0].weight.mul_(torch.logspace(-1, 1, 4).reshape(-1, 1))
    assert len(find_pairs(trace(model, shape))) == pairs
    assert_same_output(model, equalize(model, shape), shape)


class Activated(nn.Conv2d):
    """With its activation inside, as in detectron2."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(super().forward(x))


def own_forward(place: int) -> nn.Module:
    """Three convolutions, the one at `place` with a forward of its own."""
    kinds = [Activated if place == i else nn.Conv2d for i in range(3)]
    layers = kinds[0](3, 4, 1), nn.ReLU(), kinds[1](4, 4, 1), nn.ReLU(), kinds[2](4, 5, 1)
    return folded(unbalanced(awaken(nn.Sequential(nn.BatchNorm2d(3), *layers))))


@pytest.mark.parametrize("place, pairs", [(0, 1), (1, 0), (2, 1)])
def test_no_scale_crosses_a_layer_that_is_not_linear(place, pairs):
    model = own_forward(place)
    assert len(find_pairs(trace(model, IMAGE))) == pairs
    assert_same_output(model, equalize(model, IMAGE))


def test_the_bias_of_a_layer_that_is_not_linear_is_not_corrected():
    _, student = convert(own_forward(1), QuantConfig(3, 8), IMAGE)
    fit_weight_ranges(student, search=False)
    fit_input_ranges(student, [images(16)], search=False)
    before = snapshot(student)
    correct_biases(student, IMAGE)
    changed = {key for key, value in student.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {"1.layer.bias", "5.layer.bias"}


def test_an_activation_that_is_called_from_a_list_as_well_is_an_error():
    class Listed(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[2](self.activations[0](self[0](x)))

    model = Listed(nn.Conv2d(3, 4, 1), nn.ReLU6(), nn.Conv2d(4, 5, 1))
    model.activations = [model[1]]
    model = folded(unbalanced(awaken(model)))
    with pytest.raises(ValueError, match="equalizing its weights changes what this model computes.*use another recipe"):
        equalize(model, IMAGE)


def test_layers_that_share_one_weight_tensor_keep_their_output():
    model = awaken(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 4, 1)))
    model[2].weight = model[0].weight
    teacher, _ = convert(model, QuantConfig(), IMAGE)
    x = images(4)
    torch.testing.assert_close(equalize(teacher, IMAGE)(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e-12])
def test_a_channel_of_zero_or_almost_zero_weights(value):
    """Its factor would be infinite or huge, and a huge activation would cost all other channels their resolution."""
    model = awaken(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 1)))
    model = folded(model)
    model[0].weight[1] = value
    model[0].bias[1] = 0.5
    equal = equalize(model, IMAGE)
    assert all(torch.isfinite(p).all() for p in equal.parameters())
    assert_same_output(model, equal)
    x = images(8).double()
    assert equal[:3](x).amax() < 100 * model[:3](x).amax()


def far_from_zero(second: nn.Module) -> nn.Module:
    """A pair whose first channels lie far above ReLU's kink: mean 20, deviation about 1."""
    model = awaken(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), second))
    with torch.no_grad():
        model[1].bias.fill_(20)
        model[1].weight.copy_(torch.tensor([1.0, -1.0, 0.5, 1.5]))
    model[1].running_mean.zero_()
    model[1].running_var.fill_(10)  # about what N(0, 1) images give, so that the memory is true
    return folded(model)


@pytest.mark.parametrize("second", [lambda: nn.Conv2d(4, 5, 1, bias=False), lambda: nn.Conv2d(4, 6, 3, groups=2),
                                    lambda: nn.Conv2d(4, 4, 3, groups=4), lambda: nn.ConvTranspose2d(4, 6, 2, stride=2),
                                    lambda: nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2)])
def test_absorbing_biases_keeps_the_output_without_padding(second):
    model = far_from_zero(second())
    absorbed = absorb_biases(copy.deepcopy(model), IMAGE)
    if not isinstance(model[3], nn.ConvTranspose2d):
        assert (absorbed[0].bias < model[0].bias - 10).all()
        torch.testing.assert_close(model[1].mean - absorbed[1].mean, model[0].bias - absorbed[0].bias)
    assert_same_output(model, absorbed, x=images(8).double())


def test_absorbing_into_a_linear():
    model = awaken(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)))
    model[1].bias.data.fill_(60)
    model = folded(model, (3,))
    absorbed = absorb_biases(copy.deepcopy(model), (3,))
    assert (absorbed[0].bias < model[0].bias).all()
    assert_same_output(model, absorbed, x=0.1 * images(8, (3,)).double())


def test_absorbing_through_relu6_moves_its_cap():
    """min(x, cap) = min(x - c, cap - c) + c: exact, also for what the cap cuts, as long as x stays above c."""
    model = awaken(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU6(), nn.Conv2d(4, 5, 3)))
    with torch.no_grad():
        model[1].bias.copy_(torch.tensor([3.0, 4.0, 5.0, 9.0]))
        model[1].weight.copy_(torch.tensor([0.4, -0.5, 0.3, 0.2]))
    model[1].running_mean.zero_()
    model[1].running_var.fill_(20)
    model = folded(model)
    absorbed = absorb_biases(copy.deepcopy(model), IMAGE)
    moved = model[0].bias - absorbed[0].bias
    torch.testing.assert_close(moved, torch.tensor([1.8, 2.5, 4.1, 6.0], dtype=torch.float64), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(absorbed[2].cap.double(), 6 - moved, rtol=1e-5, atol=1e-5)
    x = images(8).double()
    assert (model[:2](x) > 6).any() and (model[:2](x) >= moved.reshape(-1, 1, 1)).all()
    assert_same_output(model, absorbed, x=x)


def rectified_mean(beta: float, gamma: float) -> float:
    u = beta / gamma
    return beta * 0.5 * (1 + erf(u / sqrt(2))) + gamma * exp(-u * u / 2) / sqrt(2 * pi)


def test_bias_correction_is_the_closed_form_of_dfq():
    """The shift is (W_q - W) E[x] with E[x] the mean of a rectified Gaussian: Nagel et al. 2019, section 4.3."""
    model = awaken(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 6)))
    _, student = convert(model, QuantConfig(3, 8), (3,))
    fit_weight_ranges(student, search=False)
    fit_input_ranges(student, [images(16, (3,))], search=False)
    before = student[3].layer.bias.clone()
    correct_biases(student, (3,), samples=20_000)
    moments = zip(model[1].bias.tolist(), model[1].weight.abs().tolist(), strict=True)
    expected_input = torch.tensor([rectified_mean(beta, gamma) for beta, gamma in moments])
    weight = student[3].layer.weight
    error = student[3].weight_quantizer(weight) - weight
    assert (error @ expected_input).abs().max() > 0.05
    torch.testing.assert_close(student[3].layer.bias, before - error @ expected_input, atol=0.01, rtol=0)


@pytest.mark.parametrize("kind", LAYER_TYPES)
def test_bias_correction_of_every_kind_of_layer(kind):
    """After it, the mean output over what BatchNorm remembers is the unquantized one."""
    layer, _, shape = LAYER_TYPES[kind]
    norm = {1: nn.BatchNorm1d, 2: nn.BatchNorm1d, 3: nn.BatchNorm2d, 4: nn.BatchNorm3d}[len(shape)](shape[0])
    model = awaken(nn.Sequential(norm, nn.ReLU(), layer()))
    teacher, student = convert(model, QuantConfig(2, 8), shape)
    fit_weight_ranges(student, search=False)
    fit_input_ranges(student, [images(8, shape)], search=False)
    correct_biases(student, shape, samples=4000)
    quantized = student[2]
    beta, gamma = (v.reshape(-1, *[1] * (len(shape) - 1)) for v in (model[0].bias, model[0].weight.abs()))
    x = F.relu(images(4000, shape) * gamma + beta)
    for q in quantized.input_quantizers:
        q.enabled = False
    channels = [d for d in range(len(shape) + 1) if d != 1]
    shift = (quantized(x) - teacher[2](x)).mean(channels)
    assert shift.abs().max() < 0.05 * teacher[2](x).std()


class Twice(nn.Module):
    """One layer for two inputs of very different size, as the shared head of a detector."""

    def __init__(self):
        super().__init__()
        self.norm, self.head = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.norm(x))
        return self.head(x), self.head(9 * x[:, :, ::2])


def test_bias_correction_of_a_layer_that_is_called_twice():
    """One bias cannot be right for both calls: the mean of both errors is what vanishes."""
    teacher, student = convert(awaken(Twice()), QuantConfig(2, 8), IMAGE)
    fit_weight_ranges(student, search=False)
    fit_input_ranges(student, [images(8)], search=False)
    correct_biases(student, IMAGE, samples=4000)
    norm = teacher.norm
    x = images(4000) * norm.running_var.sqrt().reshape(3, 1, 1) + norm.running_mean.reshape(3, 1, 1)
    for quantizer in student.head.input_quantizers:
        quantizer.enabled = False
    first, second = ((own - wanted).mean((0, 2, 3)) for own, wanted in zip(student(x), teacher(x), strict=True))
    assert first.abs().max() > 0.5 and (first + second).abs().max() < 0.05 * first.abs().max()


def test_bias_correction_needs_statistics():
    _, student = convert(nn.Sequential(nn.Conv2d(3, 4, 1)), QuantConfig(), IMAGE)
    with pytest.raises(ValueError, match="which bias correction needs"):
        correct_biases(student, IMAGE)


def test_one_grid_for_a_whole_weight_costs_less_after_equalization():
    """Section 3.1 of the paper: with one grid per tensor, small channels vanish beside large ones."""
    model = folded(unbalanced(awaken(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
                                                   nn.Conv2d(8, 4, 1)))))
    x, errors = images(8).double(), []
    for network in (copy.deepcopy(model), equalize(model, IMAGE)):
        for layer in (network[0], network[2], network[4]):
            scale, zero_point = choose_qparams(layer.weight, 6, symmetric=True)
            layer.weight.copy_(fake_quantize(layer.weight, scale, zero_point, -32, 31))
        errors.append((network(x) - model(x)).square().mean().item())
    assert errors[1] < 0.5 * errors[0]


def test_clipped_relu_is_relu6_with_a_cap_for_each_channel():
    x = 10 * images(2, (3, 4, 4))
    assert torch.equal(ClippedReLU(torch.full((3,), 6.0))(x), F.relu6(x))
    assert ClippedReLU(torch.tensor([1.0, 2.0, 3.0]))(x).amax((0, 2, 3)).tolist() == [1, 2, 3]
