"""Operations that compute: as PyTorch on floats, on integers where they only compare,
refused by name where ONNX has none."""
import pytest
import torch
import torch.nn.functional as F
from exported import Between, Function, check_float, check_integers, in_runtime, student
from networks import IMAGE, awaken, images
from torch import nn

from zsq_lab.deploy import deploy
from zsq_lab.integer_program import exact

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from zsq_lab.export import float_program, save_onnx  # noqa: E402

HALF = torch.linspace(-1, 1, 3).view(1, 3, 1, 1)
FUNCTIONS = {
    "relu": F.relu, "relu6": F.relu6, "hardtanh": lambda x: F.hardtanh(x, -0.3, 0.7),
    "clamp": lambda x: x.clamp(-0.5, 1),
    "from below": lambda x: x.clamp(min=0.25), "from above": lambda x: x.clamp(max=0.25),
    "from below, a tensor of one": lambda x: x.clamp(min=HALF[:, 2:] / 4),
    "minimum": lambda x: torch.minimum(x, HALF), "maximum": lambda x: torch.maximum(x, -x),
    "leaky": lambda x: F.leaky_relu(x, 0.2), "silu": F.silu, "hardswish": F.hardswish, "hardsigmoid": F.hardsigmoid,
    "sigmoid": torch.sigmoid, "tanh": torch.tanh, "exp": torch.exp, "root": lambda x: x.abs().sqrt(), "erf": torch.erf,
    "sine": lambda x: x.sin() + (-x).cos(), "logarithm": lambda x: (x.abs() + 1).log(),
    "softmax": lambda x: x.softmax(1),
    "sum": lambda x: x + x[:, :1], "difference": lambda x: x - 2.0, "product": lambda x: x * HALF,
    "ratio": lambda x: x / 3, "a product and a bias": lambda x: torch.addmm(HALF.flatten(), x.mean((2, 3)), torch.ones(3, 3)),
    "matrices": lambda x: x.flatten(2) @ x.flatten(2).transpose(1, 2),
    "max-pooling": lambda x: F.max_pool2d(x, 3, 2, padding=1),
    "max-pooling, dilated": lambda x: F.max_pool2d(x, 2, 1, dilation=2),
    "max-pooling, ceiling": lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True),
    "average": lambda x: F.avg_pool2d(x, 2), "average, padded": lambda x: F.avg_pool2d(x, 3, 2, padding=1),
    "average, ceiling": lambda x: F.avg_pool2d(x, 3, 2, ceil_mode=True),
    "average, padded, ceiling": lambda x: F.avg_pool2d(x, 3, 2, padding=1, ceil_mode=True, count_include_pad=False),
    "average, ceiling without need": lambda x: F.avg_pool2d(x, 3, 3, padding=1, ceil_mode=True),
    "max-pooling, ceiling without need": lambda x: F.max_pool2d(x, 3, 3, padding=1, ceil_mode=True),
    "average without the border": lambda x: F.avg_pool2d(x, 3, 2, padding=1, count_include_pad=False),
    "global": lambda x: F.adaptive_avg_pool2d(x, 1), "adaptive": lambda x: F.adaptive_avg_pool2d(x, (4, 2)),
    "mean of positions": lambda x: x.mean((2, 3)), "mean, kept": lambda x: x.mean((2, 3), keepdim=True),
    "mean of channels": lambda x: x.mean(1), "mean of one side": lambda x: x.mean(-1, keepdim=True)}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_on_floats_as_pytorch(tmp_path, name):
    check_float(FUNCTIONS[name], tmp_path / "f.onnx")


@pytest.mark.parametrize("kernel, function", [
    ("Clip", lambda x: x + x.clamp(-0.4, 0.9)), ("Clip", lambda x: x + x.clamp(max=0.5)),
    ("Clip", lambda x: x + F.hardtanh(x, -1, 1)), ("Clip", lambda x: x + F.relu(x)),
    ("MaxPool", lambda x: F.max_pool2d(x, 3, 2, padding=1)), ("Max", lambda x: torch.maximum(x, HALF[:, :1])),
    ("Min", lambda x: torch.minimum(x, HALF[:, 2:]))])
def test_on_integers_what_compares_stays_on_the_grid(tmp_path, kernel, function):
    check_integers(function, tmp_path / "q.onnx", kernel=kernel)


