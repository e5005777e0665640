"""Small networks that the tests share: each shows one way of writing a model that has gone wrong in somebody's code.

None of them is trained. `awaken` gives BatchNorms statistics that differ from channel to channel: with the fresh ones
(mean 0, variance 1, gamma 1, beta 0) most mistakes in folding and matching stay invisible.
"""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zsq_lab.graph import BATCH_NORMS, input_of
from zsq_lab.job import Budget

IMAGE = (3, 8, 8)
TINY = Budget("tiny", images=8, image_iterations=3, finetune_iterations=3, generator_iterations=3, image_batch=8,
              batch_size=4)


@torch.no_grad()
def awaken(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in eval mode, all its weights and BatchNorm statistics drawn from the seed."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * (2 / fan_in) ** 0.5)
    for module in model.modules():
        if isinstance(module, BATCH_NORMS) and module.running_mean is not None:
            n = module.num_features
            module.running_mean.copy_(torch.randn(n, generator=generator))
            module.running_var.copy_(torch.rand(n, generator=generator) * 4 + 0.25)
            if module.affine:
                module.weight.copy_((torch.rand(n, generator=generator) + 0.5) * (-1.0) ** torch.arange(n))
                module.bias.copy_(torch.randn(n, generator=generator))
    return model.eval()


@torch.no_grad()
def teach(model: nn.Module, x: Tensor) -> nn.Module:
    """Set every BatchNorm's memory to what it sees when x passes, as training on x alone would leave it."""
    def remember(norm, args, kwargs):
        seen = input_of(args, kwargs)
        others = [d for d in range(seen.ndim) if d != 1]
        norm.running_mean.copy_(seen.mean(others))
        norm.running_var.copy_(seen.var(others, correction=0))

    handles = [m.register_forward_pre_hook(remember, with_kwargs=True) for m in model.modules() if isinstance(m, BATCH_NORMS)]
    model(x)
    for handle in handles:
        handle.remove()
    return model


class Residual(nn.Module):
    """Functional ReLU, a residual sum, and definitions in the reverse order of the data flow."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 5)
        self.bn_b, self.bn_a, self.bn_stem = nn.BatchNorm2d(6), nn.BatchNorm2d(6), nn.BatchNorm2d(6)
        self.conv_b = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.conv_a = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.stem = nn.Conv2d(3, 6, 3, stride=2, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn_stem(self.stem(x)))
        out = F.relu(self.bn_a(self.conv_a(x)))
        return self.fc(F.relu(self.bn_b(self.conv_b(out)) + x).mean((2, 3)))


class Mobile(nn.Module):
    """Expand, depthwise, project, with ReLU6 in place: MobileNetV2's block."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(inplace=True),
            nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6(inplace=True),
            nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4))
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x).mean((2, 3)))


class Remembering(Residual):
    """Keeps a tensor from one pass to the next with images of the same shape, as windows and positions are kept."""

    kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.kept is None or self.kept.shape != x.shape:
            self.kept = torch.ones_like(x)
        return super().forward(x * self.kept)


class SharedConv(nn.Module):
    """One convolution called twice, on inputs of very different size."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.shared = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        return self.shared(100 * F.relu(self.shared(x)))


class Standardised(nn.Conv2d):
    """A weight of mean 0 and deviation 1 in each channel: it does not take a factor."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight / weight.std((1, 2, 3), keepdim=True), self.bias)


class Asking(nn.Module):
    """Calls its layers by keyword and asks them for their attributes."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1, self.relu = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.conv2, self.bn2, self.fc = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(input=self.bn1(input=self.conv1(input=x.to(self.conv1.weight.dtype))))
        x = F.pad(x, [self.conv2.kernel_size[0] // 2] * 4)
        x = F.relu(self.bn2(input=self.conv2(input=x)))
        return self.fc(input=x[:, : self.bn2.num_features].mean((2, 3)) + 0 * self.fc.bias.sum())


class SharedReLU(nn.Module):
    """One ReLU module used twice, feeding two convolutions."""

    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.conv3 = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        return self.conv3(self.relu(100 * self.bn2(self.conv2(x))))


# name -> (layer, BatchNorm for its output, shape of one input); each output has 4 channels
LAYER_TYPES = {
    "conv2d": (lambda: nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d, (3, 6, 6)),
    "strided": (lambda: nn.Conv2d(3, 4, 3, stride=2, bias=False), nn.BatchNorm2d, (3, 7, 7)),
    "grouped": (lambda: nn.Conv2d(6, 4, 3, groups=2, bias=False), nn.BatchNorm2d, (6, 6, 6)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d, (4, 6, 6)),
    "dilated": (lambda: nn.Conv2d(3, 4, 3, dilation=2), nn.BatchNorm2d, (3, 7, 7)),
    "reflected": (lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d, (3, 6, 6)),
    "conv1d": (lambda: nn.Conv1d(3, 4, 3, bias=False), nn.BatchNorm1d, (3, 9)),
    "conv3d": (lambda: nn.Conv3d(2, 4, 2), nn.BatchNorm3d, (2, 4, 4, 4)),
    "transposed": (lambda: nn.ConvTranspose2d(3, 4, 3, stride=2, output_padding=1), nn.BatchNorm2d, (3, 4, 4)),
    "transposed1d": (lambda: nn.ConvTranspose1d(3, 4, 3, bias=False), nn.BatchNorm1d, (3, 5)),
    "transposed3d": (lambda: nn.ConvTranspose3d(2, 4, 2), nn.BatchNorm3d, (2, 3, 3, 3)),
    "grouped transposed": (lambda: nn.ConvTranspose2d(6, 4, 3, stride=2, groups=2), nn.BatchNorm2d, (6, 4, 4)),
    "depthwise transposed": (lambda: nn.ConvTranspose2d(4, 4, 3, stride=2, groups=4), nn.BatchNorm2d, (4, 4, 4)),
    "linear": (lambda: nn.Linear(3, 4), nn.BatchNorm1d, (3,)),
}


def layer_and_norm(kind: str) -> tuple[nn.Sequential, tuple[int, ...]]:
    """(layer, BatchNorm, ReLU) of a kind named in `LAYER_TYPES`, awake, and the shape of one input."""
    layer, norm, shape = LAYER_TYPES[kind]
    return awaken(nn.Sequential(layer(), norm(4), nn.ReLU())), shape


def images(n: int, shape: tuple[int, ...] = IMAGE, seed: int = 1) -> Tensor:
    """n inputs of standard normal values."""
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))


def same_state(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two state_dicts agree in names, types and every bit."""
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """A copy of a state_dict that later changes cannot reach."""
    return {key: value.clone() for key, value in model.state_dict().items()}
