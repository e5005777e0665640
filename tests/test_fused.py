"""BatchNorms of other classes become plain ones of the same function; timm's networks quantize like any other."""
import copy

import pytest
import torch
import torch.nn.functional as F
from networks import IMAGE, TINY, Residual, awaken, images, layer_and_norm, same_state, snapshot
from torch import nn

from zsq_lab import QuantConfig, quantize
from zsq_lab.bn_stats import statistics_layers
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


class FrozenBatchNorm2d(nn.Module):
    """As in code that keeps eps to itself (DETR's)."""

    def __init__(self, channels):
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(channels))

    def forward(self, x):
        weight, bias, mean, variance = (buffer.reshape(1, -1, 1, 1) for buffer in self.buffers())
        return (x - mean) * (variance + 1e-5).rsqrt() * weight + bias


class FrozenBatchNormWithoutShift(FrozenBatchNorm2d):
    """One that computes something of its own."""

    def forward(self, x):
        return super().forward(x) - self.bias.reshape(1, -1, 1, 1)


def frozen(kind, eps: float | None = None):
    """`Residual` whose BatchNorms are of a frozen kind, with the same numbers."""
    model = awaken(Residual())
    for name in ("bn_a", "bn_b", "bn_stem"):
        old, new = getattr(model, name), kind(6)
        new.load_state_dict({key: old.state_dict()[key] for key in new.state_dict()})
        if eps is not None:
            new.eps = old.eps = eps
        setattr(model, name, new)
    return model.eval()


@pytest.mark.parametrize("kind, eps", [("torchvision", None), ("torchvision", 0.0), ("timm", None), ("own", None)])
@pytest.mark.parametrize("convention", ["deployable", "literature"])
def test_frozen_batchnorms_remember_like_any_other(kind, eps, convention):
    """eps 0: torchvision's first RetinaNet weights."""
    import_torchvision()
    if kind == "torchvision":
        from torchvision.ops.misc import FrozenBatchNorm2d as norm
    elif kind == "timm":
        norm = pytest.importorskip("timm.layers").FrozenBatchNormAct2d
    else:
        norm = FrozenBatchNorm2d
    model, x = frozen(norm, eps), images(4)
    before = snapshot(model)
    teacher, _ = convert(model, QuantConfig(convention=convention), IMAGE)
    assert len(statistics_layers(teacher)) == 3
    torch.testing.assert_close(teacher(x), model(x), rtol=1e-4, atol=1e-5)
    assert same_state(before, model.state_dict()) and type(model.bn_a) is norm


def test_a_frozen_batchnorm_that_computes_something_else_is_named():
    with pytest.raises(ValueError, match=r"layer 'bn_\w+' \(FrozenBatchNormWithoutShift\) is a BatchNorm that computes some"):
        convert(frozen(FrozenBatchNormWithoutShift), QuantConfig(), IMAGE)


def test_synchronised_batchnorms_are_batchnorms():
    model = awaken(Residual())
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(awaken(Residual())).eval()
    expected, own = (convert(network, QuantConfig(), IMAGE)[0] for network in (model, synchronised))
    assert same_state(expected.state_dict(), own.state_dict()) and isinstance(synchronised.bn_a, nn.SyncBatchNorm)


@pytest.mark.parametrize("kind", ["conv1d", "conv3d", "linear"])
@pytest.mark.parametrize("convention", ["deployable", "literature"])
def test_a_synchronised_batchnorm_takes_any_number_of_dimensions(kind, convention):
    """`convert_sync_batchnorm` turns BatchNorm1d and BatchNorm3d into the same class as BatchNorm2d."""
    plain, shape = layer_and_norm(kind)
    model, x = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(plain)).eval(), images(4, shape)
    expected, own = (convert(network, QuantConfig(convention=convention), shape)[0] for network in (plain, model))
    assert same_state(expected.state_dict(), own.state_dict()) and len(statistics_layers(own)) == 1
    assert torch.equal(own(x), expected(x)) and isinstance(model[1], nn.SyncBatchNorm)


def test_a_norm_without_statistics_stays_as_it_is():
    model = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(nn.BatchNorm2d(4, track_running_stats=False))).eval()
    assert isinstance(split_fused_norms(model)[0], nn.SyncBatchNorm)


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
