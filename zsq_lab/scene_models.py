"""The two small networks of the dense tasks: one pyramid, a mask on top of it or boxes.

`Pyramid` goes down to a sixteenth of the image in residual blocks (He et al. 2016) and comes back up to a quarter,
adding at each level what lay there on the way down (Lin et al. 2017). `Segmenter` scores every pixel, `Detector` every
location of the quarter-size grid, without anchors (FCOS, Tian et al. 2019). Plain PyTorch: nothing here knows of
quantization.
"""
import math

import torch.nn.functional as F
from torch import Tensor, nn

from .boxes import decode

STRIDE = 4  # pixels of the image per location of the detector's grid
WIDTHS = (16, 32, 64, 96)  # channels at a half, a quarter, an eighth and a sixteenth of the image


def conv_bn(in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, dilation * (kernel // 2), dilation, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, dilation: int = 1):
        super().__init__()
        self.first = conv_bn(in_channels, out_channels, stride=stride, dilation=dilation)
        self.second = conv_bn(out_channels, out_channels, dilation=dilation)
        changes = stride > 1 or in_channels != out_channels
        self.shortcut = conv_bn(in_channels, out_channels, 1, stride) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x))) + self.shortcut(x))


class FeaturePyramid(nn.Module):
    """Images [N, 3, H, W] to features at a half [N, 16, H/2, W/2] and at a quarter [N, 32, H/4, W/4] of their size.

    A subclass says how it goes down, `descend`, and calls `build_ascent` with the channels that it leaves at each level.
    """

    def build_ascent(self, half: int, quarter: int, eighth: int, sixteenth: int) -> None:
        self.half_channels = half
        self.lateral16, self.lateral8 = conv_bn(sixteenth, WIDTHS[2], 1), conv_bn(eighth, WIDTHS[2], 1)
        self.merge8 = conv_bn(WIDTHS[2], WIDTHS[2])
        self.from8, self.lateral4 = conv_bn(WIDTHS[2], WIDTHS[1], 1), conv_bn(quarter, WIDTHS[1], 1)
        self.merge4 = conv_bn(WIDTHS[1], WIDTHS[1])

    def descend(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features at a half, a quarter, an eighth and a sixteenth of the image."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        half, quarter, eighth, sixteenth = self.descend(x)
        up8 = F.relu(self.lateral8(eighth) + enlarge(self.lateral16(sixteenth), eighth))
        up8 = F.relu(self.merge8(up8))
        up4 = F.relu(self.lateral4(quarter) + enlarge(self.from8(up8), quarter))
        return half, F.relu(self.merge4(up4))


class Pyramid(FeaturePyramid):
    """Down in residual blocks, the last of them dilated, so that one position of the quarter has seen far around it."""

    def __init__(self):
        super().__init__()
        half, quarter, eighth, sixteenth = WIDTHS
        self.stem = conv_bn(3, half, stride=2)
        self.down4 = nn.Sequential(Block(half, quarter, 2), Block(quarter, quarter))
        self.down8 = nn.Sequential(Block(quarter, eighth, 2), Block(eighth, eighth))
        self.down16 = nn.Sequential(Block(eighth, sixteenth, 2), Block(sixteenth, sixteenth, dilation=2),
                                    Block(sixteenth, sixteenth, dilation=4))
        self.build_ascent(*WIDTHS)

    def descend(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        half = F.relu(self.stem(x))
        quarter = self.down4(half)
        eighth = self.down8(quarter)
        return half, quarter, eighth, self.down16(eighth)


class Segmenter(nn.Module):
    """Images [N, 3, H, W] to class logits of every pixel [N, classes, H, W]."""

    def __init__(self, num_classes: int = 11, pyramid: FeaturePyramid | None = None):
        super().__init__()
        self.pyramid = pyramid or Pyramid()
        half = self.pyramid.half_channels
        self.from4, self.lateral2 = conv_bn(WIDTHS[1], WIDTHS[0], 1), conv_bn(half, WIDTHS[0], 1)
        self.merge2 = conv_bn(WIDTHS[0], WIDTHS[0])
        self.classify = nn.Conv2d(WIDTHS[0], num_classes, 1)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        half, quarter = self.pyramid(x)
        up2 = F.relu(self.lateral2(half) + enlarge(self.from4(quarter), half))
        return enlarge(self.classify(F.relu(self.merge2(up2))), x)


class Detector(nn.Module):
    """Images [N, 3, H, W] to {"classes": logits [N, classes, H/4, W/4], "boxes": [N, 4, H/4, W/4]}.

    boxes: logarithms of the distances, in units of `STRIDE`, from the centre of a location to the left, upper, right
    and lower side of its box. What is a class logit is read through a sigmoid: each class for itself.
    """

    def __init__(self, num_classes: int = 3):
        super().__init__()
        width = WIDTHS[1]
        self.pyramid = Pyramid()
        self.class_tower, self.box_tower = conv_bn(width, width), conv_bn(width, width)
        self.classify, self.measure = nn.Conv2d(width, num_classes, 3, padding=1), nn.Conv2d(width, 4, 3, padding=1)
        _initialise(self)
        nn.init.constant_(self.classify.bias, -math.log(99))  # at first each location is 1 % sure of an object
        nn.init.constant_(self.measure.bias, 1.0)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        _, quarter = self.pyramid(x)
        return {"classes": self.classify(F.relu(self.class_tower(quarter))),
                "boxes": self.measure(F.relu(self.box_tower(quarter)))}

    def detections(self, output: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """What `forward` put out, as boxes in pixels: `boxes.decode`."""
        return decode(output["classes"], output["boxes"], STRIDE)


def enlarge(x: Tensor, like: Tensor) -> Tensor:
    """x, resized bilinearly to the height and width of `like`."""
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)


def _initialise(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:  # a layer of outputs: nothing is known yet
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)
    for module in model.modules():
        if isinstance(module, Block):
            nn.init.zeros_(module.second[1].weight)  # a block begins as its shortcut
