"""The segmenter on EfficientNet-Lite0's first stages: its shapes, what it takes over, that it folds and fits its file."""
import pytest
import torch
from networks import awaken, same_state

from zsq_lab.efficientnet_lite import EfficientNetLite
from zsq_lab.folding import fold_batchnorms
from zsq_lab.graph import BATCH_NORMS, trace
from zsq_lab.lite_segmenter import TAPS, LiteSegmenter
from zsq_lab.models import build, count_parameters


@pytest.mark.parametrize("height, width", [(32, 32), (45, 60), (180, 240)])
def test_a_logit_for_every_pixel_of_any_size(height, width):
    assert build("lite_segmenter", 7).eval()(torch.randn(2, 3, height, width)).shape == (2, 7, height, width)


def test_the_encoder_is_that_of_the_classifier():
    """At each level it hands on what the classifier's block of that place gives, whatever else is in the network."""
    whole, network, x = awaken(EfficientNetLite()), LiteSegmenter(3).eval(), torch.randn(2, 3, 64, 64)
    head = network.classify.weight.clone()
    network.pyramid.begin_trained(whole)
    with torch.no_grad():
        levels = network.pyramid.descend(x)
        for level, last in zip(levels, list(TAPS)[:3], strict=False):
            expected = whole.blocks[:last + 1](whole.stem(x))
            assert level.shape[2] == 64 // 2 ** (1 + list(TAPS).index(last))
            torch.testing.assert_close(level, expected)
            assert whole.blocks[last + 1](expected).shape[2] == level.shape[2] // 2  # the last one of its size
    assert same_state(network.pyramid.blocks.state_dict(), whole.blocks[:11].state_dict())
    assert torch.equal(network.classify.weight, head)


def test_every_batchnorm_folds_and_the_output_stays():
    network, x = awaken(LiteSegmenter(4)), torch.randn(2, 3, 48, 64)
    graph = trace(network, (3, 48, 64))
    assert len(graph.first_layers()) == 1 and graph.last_layers() == {"classify"}
    folded, expected = fold_batchnorms(network, graph), network(x)
    assert not any(isinstance(m, BATCH_NORMS) for m in folded.modules())
    torch.testing.assert_close(folded(x), expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


def test_half_precision_fits_three_megabytes():
    assert 2 * count_parameters(build("lite_segmenter", 11)) < 3e6
