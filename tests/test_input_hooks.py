"""Networks that spoil their images, or take one layout alone, go through the lab like all others."""
import pytest
import torch
import torch.nn.functional as F
from networks import IMAGE, TINY, awaken, images
from torch import Tensor, nn

from zsq_lab.deploy import deploy
from zsq_lab.input_hooks import any_layout
from zsq_lab.layers import QuantConfig, convert, quantization_off
from zsq_lab.recipes import quantize


class Viewing(nn.Module):
    """The head of VGG's day: a map of several positions is viewed as a vector."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Linear(6 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_max_pool2d(F.relu(self.bn(self.conv(x))), 4)
        return self.fc(x.view(x.size(0), -1))


class Normalising(Viewing):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.sub_(0.5).div_(2))


@pytest.mark.parametrize("convention", ["deployable", "literature"])
def test_a_network_that_views_its_maps_keeps_its_function_in_any_layout(convention):
    model, x = awaken(Viewing()), images(4)
    teacher, student = convert(model, QuantConfig(convention=convention), IMAGE)
    with torch.no_grad(), quantization_off(student):
        for given in (x, x.contiguous(memory_format=torch.channels_last)):
            for network in (teacher, student):
                torch.testing.assert_close(network(given), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("recipe", ["rtn-bn", "zeroq", "distilled", "best", "reconstructed", "zs-cgan"])
def test_recipes_on_a_network_that_views_its_maps(recipe):
    result = quantize(awaken(Viewing()), QuantConfig(8, 8), recipe, image_shape=IMAGE, budget=TINY)
    x = images(4)
    with torch.no_grad():
        wanted, simulated = awaken(Viewing())(x), result.model(x)
        assert (simulated - wanted).norm() < 0.3 * wanted.norm()
        assert (deploy(result.model, IMAGE, x)(x) - simulated).norm() < 0.05 * simulated.norm()


def test_other_networks_get_no_hook():
    class Flattening(Viewing):
        def forward(self, x: Tensor) -> Tensor:
            return self.fc(F.adaptive_max_pool2d(F.relu(self.bn(self.conv(x))), 4).flatten(1))
    assert not any(network._forward_pre_hooks for network in convert(awaken(Flattening()), QuantConfig(), IMAGE))


def test_images_given_by_keyword_are_copied_too():
    model, x = awaken(Normalising()), images(4)
    quantized = quantize(model, QuantConfig(8, 8), "rtn-bn", image_shape=IMAGE).model
    with torch.no_grad():
        assert torch.equal(quantized(x=x), quantized(x)) and torch.equal(x, images(4))


@torch.no_grad()
@pytest.mark.parametrize("network", [Viewing, Normalising])
def test_any_layout_takes_a_float_network_as_it_is_and_keeps_the_images(network):
    model, x = awaken(network()), images(4).contiguous(memory_format=torch.channels_last)
    before, say = x.clone(), any_layout(model)
    wanted = model(x.clone(memory_format=torch.contiguous_format))
    for _ in range(2):
        torch.testing.assert_close(say(x), wanted)
        assert torch.equal(x, before)


def test_any_layout_finds_out_once_and_passes_on_other_errors():
    class Counting(Viewing):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(x)
    model = awaken(Counting())
    say = any_layout(model)
    with torch.no_grad():
        say(images(4)), say(images(4))
    assert model.calls == 3
    with pytest.raises(RuntimeError, match="channels"):
        say(torch.zeros(4, 2, 8, 8))
