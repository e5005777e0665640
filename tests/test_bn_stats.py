"""What BatchNorm remembers: moments against torch.var, distances by hand, rectified Gaussians in closed form."""
import copy
from math import erf, exp, pi, sqrt

import pytest
import torch
from networks import IMAGE, Asking, Mobile, Residual, awaken, images, same_state, snapshot, teach
from torch import nn
from torch.distributions import Normal, kl_divergence

from zsq_lab.bn_stats import (
    SHARED,
    BatchNormStatistics,
    batch_statistics,
    gaussian_kl,
    layer_distance,
    remembered_activations,
    require_statistics,
    squared_distance,
    stored_statistics,
)
from zsq_lab.folding import fold_batchnorms
from zsq_lab.graph import trace


def folded(model: nn.Module) -> nn.Module:
    copied = copy.deepcopy(model).requires_grad_(False)
    return fold_batchnorms(copied, trace(copied, IMAGE))


@pytest.mark.parametrize("shape", [(64, 3), (16, 3, 5), (8, 3, 4, 5), (4, 3, 2, 4, 5)])
def test_batch_statistics_are_the_moments_per_channel(shape):
    x = images(shape[0], shape[1:]) * 3 + 5
    mean, std = batch_statistics(x)
    dims = [d for d in range(x.ndim) if d != 1]
    torch.testing.assert_close(mean, x.mean(dims))
    torch.testing.assert_close(std, x.std(dims, correction=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_16_bits_are_measured_in_32(dtype):
    """Squares beyond 65504, the largest float16, and a memory of such a variance."""
    norm, x = nn.BatchNorm2d(3).eval().to(dtype), (300 * images(16, (3, 8, 8)) + 200).to(dtype)
    norm.running_var.fill_(60000)
    torch.testing.assert_close(batch_statistics(x), batch_statistics(x.float()))
    with BatchNormStatistics(norm) as statistics:
        norm(x)
    mean, deviation = 200, norm.running_var.float()[0].sqrt().item()
    expected = (mean**2 + (300 - deviation)**2) / deviation**2
    assert statistics.loss().item() == pytest.approx(expected, rel=0.1)


def test_gradient_stays_finite_on_a_constant_batch():
    x = torch.full((4, 3, 2, 2), 2.0, requires_grad=True)
    mean, std = batch_statistics(x)
    (mean.sum() + std.sum()).backward()
    assert torch.isfinite(x.grad).all()


def test_distance_worked_by_hand():
    distance = layer_distance(torch.tensor([1.0, 0.0]), torch.tensor([2.0, 3.0]),
                              torch.tensor([0.0, 0.0]), torch.tensor([2.0, 1.0]))
    assert distance.item() == pytest.approx((1 + 4) / 5)
    same = torch.tensor([2.0, 1.0])
    assert layer_distance(same, same, same, same) == 0


def test_distance_has_no_unit():
    moments = [torch.rand(5, generator=torch.Generator().manual_seed(i)) + 0.5 for i in range(4)]
    torch.testing.assert_close(layer_distance(*moments), layer_distance(*(100 * m for m in moments)))


def test_a_dead_channel_does_not_rule_the_distance():
    stored_mean, stored_std = torch.tensor([0.0, 0.0]), torch.tensor([1.0, 0.0])
    assert layer_distance(torch.tensor([0.0, 0.1]), torch.tensor([1.0, 0.1]), stored_mean, stored_std) < 0.05


def test_squared_distance_worked_by_hand_and_in_the_units_of_the_layer():
    moments = [torch.tensor(v) for v in ([1.0, 0.0], [2.0, 3.0], [0.0, 0.0], [2.0, 1.0])]
    assert squared_distance(*moments).item() == pytest.approx((1 + 4) / 2)
    assert squared_distance(*(10 * m for m in moments)).item() == pytest.approx(100 * (1 + 4) / 2)
    assert squared_distance(*moments[2:], *moments[2:]) == 0


def test_gaussian_kl_against_torch_distributions():
    moments = [torch.rand(5, generator=torch.Generator().manual_seed(i)) + 0.5 for i in range(4)]
    mean, std, stored_mean, stored_std = moments
    expected = kl_divergence(Normal(mean, std), Normal(stored_mean, stored_std)).mean()
    torch.testing.assert_close(gaussian_kl(*moments), expected)
    torch.testing.assert_close(gaussian_kl(*(100 * m for m in moments)), expected)
    torch.testing.assert_close(gaussian_kl(mean, std, mean, std), torch.tensor(0.0))


def test_gaussian_kl_leaves_out_dead_channels_and_dead_layers():
    one, stored_std = torch.tensor([1.0, 1.0]), torch.tensor([2.0, 0.0])
    assert gaussian_kl(one, one, 0 * one, stored_std).item() == pytest.approx(
        kl_divergence(Normal(1.0, 1.0), Normal(0.0, 2.0)).item())
    assert gaussian_kl(one, one, 0 * one, 0 * one) == 0


@pytest.mark.parametrize("distance", [layer_distance, squared_distance, gaussian_kl])
def test_every_distance_has_a_finite_gradient_on_a_constant_batch(distance):
    model, x = awaken(Residual()), torch.zeros(4, *IMAGE, requires_grad=True)
    with BatchNormStatistics(model, distance) as statistics:
        model(x)
        statistics.loss().backward()
    assert torch.isfinite(x.grad).all()


@torch.no_grad()
@pytest.mark.parametrize("distance", [squared_distance, gaussian_kl])
def test_the_chosen_distance_is_measured_at_every_layer(distance):
    model, x = awaken(Residual()), images(16)
    seen = {}
    for name in ("bn_stem", "bn_a", "bn_b"):
        model.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0]}))
    with BatchNormStatistics(model, distance) as statistics:
        model(x)
    for name, value in statistics.distances().items():
        norm, own = model.get_submodule(name), seen.pop(name)
        memory = norm.running_mean, norm.running_var.sqrt()
        expected = distance(own.mean((0, 2, 3)), own.std((0, 2, 3), correction=0), *memory)
        assert value == pytest.approx(expected.item(), rel=1e-4)
    assert not seen


