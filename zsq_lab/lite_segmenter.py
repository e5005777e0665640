"""A segmenter whose way down has seen ImageNet: the first stages of EfficientNet-Lite0 under the same way up.

A few hundred street scenes are too few to learn from nothing what a tree looks like; the encoder brings that along, and
training on scenes goes on from there. Depthwise layers and ReLU6, as in MobileNets, harder to quantize than the residual
blocks of `Segmenter`. Notebook 08 lays the two side by side.
"""
from torch import Tensor, nn

from .efficientnet_lite import EfficientNetLite
from .scene_models import Block, FeaturePyramid, Segmenter, conv_bn

ENCODER = "imagenet/efficientnet_lite0"  # whose first stages these are
TAPS = {0: 16, 2: 24, 4: 40, 10: 112}  # its blocks with the last features of a size, and their channels
CONTEXT = 96  # channels of the dilated blocks behind it


class LitePyramid(FeaturePyramid):
    """Down through the stem and eleven blocks of EfficientNet-Lite0, then two dilated blocks that look around."""

    def __init__(self):
        super().__init__()
        whole = EfficientNetLite()
        self.stem, self.blocks = whole.stem, whole.blocks[:max(TAPS) + 1]
        self.reduce = conv_bn(TAPS[max(TAPS)], CONTEXT, 1)
        self.context = nn.Sequential(nn.ReLU(), Block(CONTEXT, CONTEXT, dilation=2), Block(CONTEXT, CONTEXT, dilation=4))
        self.build_ascent(*list(TAPS.values())[:3], CONTEXT)

    def descend(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        levels, x = [], self.stem(x)
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in TAPS:
                levels.append(x)
        return *levels[:3], self.context(self.reduce(levels[3]))

    def begin_trained(self, encoder: EfficientNetLite) -> None:
        """Take over the weights of a trained network's first stages."""
        self.stem.load_state_dict(encoder.stem.state_dict())
        self.blocks.load_state_dict(encoder.blocks[:len(self.blocks)].state_dict())


class LiteSegmenter(Segmenter):
    """Images [N, 3, H, W] to class logits of every pixel [N, classes, H, W]."""

    def __init__(self, num_classes: int = 11):
        super().__init__(num_classes, LitePyramid())
