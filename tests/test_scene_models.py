"""The pyramid and what stands on it: shapes for any size of image, quantizable to the last layer,
what the heads mean."""
import pytest
import torch
from networks import awaken

from zsq_lab.graph import BATCH_NORMS, trace
from zsq_lab.folding import fold_batchnorms
from zsq_lab.models import build, count_parameters
from zsq_lab.scene_models import STRIDE, Detector, Segmenter


@pytest.mark.parametrize("height, width", [(32, 32), (36, 48), (45, 60), (50, 34)])
def test_shapes(height, width):
    x = torch.randn(2, 3, height, width)
    assert build("segmenter", 7).eval()(x).shape == (2, 7, height, width)
    output = build("detector", 5).eval()(x)
    rows, columns = -(-height // STRIDE), -(-width // STRIDE)
    assert output["classes"].shape == (2, 5, rows, columns) and output["boxes"].shape == (2, 4, rows, columns)


@pytest.mark.parametrize("model", [Segmenter(4), Detector(4)], ids=["segmenter", "detector"])
def test_every_batchnorm_folds_and_the_output_stays(model):
    model, x = awaken(model), torch.randn(2, 3, 32, 48)
    graph = trace(model, (3, 32, 48))
    assert len(graph.first_layers()) == 1
    assert graph.last_layers() == ({"classify"} if isinstance(model, Segmenter) else {"classify", "measure"})
    expected = model(x)
    folded = fold_batchnorms(model, graph)
    assert not any(isinstance(m, BATCH_NORMS) for m in folded.modules())
    torch.testing.assert_close(folded(x), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["segmenter", "detector"])
def test_half_precision_fits_three_megabytes(name):
    assert 2 * count_parameters(build(name, 11)) < 3e6


def test_a_new_detector_is_sure_of_nothing():
    model = build("detector", 3).eval()
    output = model(torch.randn(1, 3, 64, 64))
    assert output["classes"].sigmoid().max() < 0.05
    assert model.detections(output)[0]["boxes"].shape == (0, 4)


def test_a_location_sees_far():
    """A change in one corner reaches the middle: the dilated blocks look around."""
    model, x = awaken(Segmenter(3)), torch.randn(1, 3, 128, 128)
    changed = x.clone()
    changed[:, :, :8, :8] += 3
    assert not torch.equal(model(x)[:, :, 64, 64], model(changed)[:, :, 64, 64])
