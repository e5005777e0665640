"""BatchNorms with an activation inside: taken apart into the same function; timm's networks quantize like any other."""
import pytest
import torch
import torch.nn.functional as F
from networks import TINY, awaken, images, same_state, snapshot
from torch import nn

from zsq_lab import QuantConfig, quantize
from zsq_lab.fused import split_fused_norms
from zsq_lab.graph import BATCH_NORMS
from zsq_lab.layers import convert, quant_layers
from zsq_lab.torchvision_compat import import_torchvision


class NormAct(nn.BatchNorm2d):
    """BatchNorm, then the activation that it holds."""

    def __init__(self, channels):
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, x):
        return self.act(self.drop(F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.1,
                                               self.eps)))


class Doubles(nn.BatchNorm2d):
    """A BatchNorm that computes something of its own."""

    def forward(self, x):
        return 2 * super().forward(x)


def network(norm=NormAct):
    return awaken(nn.Sequential(nn.Conv2d(3, 4, 3), norm(4), nn.Conv2d(4, 4, 3), norm(4), nn.AdaptiveAvgPool2d(1),
                                nn.Flatten(),
                                nn.Linear(4, 5)))


def test_the_activation_survives_folding():
    model, x = network(), images(4)
    before = snapshot(model)
    teacher, _ = convert(model, QuantConfig(), x.shape[1:])
    assert not any(isinstance(m, BATCH_NORMS) for m in teacher.modules()), "it was not folded"
    torch.testing.assert_close(teacher(x), model(x), rtol=1e-4, atol=1e-5)
    assert same_state(before, model.state_dict())


def test_a_norm_that_computes_something_else_is_named():
    with pytest.raises(ValueError, match=r"layer '1' \(Doubles\) is a BatchNorm that computes something of its own"):
        split_fused_norms(network(Doubles))
    plain = network(nn.BatchNorm2d)
    assert split_fused_norms(plain) is plain and isinstance(plain[1], nn.BatchNorm2d)


@pytest.mark.parametrize("recipe", ["rtn-bn", "dfq", "best"])
def test_a_timm_network_quantizes_like_any_other(recipe):
    import_torchvision()  # timm asks for it
    timm = pytest.importorskip("timm")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = awaken(timm.create_model("mobilenetv2_035", pretrained=False, num_classes=7))
    x = images(2, (3, 32, 32))
    result = quantize(model, QuantConfig(8, 8), recipe, image_shape=(3, 32, 32), budget=TINY)
    assert len(quant_layers(result.model)) == sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules())
    with torch.inference_mode():
        wanted = model(x)
        assert (result.model(x) - wanted).abs().mean() < 0.5 * wanted.abs().mean()