def test_the_deviation_is_stored_not_the_variance():
    norm = nn.BatchNorm2d(2).eval()
    norm.running_var.copy_(torch.tensor([4.0, 0.25]))
    assert stored_statistics(norm)[1].tolist() == [2.0, 0.5]
    deviation = torch.tensor([2.0, 0.5]).reshape(2, 1, 1)
    x = images(64, (2, 16, 16)) * deviation
    with BatchNormStatistics(norm) as statistics:
        norm(x)
    assert statistics.loss() < 1e-3
    with BatchNormStatistics(norm) as statistics:
        norm(x / deviation)
    assert statistics.loss() > 0.2


@pytest.mark.parametrize("fold", [False, True])
@torch.no_grad()
def test_images_that_the_memory_was_made_from_have_distance_zero(fold):
    x = images(32)
    model = teach(awaken(Residual()), x)
    model = folded(model) if fold else model
    with BatchNormStatistics(model) as statistics:
        model(x)
        assert statistics.loss() < 1e-4
        assert set(statistics.distances()) == {"bn_stem", "bn_a", "bn_b"}
        own = statistics.loss().item()
        model(x * 3 + 1)
        assert statistics.loss() > 100 * own
        assert statistics.loss().item() == pytest.approx(sum(statistics.distances().values()) / 3, rel=1e-5)


@pytest.mark.parametrize("fold", [False, True])
@torch.no_grad()
def test_batchnorms_that_are_called_by_keyword_are_measured(fold):
    """The one before ReLU(inplace=True) gets a copy, by keyword as well."""
    x = images(32)
    model = teach(awaken(Asking()), x)
    model = folded(model) if fold else model
    expected = model(x)
    with BatchNormStatistics(model) as statistics:
        assert torch.equal(model(x), expected)
        assert statistics.loss() < 1e-4 and set(statistics.distances()) == {"bn1", "bn2"}


