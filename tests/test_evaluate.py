"""Evaluation: the accuracy counted by hand, and a model that comes back to the bit as it went in."""
import pytest
import torch
from networks import Remembering, awaken, images, same_state, snapshot
from torch import Tensor, nn

from zsq_lab import QuantConfig, quantize
from zsq_lab.data import Dataset, Split
from zsq_lab.evaluate import BATCH, accuracy, predict

N = BATCH + 30  # one full batch and a part


def dataset() -> tuple[Dataset, Split]:
    pixels = torch.randint(0, 256, (N, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    labels = torch.arange(N) % 5
    split = Split(pixels, labels)
    return Dataset("noise", tuple("abcde"), (0.5,) * 3, (0.25,) * 3, lambda _: split), split


class Brightest(nn.Module):
    """Logits that are known without any training: class 0 where red is the brightest channel, 1 green, 2 blue."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * x.mean((2, 3))


def test_predictions_and_accuracy_counted_by_hand():
    data, split = dataset()
    expected = split.images.float().mean((2, 3)).argmax(1)
    predictions = predict(Brightest(), split, data)
    assert torch.equal(predictions, expected)
    right = sum(int(p == y) for p, y in zip(expected, split.labels, strict=True))
    assert accuracy(Brightest(), split, data) == pytest.approx(100 * right / N)


def test_limit_takes_the_first_images():
    data, split = dataset()
    assert torch.equal(predict(Brightest(), split, data, limit=7), predict(Brightest(), split, data)[:7])
    some = (predict(Brightest(), split, data)[:7] == split.labels[:7]).double().mean().item()
    assert accuracy(Brightest(), split, data, limit=7) == pytest.approx(100 * some)
    assert len(predict(Brightest(), split, data, limit=10 * N)) == N


def classifier() -> nn.Module:
    return awaken(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(),
                                nn.Linear(4 * 36, 5)))


@pytest.mark.parametrize("convention", [None, "deployable", "literature"])
def test_evaluating_changes_no_bit_no_mode_and_no_random_number(convention):
    data, split = dataset()
    model = classifier()
    if convention:
        model = quantize(model, QuantConfig(4, 4, convention=convention), "rtn-bn", image_shape=(3, 8, 8)).model
    model.train()
    model[2].eval()
    modes = [m.training for m in model.modules()]
    before, random_state, x = snapshot(model), torch.get_rng_state(), images(4)
    first = accuracy(model, split, data)
    assert accuracy(model, split, data) == first, "evaluated in training mode: dropout would give another number"
    assert same_state(before, model.state_dict()) and torch.equal(torch.get_rng_state(), random_state)
    assert [m.training for m in model.modules()] == modes
    assert not torch.is_inference_mode_enabled() and not model.eval()(x).is_inference()


def test_a_network_that_keeps_a_tensor_can_be_trained_afterwards():
    data, split = dataset()
    model = awaken(Remembering())
    predict(model, split, data, limit=4)
    model(images(4).requires_grad_()).sum().backward()
    assert model.stem.weight.grad is not None


def test_modes_come_back_after_an_error():
    data, split = dataset()
    model = nn.Sequential(nn.Conv2d(1, 2, 1)).train()
    with pytest.raises(RuntimeError):
        predict(model, split, data)
    assert model.training and model[0].training


def test_a_network_that_views_its_maps_is_measured_as_it_is():
    class Viewing(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), nn.Linear(4 * 36, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x).view(len(x), -1))
    model = awaken(Viewing())
    data, split = dataset()
    with torch.no_grad():
        wanted = model(data.normalise(split.images).contiguous()).argmax(1)
    assert torch.equal(predict(model, split, data), wanted)
