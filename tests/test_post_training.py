"""Recipes that make no image: which ranges they set, and that each adds to the one before what its paper says."""
import pytest
import torch
from networks import IMAGE, TINY, Mobile, Residual, awaken, images, same_state
from torch import nn

from zsq_lab.equalize import ClippedReLU
from zsq_lab.job import Job
from zsq_lab.layers import QuantConfig, convert, quant_layers
from zsq_lab.post_training import dfq, real_ranges, rtn_bn, rtn_noise, squant


def done(recipe, network: nn.Module | None = None, seed: int = 0, config: QuantConfig = QuantConfig(4, 4),
         **more) -> nn.Module:
    teacher, student = convert(network or awaken(Residual()), config, IMAGE)
    job = Job(teacher, student, config, IMAGE, TINY, seed, **more)
    recipe(job)
    return job.student


def tops(student: nn.Module) -> dict[str, float]:
    """The largest number that each layer's input can be."""
    return {name: (q.scale * (q.quant_max - q.zero_point)).item() for name, layer in quant_layers(student).items()
            for q in layer.input_quantizers}


def test_noise_sees_nothing_of_the_memory_and_statistics_do():
    """Whose BatchNorms remember ten times more expects ten times more, from statistics alone."""
    def louder():
        network = awaken(Residual())
        with torch.no_grad():
            network.bn_a.weight.mul_(10)
            network.bn_a.bias.mul_(10)
        return network
    for recipe, least in ((rtn_bn, 8.0), (rtn_noise, 4.0)):
        ratio = tops(done(recipe, louder()))["conv_b"] / tops(done(recipe))["conv_b"]
        assert ratio > least
    memory = awaken(Residual())
    with torch.no_grad():
        memory.bn_a.running_mean.zero_()
        memory.bn_a.running_var.fill_(1)
    assert tops(done(rtn_bn, memory))["conv_b"] == pytest.approx(tops(done(rtn_bn))["conv_b"], rel=0.3), (
        "what passes behind a BatchNorm is told by its gamma and beta, whatever it remembers")


def test_the_seed_decides_what_is_drawn():
    for recipe in (rtn_noise, rtn_bn):
        first, same, other = (done(recipe, seed=seed).state_dict() for seed in (0, 0, 1))
        assert same_state(first, same) and not same_state(first, other)


def test_squant_changes_how_weights_round_and_nothing_else():
    plain, better = done(rtn_bn), done(squant)
    assert tops(plain) == tops(better)
    moved = 0
    for name, layer in quant_layers(better).items():
        own, before = layer.weight_quantizer, quant_layers(plain)[name].weight_quantizer
        assert torch.equal(own.scale, before.scale)
        difference = own.integers(layer.layer.weight) - before.integers(quant_layers(plain)[name].layer.weight)
        assert difference.abs().max() <= 1, "each weight to one of its two neighbours"
        moved += int((difference != 0).sum())
    assert moved > 0


def test_dfq_equalizes_caps_and_is_for_folded_layers():
    student = done(dfq, awaken(Mobile()))
    assert any(isinstance(m, ClippedReLU) for m in student.modules()), "the caps of ReLU6 grow with their channels"
    with pytest.raises(ValueError, match="recipe 'dfq' moves scales between folded layers: use convention 'deployable'"):
        done(dfq, config=QuantConfig(4, 4, convention="literature"))


@pytest.mark.parametrize("recipe", [rtn_bn, dfq, squant])
def test_without_statistics_the_recipe_is_named(recipe):
    with pytest.raises(ValueError, match="no BatchNorm with running statistics, which recipe '.*' needs"):
        done(recipe, nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)))


def test_real_ranges_look_at_the_first_images_only():
    x = images(600)
    more = x.clone()
    more[512:] *= 100
    assert same_state(done(real_ranges, images=x).state_dict(), done(real_ranges, images=more).state_dict())
    assert not same_state(done(real_ranges, images=x).state_dict(), done(real_ranges, images=2 * x).state_dict())