@pytest.mark.parametrize("function", [F.relu, lambda x: x.clamp(-0.4, 0.9), lambda x: x.clamp(max=0.5)])
def test_bounds_at_the_ends_of_the_grid_cost_nothing(tmp_path, function):
    """The quantizer before them ends there by itself: no node is written."""
    program = deploy(student(awaken(Between(function))), IMAGE, images(32))
    assert not {"Relu", "Clip"} & set(save_onnx(program, tmp_path / "q.onnx")["operators"])


@pytest.mark.parametrize("layer", [
    nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1),
    nn.ConvTranspose2d(3, 6, 2, stride=2, groups=3, bias=False),
    nn.Conv2d(3, 6, 3, stride=2, padding=2, dilation=2, groups=3), nn.Conv2d(3, 4, (3, 1), padding=(1, 0), bias=False)])
def test_layers_with_all_their_settings(tmp_path, layer):
    check_float(awaken(layer), tmp_path / "f.onnx")


def assert_as_simulated(network: nn.Module, path) -> None:
    program = deploy(student(awaken(network)), IMAGE, images(32))
    got = torch.from_numpy(in_runtime(program, path, images(9)))
    with torch.no_grad():
        torch.testing.assert_close(got, exact(program)(images(9)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_transposed_layers_keep_the_weights_of_the_simulation(tmp_path, groups):
    """Weights in floats among integers are quantized by the runtime itself, on a grid of its own."""
    body = nn.ConvTranspose2d(4, 4, 2, stride=2, groups=groups, bias=False)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), body, nn.ReLU(), nn.Conv2d(4, 5, 1))
    assert_as_simulated(network, tmp_path / "q.onnx")


@pytest.mark.parametrize("padding, border", [(0, True), (0, False), (1, False)])
def test_averages_whose_windows_hang_over_the_border_are_the_simulations(tmp_path, padding, border):
    """Integer kernels divide them by the whole window, if the border counts."""
    average = nn.AvgPool2d(3, 2, padding, ceil_mode=True, count_include_pad=border)
    assert_as_simulated(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), average, nn.Conv2d(4, 5, 1)), tmp_path / "q.onnx")


def test_a_batchnorm_that_nothing_could_be_folded_into(tmp_path):
    norm = awaken(nn.BatchNorm2d(3))
    check_float(lambda x: norm(x.relu()), tmp_path / "f.onnx")
    plain = awaken(nn.BatchNorm2d(3, affine=False, eps=0.1))
    check_float(lambda x: plain(x.relu()), tmp_path / "f.onnx")


@pytest.mark.parametrize("function, message", [
    (lambda x: torch.add(x, x, alpha=2), "operation add cannot be exported: alpha is not 1"),
    (lambda x: torch.div(4 * x, 2, rounding_mode="floor"), "div cannot be exported: ONNX's division has no rounding_mode"),
    (lambda x: torch.addmm(HALF.flatten(), x.mean((2, 3)), torch.ones(3, 3), alpha=2), "addmm .*: alpha or beta is not 1"),
    (lambda x: torch.addmm(HALF.flatten(), x.mean((2, 3)), torch.ones(3, 3), beta=0.5), "addmm .*: alpha or beta is not 1"),
    (lambda x: x.clamp(max=HALF), "clamp cannot be exported: its bounds are no single numbers"),
    (lambda x: x.clamp(min=x.mean(1, keepdim=True)), "clamp cannot be exported: its bounds are no single numbers"),
    (nn.BatchNorm2d(3, track_running_stats=False).eval(), "native_batch_norm cannot .*: .* the batch's own statistics"),
    (lambda x: F.batch_norm(x, torch.zeros(3), torch.ones(3), training=True), "batch_norm .*: .* the batch's own statistics"),
    (lambda x: F.avg_pool2d(x, 2, divisor_override=3), "avg_pool2d cannot be exported: ONNX's average has no divisor"),
    (lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True), "avg_pool2d cannot be exported: .* hang over a border which counts"),
    (lambda x: F.adaptive_avg_pool2d(x, 3), r"cannot be exported: \(8, 8\) positions are no multiple of \[3, 3\]"),
    (lambda x: x.cumsum(1), "operation cumsum cannot be exported: only these operations are: .*_softmax.*relu.*slice")])
def test_what_onnx_does_not_have_is_refused_by_name(tmp_path, function, message):
    with pytest.raises(ValueError, match=message):
        save_onnx(float_program(Function(function), IMAGE), tmp_path / "f.onnx")
    assert not list(tmp_path.iterdir())
