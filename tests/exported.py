"""What the tests of the export share: small networks of every kind, quantized, deployed and run in ONNX Runtime."""
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from networks import IMAGE, Mobile, Residual, SharedReLU, awaken, images, teach
from torch import Tensor, nn

from zsq_lab.deploy import deploy
from zsq_lab.layers import QuantConfig
from zsq_lab.recipes import quantize


class Shapes(nn.Module):
    """Option-A shortcut, max-pooling, concatenation, slicing, a flatten in place of a mean,
    a method instead of a function."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 10, 3,
                                                                          stride=2, padding=1), nn.Conv2d(16, 4, 1)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu_()
        y = F.relu(self.b(x)) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        z = torch.cat([y, F.max_pool2d(x, 2)], 1)
        return self.fc(F.avg_pool2d(self.c(z), 2).flatten(1))


class PreActivation(nn.Module):
    """The shortcut branches off before the ReLU: its numbers are negative as well, the convolution's are not."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 1)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.b(F.relu(self.a(F.relu(x))))
        return self.fc(F.adaptive_avg_pool2d(F.relu(x), 1).flatten(1))


class Branches(nn.Module):
    """Two convolutions read one tensor, a sigmoid gate multiplies, a transposed convolution and two kinds of
    upsampling."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.left, self.right = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.gate, self.up, self.head = nn.Linear(4, 4), nn.ConvTranspose2d(4, 4, 2, stride=2), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        s = F.hardswish(self.stem(x))
        s = F.relu6(self.left(s)) + F.leaky_relu(self.right(s), 0.1)
        s = s * torch.sigmoid(self.gate(s.mean((2, 3))))[:, :, None, None]
        low = F.interpolate(self.head(s), scale_factor=2.0, mode="bilinear", align_corners=False)
        return low + F.interpolate(self.head(F.silu(self.up(s)))[:, :, ::2, ::2], scale_factor=2.0)


class Pooled(nn.Module):
    """A max-pooled map feeds a convolution and the shortcut beside it: the stem of a ResNet. A head without a bias."""

    def __init__(self):
        super().__init__()
        self.stem, self.a = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.fc = nn.Linear(6, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.stem(x)), 3, 2, 1)
        return self.fc(F.relu(x + self.a(x)).mean((2, 3)))


class Parts(nn.Module):
    """Channels split in two of very different ranges, and picked from a tensor that is also read as a whole."""

    def __init__(self):
        super().__init__()
        self.stem, self.left, self.right = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1)
        self.low, self.high, self.all = nn.Conv2d(4, 5, 1), nn.Conv2d(4, 5, 1), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = (self.stem(x) * torch.tensor([1.0, 1, 1, 9, 9, 9]).view(6, 1, 1)).chunk(2, 1)
        x = torch.cat([self.left(left) - 9, self.right(right) + 9 + left[:, :1]], 1)
        return self.low(x[:, :4]) + self.high(x[:, 4:]) + self.all(F.relu(x))


NETWORKS = {"residual": Residual, "mobile": Mobile, "shared relu": SharedReLU, "shapes": Shapes,
            "preactivation": PreActivation, "branches": Branches, "pooled": Pooled, "parts": Parts}


def student(network: nn.Module, bits: int = 8, activation_bits: int | None = None, recipe: str = "rtn-noise",
            shape: tuple[int, ...] = IMAGE) -> nn.Module:
    """The network quantized at these widths."""
    return quantize(network, QuantConfig(bits, activation_bits or bits), recipe, image_shape=shape).model


def deployed(name: str, bits: int = 8, activation_bits: int | None = None):
    """A network of NETWORKS and its deployed program."""
    network = teach(awaken(NETWORKS[name]()), images(32))
    return network, deploy(student(network, bits, activation_bits), IMAGE, images(32))


class Function(nn.Module):
    """A function of the images, times a weight of one so that there is something to read."""

    def __init__(self, function):
        super().__init__()
        self.function, self.weight = function, nn.Parameter(torch.ones(3, 1, 1))

    def forward(self, x: Tensor):
        return self.function(x * self.weight)


class Between(nn.Module):
    """A function between two convolutions, so that quantized it has integers before and behind it."""

    def __init__(self, function, channels: int = 6):
        super().__init__()
        self.function, self.a, self.b = function, nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(channels, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.function(self.a(x)))


def in_runtime(program, path, x: Tensor, **options):
    """What ONNX Runtime computes of a program, as a NumPy array."""
    from zsq_lab.export import save_onnx
    from zsq_lab.onnx_runtime import open_session, run
    save_onnx(program, path, **options)
    return run(open_session(path, threads=1), x)


def check_float(function, path, shape: tuple[int, ...] = IMAGE) -> None:
    """The file of a function computes what PyTorch computes."""
    from zsq_lab.export import float_program
    network, x = Function(function), 2 * images(3, shape)
    with torch.no_grad():
        expected = network(x)
    got = torch.from_numpy(in_runtime(float_program(network, shape), path, x))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def check_integers(function, path, *, kernel: str, channels: int = 6) -> None:
    """Between two quantized layers the function is written on integers, as one `kernel`, and computes as simulated."""
    from zsq_lab.export import load_onnx
    from zsq_lab.integer_program import exact
    program = deploy(student(awaken(Between(function, channels))), IMAGE, images(32))
    x = images(9)
    got = torch.from_numpy(in_runtime(program, path, x))
    with torch.no_grad():
        torch.testing.assert_close(got, exact(program)(x), rtol=1e-5, atol=1e-5)
    nodes = load_onnx(path).graph.node
    made = {name: node for node in nodes for name in node.output}

    def source(node) -> str:
        """The kind of node that the first input comes from, whatever moves it on the way."""
        before = made[node.input[0]]
        return before.op_type if before.op_type in ("QuantizeLinear", "DequantizeLinear", "Conv") else source(before)
    assert "QuantizeLinear" in [source(node) for node in nodes if node.op_type == kernel], "its input is not on a grid"


@pytest.fixture
def small_export(monkeypatch, tmp_path):
    """A tiny budget, few rounds of latency, and a cache of the test's own."""
    from zsq_lab import job, onnx_runtime
    monkeypatch.setitem(job.BUDGETS, "quick", job.Budget("quick", 8, 3, 3, 3, 8, 8))
    monkeypatch.setattr("zsq_lab.data.cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(onnx_runtime, "measure", partial(onnx_runtime.measure, rounds=2))
