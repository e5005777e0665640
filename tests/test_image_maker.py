"""Images for any network: large ones begin at a smaller side, resume in either half, and pay for no more than they should."""
import pytest
import torch
from networks import IMAGE, Remembering, Residual, awaken, images, teach
from torch import nn

from zsq_lab.bn_stats import BatchNormStatistics
from zsq_lab.image_maker import make_images, smaller
from zsq_lab.image_start import suited
from zsq_lab.images import optimise_images
from zsq_lab.resume import RunState
from zsq_lab.tasks import TASKS

LARGE, SMALL = (3, 128, 128), (3, 64, 64)


@pytest.fixture(scope="module")
def photographer():
    """A network for images of any size."""
    return teach(awaken(Residual()), 0.5 * images(8, LARGE))


def test_small_images_are_optimise_images_with_the_suited_settings():
    teacher = teach(awaken(Residual()), images(64, IMAGE))
    made, labels = make_images(teacher, 6, IMAGE, iterations=3, batch_size=4, seed=2)
    wanted, same = optimise_images(teacher, 6, IMAGE, iterations=3, batch_size=4, seed=2, **suited(teacher, IMAGE, seed=2))
    assert torch.equal(made, wanted) and torch.equal(labels, same)
    other, _ = make_images(teacher, 6, IMAGE, iterations=3, batch_size=4, seed=2, class_weight=0.5)
    assert not torch.equal(made, other)


def test_large_images_spend_half_of_their_time_at_a_smaller_side(photographer):
    sides, hook = [], photographer.register_forward_hook(lambda _, args, out: sides.append(args[0].shape[-1]))
    made, labels = make_images(photographer, 4, LARGE, iterations=6, batch_size=2)
    hook.remove()
    assert made.shape == (4, *LARGE) and labels.shape == (4,)
    counted = [(side, sides.count(side)) for side in sorted(set(sides))]
    assert counted[0][0] == 64 and 12 <= counted[0][1] <= 15  # two batches of six, and a look or two at the network
    assert counted[1][0] == 128 and 6 <= counted[1][1] <= 9


def test_the_second_half_goes_on_from_the_first(photographer):
    """What is coarse in the images comes from the small ones, in the same order, and they come nearer to the memory."""
    made, labels = make_images(photographer, 4, LARGE, iterations=60, batch_size=4, class_weight=0.0)
    settings = suited(photographer, LARGE) | {"class_weight": 0.0}
    small, same = optimise_images(photographer, 4, SMALL, iterations=60, batch_size=4, **settings)
    assert torch.equal(labels, same)
    coarse = nn.functional.adaptive_avg_pool2d(made, 8).flatten(1)
    likeness = torch.corrcoef(torch.cat([coarse, nn.functional.adaptive_avg_pool2d(small, 8).flatten(1)]))[:4, 4:]
    assert likeness.argmax(1).tolist() == [0, 1, 2, 3] and likeness.diagonal().min() > 0.5
    enlarged = nn.functional.interpolate(small, size=128, mode="bicubic", align_corners=False)
    with torch.no_grad(), BatchNormStatistics(photographer) as statistics:
        photographer(enlarged)
        before = statistics.loss()
        photographer(made)
        assert statistics.loss() < before


@pytest.mark.parametrize("stop_at, side", [(5, 64), (14, 128)])  # of 12 iterations with small images and 6 with large ones
def test_an_interrupted_run_ends_with_the_same_images(photographer, tmp_path, stop_at, side):
    whole, _ = make_images(photographer, 4, LARGE, iterations=6, batch_size=2)
    sides = []

    def stop(_iteration, made, _losses):
        sides.append(made.shape[-1])
        if len(sides) == stop_at:
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        make_images(photographer, 4, LARGE, iterations=6, batch_size=2, run=RunState(tmp_path, every=0), on_step=stop)
    assert sides[-1] == side
    resumed, _ = make_images(photographer, 4, LARGE, iterations=6, batch_size=2, run=RunState(tmp_path, every=0),
                             on_step=lambda _, made, __: sides.append(made.shape[-1]))
    assert torch.equal(whole, resumed) and len(sides) == 18, "what was done is not done again"


@pytest.mark.parametrize("asserts", [False, True])
def test_a_network_of_one_size_gets_its_images_at_that_size(asserts):
    """Whether its linear layer refuses another size, or an assertion, as in timm's patch embedding."""
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Sequential(nn.Conv2d(3, 4, 3, 8, 1), nn.BatchNorm2d(4), nn.ReLU()), nn.Linear(4 * 256, 5)

        def forward(self, x):
            torch._assert(not asserts or x.shape[2] == 128, "the input's height does not match the model's")
            return self.head(self.body(x).flatten(1))
    teacher = teach(awaken(Fixed()), images(8, LARGE))
    assert smaller(teacher, LARGE) is None
    made, _ = make_images(teacher, 2, LARGE, iterations=2, batch_size=2)
    assert made.shape == (2, *LARGE)


@pytest.mark.parametrize("shape, expected", [((3, 224, 224), (3, 160, 160)), ((3, 240, 240), (3, 160, 160)),
                                             ((3, 160, 300), (3, 96, 192)), (LARGE, SMALL), ((3, 96, 96), None)])
def test_the_smaller_side_is_a_multiple_of_32(photographer, shape, expected):
    assert smaller(photographer, shape) == expected


def test_what_a_network_keeps_from_the_smaller_side_may_meet_gradients():
    model = awaken(Remembering())
    assert smaller(model, LARGE) == SMALL and not model.kept.is_inference()


def test_scenes_keep_their_size(photographer):
    assert smaller(photographer, (3, 192, 240), TASKS["segmentation"]) is None
