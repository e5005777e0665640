"""Layers that factors move through and layers that they do not, and models that a rewriting would have changed unnoticed."""
import pytest
import torch
import torch.nn.functional as F
from networks import IMAGE, LAYER_TYPES, Residual, Standardised, awaken, images
from torch import Tensor, nn

from zsq_lab.folding import fold
from zsq_lab.graph import trace
from zsq_lab.layers import QuantConfig, convert
from zsq_lab.trials import require_unchanged, takes_factors


@pytest.mark.parametrize("kind", LAYER_TYPES)
def test_layers_of_torch_take_factors_and_so_do_classes_that_compute_the_same(kind):
    layer, _, shape = LAYER_TYPES[kind]
    layer = awaken(layer())
    assert takes_factors(layer, (2, *shape))
    layer.__class__ = type("Own", (type(layer),), {})
    assert takes_factors(layer, (2, *shape))


class Same(nn.Conv2d):
    """Pads for itself, as timm's convolutions of TensorFlow's networks do."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 1, 0, 1)))


class Activated(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


class Normed(nn.Conv2d):
    """With the norm inside, as in detectron2; the norm itself is linear where its mean and beta are 0."""

    def __init__(self, *args):
        super().__init__(*args, bias=False)
        self.norm = nn.BatchNorm2d(self.out_channels).eval()
        self.norm.running_var.fill_(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x))


class Squashed(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.tanh(x))


class Shuffled(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flip(1)


class Upsampled(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(super().forward(x), 2)


class WithoutBias(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight, None)


class Adapted(nn.Conv2d):
    """A low-rank addition beside its weight."""

    def __init__(self, *args):
        super().__init__(*args)
        self.adapter = nn.Conv2d(self.in_channels, self.out_channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.01 * self.adapter(x)


class Masked(nn.Conv2d):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return super().forward(x * mask)


@pytest.mark.parametrize("kind, expected", [(Same, True), *((kind, False) for kind in (
    Standardised, Activated, Normed, Squashed, Shuffled, Upsampled, WithoutBias, Adapted, Masked))])
def test_a_class_with_a_forward_of_its_own_is_tried(kind, expected):
    layer = kind(3, 4, 3)
    before = layer.weight.clone()
    assert takes_factors(layer, (2, *IMAGE)) is expected
    assert torch.equal(layer.weight, before) and (layer.bias is None) == (kind is Normed)


class Listed(Residual):
    """Calls two of its BatchNorms from a plain list, where nothing can replace them."""

    def __init__(self):
        super().__init__()
        self.norms = [self.bn_a, self.bn_b]

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn_stem(self.stem(x)))
        out = F.relu(self.norms[0](self.conv_a(x)))
        return self.fc(F.relu(self.norms[1](self.conv_b(out)) + x).mean((2, 3)))


class Tied(nn.Module):
    """Decodes with the weight that it encodes with."""

    def __init__(self):
        super().__init__()
        self.encode, self.norm = nn.Linear(6, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.relu(self.norm(self.encode(x))), self.encode.weight.t())


@pytest.mark.parametrize("model, shape", [(Listed(), IMAGE), (Tied(), (6,))], ids=["list", "tied"])
def test_a_fold_that_changes_the_model_is_an_error(model, shape):
    model = awaken(model)
    with pytest.raises(ValueError, match="folding its BatchNorms changes what this model computes.*nn.ModuleList.*weight with"
                                         "out calling the layer: call the layer, or use convention 'literature'"):
        convert(model, QuantConfig(), shape)
    teacher, _ = convert(model, QuantConfig(convention="literature"), shape)
    torch.testing.assert_close(teacher(images(4, shape)), model(images(4, shape)), rtol=1e-4, atol=1e-4)


class Leaping(Residual):
    """Puts out something else in each pass, or something else after the least rounding."""

    def __init__(self, random: bool):
        super().__init__()
        self.random = random

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return F.dropout(x, 0.5) if self.random else (1e7 * x).sin()


@pytest.mark.parametrize("random", [True, False])
def test_a_model_that_rounding_changes_is_not_judged(random):
    model = awaken(Leaping(random))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fold(model, IMAGE)


def test_what_is_no_float_or_has_no_fixed_size_is_not_compared():
    class Finished(Residual):
        def forward(self, x: Tensor):
            x = super().forward(x)
            return x.argmax(1), x[0, : 3 + len(self.bonus)]

    model = awaken(Finished())
    model.bonus = []
    graph = trace(model, IMAGE)
    model.bonus = [1]
    require_unchanged(graph, model, IMAGE, "nothing", "nothing")
    model.bonus, model.fc.bias = [], nn.Parameter(model.fc.bias + 1)
    with pytest.raises(ValueError, match="nothing changes what this model computes"):
        require_unchanged(graph, model, IMAGE, "nothing", "nothing")
