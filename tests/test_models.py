"""The two networks: their published size and shape, and that the lab sees every part of them."""
import pytest
import torch
from networks import awaken, images

from zsq_lab.folding import fold_batchnorms
from zsq_lab.graph import BATCH_NORMS, trace
from zsq_lab.models import ARCHITECTURES, BasicBlock, MobileNetV2, build, count_parameters


def test_resnet20_has_the_papers_size():
    """0.27 million weights (He et al. 2016, table 6); counted by hand from the table of section 4.2."""
    stages = sum(3 * (2 * 9 * c * c + 4 * c) for c in (16, 32, 64)) - 9 * 32 * 16 - 9 * 64 * 32
    assert count_parameters(build("resnet20")) == 9 * 3 * 16 + 2 * 16 + stages + 64 * 10 + 10 == 269_722


def test_mobilenetv2_has_the_size_that_its_table_gives():
    """Counted from STAGES: expand and project (1x1), depthwise (9 a channel), two BatchNorm numbers a channel."""
    total, channels = 3 * 9 * 16 + 2 * 16, 16
    for expand, full_width, blocks, _ in MobileNetV2.STAGES:
        out = max(8, (full_width // 2 + 4) // 8 * 8)
        for _ in range(blocks):
            hidden = channels * expand
            total += (channels * hidden + 2 * hidden) * (expand > 1) + 11 * hidden + hidden * out + 2 * out
            channels = out
    total += channels * 640 + 2 * 640 + 640 * 10 + 10
    assert count_parameters(build("mobilenetv2")) == total == 590_410


@pytest.mark.parametrize("name, layers", [("resnet20", 20), ("mobilenetv2", 53)])
def test_every_layer_is_seen_and_every_batchnorm_folds(name, layers):
    model = awaken(build(name))
    graph = trace(model, (3, 32, 32))
    assert len(list(graph.layers())) == layers
    assert len(graph.first_layers()) == len(graph.last_layers()) == 1
    x = images(2, (3, 32, 32))
    expected = model(x)
    folded = fold_batchnorms(model, graph)
    assert not any(isinstance(m, BATCH_NORMS) for m in folded.modules())
    torch.testing.assert_close(folded(x), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits(name):
    model = build(name, 7).eval()
    assert model(images(2, (3, 32, 32))).shape == (2, 7)
    assert model(images(2, (3, 48, 40))).shape == (2, 7)


def test_a_wider_block_subsamples_its_shortcut_and_pads_channels():
    block = BasicBlock(2, 4, stride=2).eval()
    for parameter in block.conv2.parameters():
        parameter.data.zero_()
    x = images(1, (2, 4, 4)).abs()
    out = block(x)
    assert torch.equal(out[:, 1:3], x[:, :, ::2, ::2]) and not out[:, [0, 3]].any()


def test_unknown_architecture():
    with pytest.raises(ValueError, match="unknown architecture 'vgg': expected one of resnet20, mobilenetv2, segmenter"):
        build("vgg")
