"""The two small networks that the lab quantizes, in their 32x32 form.

`ResNet20` is section 4.2 of He et al. 2016 (identity shortcuts, 0.27 million weights); `MobileNetV2` is Sandler et al.
2018 at half width, with the strides fitted to 32x32 images (0.59 million weights). Both are plain PyTorch: nothing in
them knows about quantization, because a user's own network will not either. `checkpoints.load_model` brings weights.
"""
import torch.nn.functional as F
from torch import Tensor, nn

from .lite_segmenter import LiteSegmenter
from .scene_models import Detector, Segmenter


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut without parameters (option A): subsampled, padded with zero channels."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride, self.new_channels = stride, out_channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        shortcut = x
        if self.new_channels:
            half = self.new_channels // 2
            shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.new_channels - half))
        return F.relu(out + shortcut)


class ResNet20(nn.Module):
    """Images [N, 3, H, W] to logits [N, classes]; stages of 16, 32 and 64 channels with three blocks each."""

    def __init__(self, num_classes: int = 10):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, stride=1)
        self.layer2 = self._stage(16, 32, stride=2)
        self.layer3 = self._stage(32, 64, stride=2)
        self.fc = nn.Linear(64, num_classes)
        _initialise(self)

    @staticmethod
    def _stage(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
        rest = [BasicBlock(out_channels, out_channels, 1) for _ in range(2)]
        return nn.Sequential(BasicBlock(in_channels, out_channels, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))


def _conv_bn(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1, act: bool = True):
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(out_channels)] + ([nn.ReLU6(inplace=True)] if act else [])


class InvertedResidual(nn.Module):
    """Expand (1x1), filter every channel by itself (3x3 depthwise), project back (1x1, no activation)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expand: int):
        super().__init__()
        hidden = in_channels * expand
        self.residual = stride == 1 and in_channels == out_channels
        self.conv = nn.Sequential(
            *(_conv_bn(in_channels, hidden, 1) if expand != 1 else []),
            *_conv_bn(hidden, hidden, 3, stride, groups=hidden),
            *_conv_bn(hidden, out_channels, 1, act=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    """Images [N, 3, H, W] to logits [N, classes]. Resolution falls 32 -> 16 -> 8 -> 4 instead of 224 -> 7."""

    # expansion, channels at full width, blocks, stride of the first block
    STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 1), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))

    def __init__(self, num_classes: int = 10, width: float = 0.5):
        super().__init__()
        channels = 16
        layers = [nn.Sequential(*_conv_bn(3, channels, 3))]
        for expand, full_width, blocks, stride in self.STAGES:
            out_channels = max(8, int(full_width * width + 4) // 8 * 8)
            for block in range(blocks):
                layers.append(InvertedResidual(channels, out_channels, stride if block == 0 else 1, expand))
                channels = out_channels
        last = 640
        layers.append(nn.Sequential(*_conv_bn(channels, last, 1)))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(last, num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


def _initialise(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)


ARCHITECTURES = {"resnet20": ResNet20, "mobilenetv2": MobileNetV2}
SCENE_ARCHITECTURES = {"segmenter": Segmenter, "lite_segmenter": LiteSegmenter, "detector": Detector}


def build(architecture: str, num_classes: int = 10) -> nn.Module:
    """An untrained network of `ARCHITECTURES` or `SCENE_ARCHITECTURES`.

    Raises ValueError, listing the names, for any other.
    """
    known = ARCHITECTURES | SCENE_ARCHITECTURES
    if architecture not in known:
        raise ValueError(f"unknown architecture '{architecture}': expected one of {', '.join(known)}")
    return known[architecture](num_classes)


def count_parameters(model: nn.Module) -> int:
    """How many trainable numbers the model holds."""
    return sum(p.numel() for p in model.parameters())