class Skipping(Residual):
    """Leaves its second half out when told to, as layer drop and early exits do."""

    short = False

    def forward(self, x):
        return self.stem(x) * self.bn_stem(self.stem(x)) if self.short else super().forward(x)


def test_what_the_last_pass_did_not_reach_is_not_of_the_last_pass():
    model, x = awaken(Skipping()), images(4).requires_grad_()
    with BatchNormStatistics(model) as statistics:
        model(x)
        statistics.loss().backward()
        model.short = True
        model(x)
        assert set(statistics.distances()) == {"bn_stem"}
        statistics.loss().backward()  # and not through the graph that the first pass left


@torch.no_grad()
def test_one_pass_of_a_larger_network_is_one_pass():
    model = awaken(Residual())
    with BatchNormStatistics(model) as alone:
        model(images(4))
    with BatchNormStatistics(model) as inside:
        nn.Sequential(nn.Identity(), model)(images(4))
        copied = copy.deepcopy(model)
    assert inside.distances() == alone.distances() and len(alone.distances()) == 3
    copied(images(4))


@pytest.mark.parametrize("use", [lambda m: BatchNormStatistics(m), lambda m: remembered_activations(m)])
def test_hooks_go_away_even_after_an_error(use):
    model = awaken(Residual())
    before = snapshot(model)
    with pytest.raises(ZeroDivisionError), use(model):
        model(images(2))
        1 / 0
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert same_state(before, model.state_dict())


@torch.no_grad()
def test_folded_and_unfolded_layers_remember_the_same_output():
    model = awaken(Residual())
    outputs = []
    for network in (model, folded(model)):
        with remembered_activations(network, seed=3):
            outputs.append(network(images(4)))
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_remembered_activations_have_the_moments_of_a_rectified_gaussian():
    """E[relu(x)] = beta Phi(beta / gamma) + gamma phi(beta / gamma) for x ~ N(beta, gamma^2): Nagel et al. 2019."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
    model = awaken(model)
    with remembered_activations(model, seed=0):
        seen = model(images(20_000, (3, 2, 2)))
    for channel in range(4):
        beta, gamma = model[1].bias[channel].item(), abs(model[1].weight[channel].item())
        u = beta / gamma
        phi, density = 0.5 * (1 + erf(u / sqrt(2))), exp(-u * u / 2) / sqrt(2 * pi)
        mean = beta * phi + gamma * density
        square = (beta**2 + gamma**2) * phi + beta * gamma * density
        assert seen[:, channel].mean().item() == pytest.approx(mean, abs=0.03)
        assert seen[:, channel].std().item() == pytest.approx(sqrt(square - mean**2), abs=0.03)


@torch.no_grad()
def test_positions_of_a_remembered_image_are_alike_and_images_are_not():
    model = awaken(nn.Sequential(nn.Conv2d(3, 1, 1), nn.BatchNorm2d(1)))
    with remembered_activations(model, seed=0):
        seen = model(images(20_000, (3, 1, 2)))[:, 0, 0]
    assert torch.corrcoef(seen.T)[0, 1].item() == pytest.approx(SHARED, abs=0.03)
    assert abs(torch.corrcoef(torch.stack([seen[:-1, 0], seen[1:, 0]]))[0, 1]) < 0.03


@torch.no_grad()
def test_memory_depends_on_the_seed_and_on_nothing_else():
    model = awaken(Mobile())
    random_state = torch.get_rng_state()
    outputs = []
    for seed, x in ((0, images(4)), (0, 50 * images(4, seed=9)), (1, images(4))):
        with remembered_activations(model, seed):
            outputs.append(model(x))
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize("model", [nn.Conv2d(3, 4, 1), nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4)),
                                   nn.BatchNorm2d(3, track_running_stats=False)])
def test_a_model_without_statistics_is_told_what_to_do(model):
    with pytest.raises(ValueError, match="no BatchNorm with running statistics, which 'x' needs: use recipe 'rtn-n"):
        require_statistics(model, "'x'")
