"""Images from statistics: the distance falls, the class is met, the seed decides all, and nothing else changes."""
import pytest
import torch
import torch.nn.functional as F
from networks import IMAGE, Mobile, Remembering, Residual, awaken, images, same_state, snapshot, teach
from torch import nn

from zsq_lab import gznq, zscgan
from zsq_lab.bn_stats import BatchNormStatistics
from zsq_lab.generators import Generator
from zsq_lab.images import colour, count_classes, optimise_images
from zsq_lab.layers import QuantConfig, convert
from zsq_lab.resume import RunState


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    """Its memory is of smooth, colourful images, which noise is not."""
    smooth = F.interpolate(images(64, (3, 2, 2)), size=8, mode="bilinear") * 2 + 0.5
    return convert(teach(awaken(Residual()), smooth), QuantConfig(), IMAGE)[0]


def distance(model: nn.Module, x: torch.Tensor) -> float:
    with torch.no_grad(), BatchNormStatistics(model) as statistics:
        model(x)
        return statistics.loss().item()


def test_statistics_close_in(teacher):
    steps = []
    made, labels = optimise_images(teacher, 32, IMAGE, iterations=60,
                                   on_step=lambda i, _, losses: steps.append((i, losses)))
    assert made.shape == (32, *IMAGE) and made.dtype == torch.float32 and not made.requires_grad
    assert distance(teacher, made) < 0.3 * distance(teacher, images(32))
    assert [i for i, _ in steps] == list(range(60))
    assert steps[-1][1]["statistics"] < 0.3 * steps[0][1]["statistics"]
    assert len(labels) == 32


def test_the_class_loss_makes_images_of_the_wanted_class():
    model = awaken(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)))
    ends = {}
    for weight in (0.0, 1.0):
        optimise_images(model, 20, IMAGE, iterations=150, class_weight=weight, statistics_weight=1 - weight,
                        on_step=lambda _, __, losses, weight=weight: ends.update({weight: losses["class"]}))
    assert ends[1.0] < 0.5 * ends[0.0]


def test_classes_are_dealt_out_evenly_and_wanted_ones_are_kept(teacher):
    _, labels = optimise_images(teacher, 10, IMAGE, iterations=1)
    assert labels.bincount().tolist() == [2] * 5
    wanted = torch.tensor([4, 4, 0])
    _, labels = optimise_images(teacher, 3, IMAGE, iterations=1, labels=wanted)
    assert torch.equal(labels, wanted)


def test_the_seed_decides_all(teacher):
    first, again, other = (optimise_images(teacher, 6, IMAGE, iterations=3, batch_size=4, seed=s)[0] for s in (0, 0, 1))
    assert first.shape[0] == 6
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_batches_of_unequal_size_are_made_one_after_the_other(teacher):
    steps = []
    made, labels = optimise_images(teacher, 10, IMAGE, iterations=2, batch_size=4,
                                   on_step=lambda i, batch, _: steps.append((i, len(batch))))
    assert steps == [(0, 4), (1, 4), (0, 4), (1, 4), (0, 2), (1, 2)]
    assert len(made) == len(labels) == 10 and torch.pdist(made.flatten(1)).min() > 1


def test_finished_images_are_taken_from_their_state(teacher, tmp_path):
    made, labels = optimise_images(teacher, 6, IMAGE, iterations=2, batch_size=4, run=RunState(tmp_path))
    again, same = optimise_images(teacher, 6, IMAGE, iterations=2, batch_size=4, run=RunState(tmp_path),
                                  on_step=lambda *_: pytest.fail("these images were made already"))
    assert torch.equal(made, again) and torch.equal(labels, same)


def test_nothing_else_changes(teacher):
    before, random_state = snapshot(teacher), torch.get_rng_state()
    optimise_images(teacher, 4, IMAGE, iterations=2)
    assert same_state(before, teacher.state_dict()) and torch.equal(torch.get_rng_state(), random_state)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in teacher.modules())
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_works_where_the_caller_has_switched_gradients_off(teacher, context):
    expected, _ = optimise_images(teacher, 4, IMAGE, iterations=2)
    with context():
        made, _ = optimise_images(teacher, 4, IMAGE, iterations=2)
        assert not torch.is_grad_enabled()
    assert torch.equal(made, expected)


