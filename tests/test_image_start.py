"""How images begin: contrast and colours are found in the first BatchNorm, of any kind of input, and decided by the seed."""
import pytest
import torch
from networks import IMAGE, Residual, awaken, images, snapshot, same_state, teach
from torch import nn

from zsq_lab.bn_stats import BatchNormStatistics
from zsq_lab.checkpoints import load_model
from zsq_lab.image_start import (
    AMPLITUDES,
    CORRELATIONS,
    LARGE_CLASS_WEIGHT,
    LARGE_CONTRAST,
    LARGE_RATE,
    LARGE_SLOPE,
    RATE,
    natural_noise,
    suited,
)
from zsq_lab.images import colour, optimise_images
from zsq_lab.layers import QuantConfig, convert
from zsq_lab.tasks import SEGMENTATION


@pytest.mark.parametrize("contrast, correlation", [(0.25, 0.0), (1.0, 0.9), (0.5, 0.6)])
def test_the_first_batchnorm_knows_contrast_and_colours(contrast, correlation):
    taught = teach(awaken(Residual()), contrast * colour(images(128, (3, 16, 16)), correlation))
    kept = snapshot(taught)
    amplitude, found = natural_noise(taught, (3, 16, 16))
    assert amplitude == contrast and amplitude in AMPLITUDES
    near = CORRELATIONS.index(correlation)
    assert found in CORRELATIONS[max(0, near - 1):near + 2]
    assert same_state(kept, taught.state_dict())
    settings = suited(taught, (3, 16, 16))
    assert settings["amplitude"] == contrast and settings["learning_rate"] == pytest.approx(RATE * contrast)


def test_large_images_are_asked_for_with_smoother_noise_and_begin_paler():
    shape = (3, 128, 128)
    taught = teach(awaken(Residual()), 0.5 * colour(images(8, shape), 0.85, LARGE_SLOPE))
    settings = suited(taught, shape)
    assert settings["amplitude"] == LARGE_CONTRAST * 0.5 and settings["class_weight"] == LARGE_CLASS_WEIGHT
    assert settings["learning_rate"] == pytest.approx(LARGE_RATE * settings["amplitude"])
    assert settings["correlation"] == 0.85 != natural_noise(taught, shape)[1], "other noise would name other colours"


def test_a_network_of_photographs_wants_channels_alike():
    """CIFAR-10's channels correlate by 0.91, its normalised deviation is 0.99."""
    teacher, _ = convert(load_model("cifar10/resnet20")[0], QuantConfig(), (3, 32, 32))
    assert natural_noise(teacher, (3, 32, 32)) == (1.0, 0.9)
    assert suited(teacher, (3, 32, 32)) == {"amplitude": 1.0, "learning_rate": 0.2, "correlation": 0.9}


@pytest.mark.slow
def test_scenes_that_begin_as_large_photographs_do_come_nearer_to_the_memory():
    """In as many iterations, by a network of street scenes, than with the settings of small images."""
    shape, common = (3, 180, 240), {"iterations": 12, "batch_size": 4, "task": SEGMENTATION}
    teacher, _ = convert(load_model("camvid/segmenter")[0], QuantConfig(), shape)
    amplitude, correlation = natural_noise(teacher, shape)
    as_small = {"amplitude": amplitude, "learning_rate": RATE * amplitude, "correlation": correlation}
    distances = []
    for settings in (suited(teacher, shape, SEGMENTATION), as_small):
        assert "class_weight" not in settings, "a scene that shows nothing teaches nothing of objects"
        scenes, _ = optimise_images(teacher, 4, shape, **common, **settings)
        with torch.no_grad(), BatchNormStatistics(teacher) as statistics:
            teacher(scenes)
            distances.append(statistics.loss().item())
    assert distances[0] < 0.3 * distances[1], distances


@pytest.mark.parametrize("network, shape", [
    (lambda: nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8)), (1, 16, 16)),
    (lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8)), (6,)),
    (lambda: nn.Sequential(nn.Conv1d(2, 8, 3), nn.BatchNorm1d(8)), (2, 40)),
])
def test_other_inputs_go_too(network, shape):
    taught = teach(awaken(network()), 0.5 * images(64, shape))
    settings = suited(taught, shape)
    made, _ = optimise_images(taught, 4, shape, iterations=2, **settings)
    assert made.shape == (4, *shape) and (shape[0] == 2 or settings["correlation"] == 0)


def test_the_order_of_the_forward_pass_says_which_layer_is_first():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.late = nn.BatchNorm2d(4)  # registered before the layer that comes first
            self.conv, self.early = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x):
            return self.late(1 + 7 * self.early(self.conv(x)))
    taught = teach(awaken(Backwards()), 0.25 * colour(images(64, (3, 16, 16))))
    taught.late.running_var *= 16  # it would name a contrast four times as large
    assert natural_noise(taught, (3, 16, 16))[0] == 0.25


def test_the_seed_decides_and_a_network_without_memory_is_refused():
    taught = teach(awaken(Residual()), images(64, IMAGE))
    assert suited(taught, IMAGE, seed=3) == suited(taught, IMAGE, seed=3)
    with pytest.raises(ValueError, match="no BatchNorm with running statistics, which making images needs"):
        natural_noise(nn.Conv2d(3, 4, 1), IMAGE)
