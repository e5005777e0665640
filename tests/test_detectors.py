"""torchvision's SSDLite, RetinaNet and FCOS through quantize(), with random weights: heads that learn, boxes in the end."""
import pytest
import torch
from networks import awaken, same_state, snapshot, teach
from torch import nn

from zsq_lab import QuantConfig, quantize
from zsq_lab.detectors import Heads
from zsq_lab.distill import relative_error
from zsq_lab.job import Budget
from zsq_lab.layers import quant_layers
from zsq_lab.torchvision_compat import import_torchvision

SHAPE = (3, 64, 64)


@pytest.fixture(scope="module")
def ssdlite() -> nn.Module:
    """SSDLite with MobileNetV3, random weights, whose BatchNorms remember noise."""
    import_torchvision()
    from torchvision.models.detection import ssdlite320_mobilenet_v3_large
    torch.manual_seed(0)
    detector = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4).eval()
    with torch.no_grad():
        teach(Heads(detector), torch.randn(8, *SHAPE))
    return detector


def test_heads_are_what_the_detector_itself_decides_by(ssdlite):
    heads, images = Heads(ssdlite), torch.rand(2, *SHAPE)
    with torch.no_grad():
        own = heads.detections(heads(images))
        transform, ssdlite.transform = ssdlite.transform, _no_transform()
        theirs = ssdlite(list(images))
        ssdlite.transform = transform
    assert len(own) == len(theirs) == 2 and len(own[0]["boxes"]) > 0
    for mine, expected in zip(own, theirs, strict=True):
        torch.testing.assert_close(mine, expected)


def _no_transform() -> nn.Module:
    from torchvision.models.detection.image_list import ImageList

    class Same(nn.Module):
        def forward(self, images, targets=None):
            return ImageList(torch.stack(images), [tuple(image.shape[1:]) for image in images]), targets

        def postprocess(self, result, image_sizes, original_sizes):
            return result
    return Same()


@pytest.mark.parametrize("recipe", ["rtn-bn", "best"])
def test_ssdlite_through_quantize(ssdlite, recipe):
    heads, images = Heads(ssdlite), torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    result = quantize(heads, QuantConfig(8, 8), recipe, image_shape=SHAPE, task="detection",
                      budget=Budget("tiny", 4, 2, 2, 2, 4, 2))
    with torch.no_grad():
        expected, output = heads(images), result.model(images)
        found = result.model.detections(output)
    assert len(quant_layers(result.model)) > 60
    bound = 0.7 if recipe == "rtn-bn" else 0.3  # sixty layers of random weights: ranges from statistics alone are a rough guess
    assert relative_error(output["classes"], expected["classes"]) < bound
    assert [set(image) for image in found] == [{"boxes", "scores", "labels"}] * 2


@pytest.fixture(scope="module", params=["RetinaNet", "FCOS"])
def frozen(request) -> nn.Module:
    """A detector as torchvision builds it for pretrained weights, on a smaller backbone whose BatchNorms remember noise."""
    import_torchvision()
    from torchvision.models import detection
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.ops.misc import FrozenBatchNorm2d
    retinanet = request.param == "RetinaNet"
    anchors = AnchorGenerator(((16, 32) if retinanet else (16,),) * 3, ((0.5, 2.0) if retinanet else (1.0,),) * 3)

    def build(norm) -> nn.Module:
        backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None, norm_layer=norm, returned_layers=[3, 4])
        return getattr(detection, request.param)(backbone, num_classes=4, anchor_generator=anchors, score_thresh=0.005).eval()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        trained, own = build(nn.BatchNorm2d), build(FrozenBatchNorm2d)
        with torch.no_grad():
            teach(Heads(trained), torch.randn(8, *SHAPE))
    own.load_state_dict(trained.state_dict())
    return own


def test_boxes_of_other_detectors_are_those_that_they_find(frozen):
    test_heads_are_what_the_detector_itself_decides_by(frozen)


def test_detectors_with_frozen_batchnorms_through_quantize(frozen):
    heads, images = Heads(frozen), torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    before, norms = snapshot(heads), [type(module).__name__ for module in heads.modules()].count("FrozenBatchNorm2d")
    result = quantize(heads, QuantConfig(8, 8), "rtn-bn", image_shape=SHAPE, task="detection")
    with torch.no_grad():
        expected, output = heads(images), result.model(images)
        found = result.model.detections(output)
    assert len(quant_layers(result.model)) > 30 and len(found) == 2
    assert relative_error(output["classes"], expected["classes"]) < 0.1
    assert same_state(before, heads.state_dict()) and norms == 20, "the user's own network is untouched"
    assert [type(module).__name__ for module in heads.modules()].count("FrozenBatchNorm2d") == norms


@pytest.mark.parametrize("kind", ["RetinaNet", "FCOS"])
def test_a_backbone_that_gives_one_map_and_no_dictionary(kind):
    """The example of torchvision's own docstrings: the features of a classifier as a backbone."""
    import_torchvision()
    from torchvision.models import detection
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    backbone = nn.Sequential(nn.Conv2d(3, 32, 3, stride=16, padding=1), nn.BatchNorm2d(32), nn.ReLU())
    backbone.out_channels = 32
    anchors = AnchorGenerator(((16,),), ((1.0,),))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        detector = getattr(detection, kind)(backbone, num_classes=4, anchor_generator=anchors, score_thresh=0.005).eval()
    test_heads_are_what_the_detector_itself_decides_by(detector)


def test_what_is_no_detector():
    with pytest.raises(ValueError, match="Linear has no backbone: expected a single-stage detector"):
        Heads(awaken(nn.Linear(3, 2)))
