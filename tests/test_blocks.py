"""The blocks of a network: which there are, which of them follow straight on one another, what goes in and comes out."""
import pytest
import torch
from networks import IMAGE, Asking, Mobile, SharedConv, awaken, images
from torch import nn

from zsq_lab.blocks import block_inputs, block_outputs, chained, find_blocks, required_blocks
from zsq_lab.efficientnet_lite import build
from zsq_lab.graph import LAYERS
from zsq_lab.layers import QuantConfig, convert
from zsq_lab.models import build as build_small


def student(model: nn.Module, shape=IMAGE) -> nn.Module:
    return convert(awaken(model), QuantConfig(8, 8), shape)[1]


def test_blocks_of_known_networks():
    small = student(build_small("resnet20"), (3, 16, 16))
    assert find_blocks(small, (3, 16, 16)) == ["conv1", *(f"layer{i}.{j}" for i in (1, 2, 3) for j in range(3)), "fc"]
    lite = student(build("efficientnet_lite0"), (3, 64, 64))
    assert find_blocks(lite, (3, 64, 64)) == ["stem", *(f"blocks.{i}" for i in range(16)), "head", "classifier"]
    assert find_blocks(student(Mobile()), IMAGE) == ["body", "fc"]


def test_layers_that_are_called_by_keyword_are_blocks():
    model, x = student(Asking()), images(4)
    names = find_blocks(model, IMAGE)
    assert names == ["conv1", "conv2", "fc"] and chained(model, names, x) == set()
    assert torch.equal(block_inputs(model, "conv1", x), x)
    with_names = nn.Module()
    with_names.first, with_names.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
    with_names.forward = lambda x: with_names.second(input=with_names.first(input=x))
    assert chained(with_names, ["first", "second"], x) == {"second"}


def test_a_layer_that_is_called_twice_is_left_alone():
    assert find_blocks(student(SharedConv()), IMAGE) == ["stem"]


class Tied(nn.Module):
    """Two blocks with one convolution in common, and a second name for the first layer."""

    def __init__(self):
        super().__init__()
        self.stem, shared = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.a, self.b, self.c = (Pair(nn.Conv2d(4, 4, 3, padding=1), last) for last in (shared, shared, nn.Conv2d(4, 4, 1)))
        self.watched = nn.ModuleList([self.stem, self.c])

    def forward(self, x):
        return self.c(self.b(self.a(self.stem(x))))


class Pair(nn.Module):
    def __init__(self, first, last):
        super().__init__()
        self.first, self.last = first, last

    def forward(self, x):
        return x + self.last(self.first(x).relu())


def test_of_blocks_that_share_a_layer_the_other_layers_are_taken_and_each_has_one_name():
    assert find_blocks(student(Tied()), IMAGE) == ["stem", "a.first", "b.first", "c"]
    assert find_blocks(Tied(), IMAGE, LAYERS) == ["stem", "a", "b", "c"], "gradients may be checkpointed all the same"


class Wrapped(nn.Module):
    """Around a network that answers with more than a tensor, and is not even called itself."""

    def __init__(self):
        super().__init__()
        self.net = nn.ModuleDict({"inner": Answers()})

    def forward(self, x):
        return self.net["inner"](x)["logits"]


class Answers(Mobile):
    def forward(self, x):
        return {"logits": super().forward(x)}


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.conv(self.conv(x))


def test_a_wrapper_is_looked_into():
    assert find_blocks(student(Wrapped()), IMAGE) == ["net.inner.body", "net.inner.fc"]


class Pyramid(nn.Module):
    """An encoder that gives its features of two sizes, as those of segmenters do, and a head that takes both."""

    def __init__(self):
        super().__init__()
        self.encoder = Levels()
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        fine, coarse = self.encoder(x)
        return self.head(fine + nn.functional.interpolate(coarse, scale_factor=2))


class Levels(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.stages = nn.Conv2d(3, 8, 3, padding=1), nn.ModuleList([Pair(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1))])
        self.down = nn.Conv2d(8, 8, 2, 2)

    def forward(self, x):
        x = self.stages[0](self.stem(x))
        return x, self.down(x)


def test_a_part_that_gives_several_tensors_is_looked_into():
    assert find_blocks(student(Pyramid()), IMAGE) == ["encoder.stem", "encoder.stages.0", "encoder.down", "head"]


def test_where_there_is_no_block_the_next_step_is_named():
    model = student(Twice())
    assert find_blocks(model, IMAGE) == []
    with pytest.raises(ValueError, match="no block of the model takes and gives one tensor: use recipe 'distilled'"):
        required_blocks(model, IMAGE)
    assert required_blocks(student(Mobile()), IMAGE) == ["body", "fc"]


def test_blocks_follow_where_nothing_lies_between():
    model = awaken(build("efficientnet_lite0"))
    names = find_blocks(student(model, (3, 64, 64)), (3, 64, 64))
    assert chained(model, names, images(2, (3, 64, 64))) == set(names) - {"stem", "classifier"}, "a mean is before the classifier"
    with_relu = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)).eval()
    assert chained(with_relu, ["0", "2", "3"], images(2, IMAGE)) == {"3"}, "ReLU changed the values where they lie"
    assert chained(with_relu, ["0", "3"], images(2, IMAGE)) == set()


@pytest.mark.parametrize("n", [3, 19])
def test_what_is_handed_on_is_what_the_model_hands_on_to_the_bit(n):
    """An interrupted run computes a block's inputs from the images, an uninterrupted one from the block before."""
    model, x = student(build("efficientnet_lite0"), (3, 64, 64)), images(n, (3, 64, 64))
    for layer in model.modules():
        if hasattr(layer, "weight_quantizer"):
            layer.weight_quantizer.enabled = layer.input_quantizer.enabled = False
    names = find_blocks(model, (3, 64, 64))
    inputs = block_inputs(model, names[0], x)
    assert torch.equal(inputs, x)
    for name, following in zip(names[:-2], names[1:]):
        kept = inputs.clone()
        outputs = block_outputs(model.get_submodule(name), inputs)
        assert torch.equal(inputs, kept), "a block may work in place, on a copy"
        inputs = outputs
        if following in (names[1], names[3], names[-2]):
            assert torch.equal(inputs, block_inputs(model, following, x))
