"""The generator: its shapes, its labels, its normalisation against PyTorch's, and that it is as cheap as promised."""
import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from zsq_lab.generators import NOISE_SIZE, ConditionalBatchNorm, Generator, deal_labels
from zsq_lab.models import ResNet20


def seeded(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


@pytest.mark.parametrize("shape, n", [((3, 32, 32), 8), ((3, 8, 8), 8), ((1, 28, 28), 8), ((3, 96, 96), 4),
                                      ((3, 30, 50), 4),
                                      ((3, 224, 224), 2), ((4, 4, 4), 8), ((2, 5, 17), 8)])
@pytest.mark.parametrize("classes, condition", [(None, "embedding"), (3, "embedding"), (3, "batchnorm")])
@torch.no_grad()
def test_images_have_the_shape_and_scale_that_were_asked_for(shape, n, classes, condition):
    images, labels = Generator(shape, classes, condition=condition).sample(n, seeded())
    assert images.shape == (n, *shape) and images.dtype == torch.float32
    assert (labels is None) == (classes is None)
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(shape[0]), atol=1e-4, rtol=0)
    torch.testing.assert_close(images.std((0, 2, 3), correction=0), torch.ones(shape[0]), atol=0.02, rtol=0)
    assert (images[0] - images[1]).abs().mean() > 0.1
    assert (images[:, :, -1].std() > 0.1) and (images[..., -1].std() > 0.1), "the last row and column are drawn as well"


@pytest.mark.parametrize("n, classes", [(10, 10), (64, 10), (3, 10), (7, 2), (12, 5), (1, 1)])
def test_labels_are_dealt_evenly(n, classes):
    counts = deal_labels(n, classes, seeded()).bincount(minlength=classes)
    assert counts.sum() == n and counts.max() - counts.min() <= 1 and counts.min() == n // classes
    extra = torch.zeros(classes)
    random = seeded()
    for _ in range(300):
        extra += deal_labels(n, classes, random).bincount(minlength=classes) - n // classes
    torch.testing.assert_close(extra / 300, torch.full((classes,), n % classes / classes), atol=0.15, rtol=0)


def test_labels_come_in_random_order():
    labels = deal_labels(1000, 10, seeded())
    assert not torch.equal(labels, labels.sort()[0]) and labels[:100].bincount(minlength=10).min() < 10
    assert torch.equal(labels, deal_labels(1000, 10, seeded())) and not torch.equal(labels,
                                                                                    deal_labels(1000, 10, seeded(1)))


def test_conditional_batchnorm_against_pytorch():
    norm = ConditionalBatchNorm(4, 3)
    x, labels = torch.randn(9, 4, 5, 5, generator=seeded()) * 3 + 1, torch.arange(9) % 3
    plain = nn.BatchNorm2d(4, affine=False).train()(x)
    expected = torch.stack([plain[i] * norm.gamma.weight[label][:, None, None] + norm.beta.weight[label][:, None, None]
                            for i, label in enumerate(labels)])
    torch.testing.assert_close(norm(x, labels), expected)
    torch.testing.assert_close(norm.eval()(x, labels), expected)


@pytest.mark.parametrize("condition", ["embedding", "batchnorm"])
@torch.no_grad()
def test_the_label_is_seen_in_the_image(condition):
    generator, noise = Generator((3, 8, 8), 3, condition=condition), torch.randn(12, NOISE_SIZE, generator=seeded())
    labels = torch.zeros(12, dtype=torch.long)
    first, other = generator(noise, labels), generator(noise, labels + 1)
    assert (first - other).abs().mean() > 0.01
    assert any(isinstance(m, ConditionalBatchNorm) for m in generator.modules()) == (condition == "batchnorm")


@torch.no_grad()
def test_sampling_depends_on_the_seed_and_on_nothing_else():
    generator, random_state = Generator((3, 8, 8), 5), torch.get_rng_state()
    (first, labels), (again, same), (other, _) = (generator.sample(12, seeded(number)) for number in (0, 0, 1))
    assert torch.equal(first, again) and torch.equal(labels, same) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), random_state)
    before = copy.deepcopy(generator.state_dict())
    assert torch.equal(generator.eval().sample(12, seeded())[0], first), "there is no training mode to forget"
    assert all(torch.equal(before[key], value) for key, value in generator.state_dict().items())


@torch.no_grad()
def test_wanted_labels_are_kept():
    wanted = torch.tensor([4, 4, 0, 1])
    images, labels = Generator((3, 8, 8), 5).sample(4, seeded(), wanted)
    assert torch.equal(labels, wanted) and images.shape == (4, 3, 8, 8)


@pytest.mark.parametrize("condition", ["embedding", "batchnorm"])
def test_every_weight_takes_part(condition):
    generator = Generator((3, 8, 8), 3, condition=condition)
    images, _ = generator.sample(16, seeded())
    (images**3).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in generator.parameters())
    assert not [name for name, p in generator.named_parameters() if not p.grad.any()]


@pytest.mark.parametrize("shape", [(7,), (3, 9), (3, 4, 4, 4), (3, 3, 8), (3, 8, 2)])
def test_shapes_that_are_no_images_are_refused(shape):
    with pytest.raises(ValueError, match=r"\(channels, height, width\) of at least 4x4 pixels, got .*use recipe 'distilled'"):
        Generator(shape)


def test_an_unknown_condition_is_refused():
    with pytest.raises(ValueError, match="unknown condition 'magic': expected one of embedding, batchnorm"):
        Generator((3, 8, 8), 5, condition="magic")


def flops(model: nn.Module, *inputs: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        model(*inputs).sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("classes, condition", [(None, "embedding"), (10, "embedding"), (10, "batchnorm")])
def test_a_step_costs_no_more_than_one_forward_and_backward_of_resnet20(classes, condition):
    noise = torch.randn(32, NOISE_SIZE, generator=seeded())
    labels = [torch.arange(32) % 10] if classes else []
    own = flops(Generator((3, 32, 32), classes, condition=condition), noise, *labels)
    assert 0 < own <= flops(ResNet20(), torch.randn(32, 3, 32, 32, generator=seeded()))
