"""torchvision's detectors, opened up for `quantize`: what their heads say, before anything is selected from it.

A detector of torchvision takes lists of images and returns finished boxes, of which there are sometimes none: nothing
that a student could learn from. `Heads` gives every anchor's class logits and box numbers instead, as one dictionary,
and turns them into boxes when asked. For SSDLite, RetinaNet and FCOS, with your own weights; and for SSD, whose VGG has no
BatchNorm at all: it takes only recipes without statistics, such as `rtn-noise`.
"""
import torch
from torch import Tensor, nn

from .torchvision_compat import import_torchvision

OUTPUTS = {"cls_logits": "classes", "bbox_regression": "boxes", "bbox_ctrness": "centerness"}  # the last one FCOS only


class Heads(nn.Module):
    """A single-stage torchvision detector on batches.

    images [N, 3, H, W] -> {"classes": [N, K, L], "boxes": [N, 4, L]}, L the number of anchors; of FCOS "centerness" as well.
    images: already normalised and of the size that the detector was trained with: torchvision's own transform is left
    out, because a quantizer's input is what the first layer sees.
    detector: itself and no copy, put in eval mode; to train it further, call its `train()`.
    Raises ValueError for what is not such a detector.
    """

    def __init__(self, detector: nn.Module):
        super().__init__()
        missing = [part for part in ("backbone", "head", "anchor_generator", "postprocess_detections")
                   if not hasattr(detector, part)]
        if missing:
            raise ValueError(f"{type(detector).__name__} has no {missing[0]}: expected a single-stage detector of "
                             "torchvision (SSD, SSDLite, RetinaNet, FCOS)")
        self.detector = detector.eval()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        found = self.detector.backbone(images)
        features = [found] if isinstance(found, Tensor) else list(found.values())
        output = self.detector.head(features)
        self.sizes = [tuple(feature.shape[2:]) for feature in features]
        self.image_size = tuple(images.shape[2:])
        return {own: output[theirs].transpose(1, 2) for theirs, own in OUTPUTS.items() if theirs in output}

    @torch.no_grad()
    def detections(self, output: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """Boxes of the last batch that `forward` saw: per image {"boxes" [k, 4], "scores", "labels"}, in pixels."""
        import_torchvision()
        from torchvision.models.detection.image_list import ImageList  # import_torchvision made this safe
        from torchvision.models.detection.ssd import SSD
        count = len(output["classes"])
        blank = output["classes"].new_zeros(count, 3, *self.image_size)
        maps = [blank.new_zeros(count, 1, *size) for size in self.sizes]
        anchors = self.detector.anchor_generator(ImageList(blank, [self.image_size] * count), maps)
        heads = {theirs: output[own].transpose(1, 2) for theirs, own in OUTPUTS.items() if own in output}
        if not isinstance(self.detector, SSD):  # the others select among the boxes of each feature map first
            positions = [height * width for height, width in self.sizes]
            counts = [len(anchors[0]) // sum(positions) * n for n in positions]
            heads = {name: list(values.split(counts, 1)) for name, values in heads.items()}
            anchors = [list(own.split(counts)) for own in anchors]
        return self.detector.postprocess_detections(heads, anchors, [self.image_size] * count)