@pytest.mark.parametrize("layers, shape", [
    ([nn.Linear(6, 4), nn.BatchNorm1d(4)], (6,)), ([nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4)], (2, 7)),
    ([nn.Conv3d(2, 4, 2), nn.BatchNorm3d(4)], (2, 4, 4, 4))], ids=["vector", "signal", "volume"])
def test_inputs_that_are_not_images(layers, shape):
    model = awaken(nn.Sequential(*layers))
    made, labels = optimise_images(model, 64, shape, iterations=40)
    assert made.shape == (64, *shape) and (labels is None) == (len(shape) > 1)
    assert distance(model, made) < distance(model, images(64, shape))


class InPlace(Mobile):
    """Activations that overwrite their input, as modules and as functions: the statistics need what they overwrite."""

    def __init__(self):
        super().__init__()
        self.head, self.norm = nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.norm(self.head(self.body(x))), inplace=True).mean((2, 3))


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("network", [Mobile, InPlace])
def test_activations_in_place_and_unfolded_batchnorms(network, folded):
    model = teach(awaken(network()), 2 * images(64) + 1)
    model = convert(model, QuantConfig(), IMAGE)[0] if folded else model
    made, _ = optimise_images(model, 16, IMAGE, iterations=40)
    assert distance(model, made) < 0.5 * distance(model, images(16))


def test_count_classes():
    assert count_classes(awaken(Residual()), IMAGE) == 5
    assert count_classes(awaken(nn.Conv2d(3, 4, 1)), IMAGE) is None


def test_what_a_model_keeps_while_classes_are_counted_may_meet_gradients():
    model = awaken(Remembering()).requires_grad_(False)
    made, _ = optimise_images(model, 2, IMAGE, iterations=1)  # a batch of the size that classes are counted with
    assert made.isfinite().all() and not model.kept.is_inference()


def test_a_model_without_statistics_and_a_divergence_are_named(teacher):
    with pytest.raises(ValueError, match="no BatchNorm with running statistics, which making images needs"):
        optimise_images(nn.Conv2d(3, 4, 1), 4, IMAGE)
    with pytest.raises(RuntimeError, match="diverged at iteration .*: lower the learning rate .*, or use a recipe that makes "
                                           "no images, such as 'squant'"):
        optimise_images(teacher, 4, IMAGE, iterations=5, learning_rate=1e30)


def test_colours_of_noise_are_as_alike_as_is_asked():
    white = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for wanted in (0.0, 0.85):
        made = colour(white, wanted)
        seen = torch.corrcoef(made.transpose(0, 1).flatten(1))
        assert seen[~torch.eye(3, dtype=torch.bool)].mean().item() == pytest.approx(wanted, abs=0.06)
        assert made.std().item() == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("slope", [0.5, 1.0, 1.25])
def test_amplitudes_of_noise_fall_as_is_asked(slope):
    made = colour(torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0)), slope=slope)
    amplitude = torch.fft.fft2(made).abs().mean((0, 1))[0]  # along the frequencies of one axis
    assert (amplitude[2] / amplitude[8]).item() == pytest.approx(4 ** slope, rel=0.1)
    assert made.std().item() == pytest.approx(1, abs=0.1)


def test_images_go_on_from_those_that_are_given(teacher):
    begun = 3 * images(6)
    kept, _ = optimise_images(teacher, 6, IMAGE, iterations=0, batch_size=4, begin=begun)
    assert torch.equal(kept, begun)
    made, _ = optimise_images(teacher, 6, IMAGE, iterations=20, batch_size=4, begin=begun)
    assert torch.corrcoef(torch.stack([made.flatten(), begun.flatten()]))[0, 1] > 0.5
    assert distance(teacher, made) < distance(teacher, begun)


class Frozen(Mobile):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return super().forward(x)


@pytest.mark.parametrize("make", [lambda model: optimise_images(model, 4, IMAGE, iterations=2),
                                  lambda model: gznq.prior_images(model, 4, IMAGE, iterations=2),
                                  lambda model: zscgan.train_generator(Generator(IMAGE, 10), model, iterations=2)])
def test_a_model_through_which_no_gradient_comes_is_named(make):
    teacher, _ = convert(awaken(Frozen()), QuantConfig(), IMAGE)
    with pytest.raises(ValueError, match=r"no gradient comes back through the model: its forward uses torch.no_grad\(\)"):
        make(teacher)
