"""Evaluation of a stream: numbers worked by hand, nothing left behind, intervals against their definitions,
bad networks."""
import numpy as np
import pytest
import torch
from networks import Remembering, awaken, images, same_state, snapshot
from test_image_folder import class_folders
from torch import nn

from zsq_lab.image_folder import Preprocess, find_images
from zsq_lab.imagenet_evaluate import Answers, Share, evaluate, synthetic_agreement
from zsq_lab.layers import QuantConfig, convert
from zsq_lab.ranges import fit_input_ranges, fit_weight_ranges

SMALL = Preprocess(40, 32)


class Says(nn.Module):
    """Names the classes that it was told, one image after the other, whatever it sees."""

    def __init__(self, said):
        super().__init__()
        self.said, self.next, self.weight = said, 0, nn.Parameter(torch.zeros(1))

    def forward(self, x):
        logits = torch.zeros(len(x), 1000)
        for row in logits:
            row[torch.tensor(self.said[self.next])] = torch.arange(5, 0, -1).float()
            self.next += 1
        return logits


def test_top1_top5_agreement_and_drop_worked_by_hand(tmp_path):
    folder = find_images(class_folders(tmp_path))  # classes 0 0 217 217 491 491
    others = [1, 2, 3, 4]
    full = Says([[0, *others], [0, *others], [217, *others], [1, 217, 2, 3, 4], [491, *others], [9, *others]])
    own = Says([[0, *others], [1, 0, 2, 3, 4], [217, *others], [1, 217, 2, 3, 4], [2, 1, 3, 4, 5], [491, *others]])
    answers = evaluate({"full": full, "own": own}, folder, SMALL, workers=0)
    assert answers["full"].top1 == Share(4, 6) and answers["full"].top5 == Share(5, 6)
    assert answers["own"].top1 == Share(3, 6) and answers["own"].top5 == Share(5, 6)
    assert answers["own"].agreement(answers["full"]) == Share(3, 6)
    drop, half = answers["own"].drop(answers["full"])  # two lost, one won
    assert drop == pytest.approx(100 / 6) and half == pytest.approx(196 * (3 - 1 / 6) ** 0.5 / 6, rel=1e-4)


def test_the_interval_holds_the_share_that_it_claims_to():
    """Wilson's interval is where the share's own deviation reaches 1.96; 20 to 80 is a textbook case:
    0.125 to 0.293."""
    for hits, n in ((20, 100), (0, 10), (10, 10), (883, 1000)):
        for end in Share(hits, n).interval:
            p = end / 100
            assert abs(hits / n - p) == pytest.approx(1.959964 * (p * (1 - p) / n) ** 0.5, abs=1e-6)
    assert Share(20, 100).interval == pytest.approx((13.34, 28.88), abs=0.01)


def test_the_interval_of_a_drop_covers_the_truth():
    """Two networks that differ at random: about 95 of 100 intervals must hold the true difference of 2 points."""
    generator, covered = np.random.default_rng(0), 0
    for _ in range(200):
        u = generator.random(1000)
        full, own = np.where(u < 0.90, 0, 1), np.where((u > 0.04) & (u < 0.92), 0, 1)
        labels = torch.zeros(1000, dtype=torch.int64)
        drop, half = Answers(torch.tensor(own)[:, None], labels).drop(Answers(torch.tensor(full)[:, None], labels))
        covered += abs(drop - 2) <= half
    assert 184 <= covered <= 198


def student():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                            nn.Flatten(),
                            nn.Linear(8, 1000))
    teacher, student = convert(network, QuantConfig(4, 4), SMALL.image_shape)
    fit_weight_ranges(student, search=True)
    fit_input_ranges(student, [images(4, SMALL.image_shape)], search=True)
    return teacher, student


def test_evaluating_leaves_everything_as_it_was_and_says_what_the_model_says(tmp_path):
    folder = find_images(class_folders(tmp_path, each=4))
    teacher, quantized = student()
    quantized.train()
    before = snapshot(quantized)
    answers = evaluate({"own": quantized}, folder, SMALL, workers=0)["own"]
    assert same_state(before, quantized.state_dict()) and quantized.training
    assert all(module.weight_quantizer.enabled for module in quantized.modules() if hasattr(module, "weight_quantizer"))
    from zsq_lab.imagenet_evaluate import normalise
    pixels = torch.from_numpy(np.stack([SMALL.pixels(path) for path in folder.files]))
    with torch.inference_mode():
        wanted = quantized.eval()(normalise(pixels, SMALL)).topk(5).indices
    assert torch.equal(answers.top, wanted), "weights rounded once must give what weights rounded each time give"


def test_agreement_on_synthetic_images_counts_equal_answers():
    teacher, quantized = student()
    x = images(20, SMALL.image_shape)
    with torch.inference_mode():
        wanted = int((quantized(x).argmax(1) == teacher(x).argmax(1)).sum())
    assert synthetic_agreement(quantized, teacher, x) == Share(wanted, 20)
    assert synthetic_agreement(teacher, teacher, x).percent == 100


def test_a_network_that_overwrites_its_images_leaves_those_of_the_others():
    model = nn.Sequential(nn.Hardtanh(-0.1, 0.1, inplace=True), nn.Conv2d(3, 8, 3), nn.Flatten()).eval()
    x = images(4, SMALL.image_shape).contiguous(memory_format=torch.channels_last)
    before = x.clone()
    synthetic_agreement(model, model, x)
    assert torch.equal(x, before)


def test_a_network_that_keeps_a_tensor_can_be_trained_afterwards():
    model, x = awaken(Remembering()), images(4, SMALL.image_shape)
    synthetic_agreement(model, model, x)
    model(x.requires_grad_()).sum().backward()
    assert model.stem.weight.grad is not None


@pytest.mark.parametrize("network", [nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten()),  # grayscale
                                     nn.Sequential(nn.Flatten(), nn.Linear(3 * 28 * 28, 1000)),  # another size
                                     nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))])  # no 5 classes
def test_a_network_that_takes_other_images_is_one_clear_error(tmp_path, network):
    folder = find_images(class_folders(tmp_path))
    with pytest.raises(ValueError, match=r"does not take images \(3, 32, 32\).*3 channels"):
        evaluate({"own": network}, folder, SMALL, workers=0)
