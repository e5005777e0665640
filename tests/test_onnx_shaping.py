"""Operations that move numbers: as PyTorch on floats, and on integers where integers go in."""
import pytest
import torch
import torch.nn.functional as F
from exported import Function, check_float, check_integers
from networks import IMAGE

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from zsq_lab.export import float_program, save_onnx  # noqa: E402

FUNCTIONS = {
    "slice": lambda x: x[:, :, 1:6:2, ::3], "slice from the end": lambda x: x[:, :, -3:, :-2],
    "one channel": lambda x: x[:, 1],
    "view": lambda x: x.view(-1, 6, 32), "flatten": lambda x: x.flatten(1), "unsqueeze": lambda x: x.unsqueeze(2),
    "squeeze": lambda x: x[:, :1].squeeze(1), "permute": lambda x: x.permute(0, 3, 1, 2),
    "transpose": lambda x: x.transpose(1, -1),
    "shuffle": lambda x: x.view(-1, 3, 4, 2, 8).transpose(2, 3).flatten(1, 2),
    "pad": lambda x: F.pad(x, (1, 2, 0, 3)), "pad with a number": lambda x: F.pad(x, (1, 0, 2, 1), value=-0.5),
    "pad channels": lambda x: F.pad(x, (0, 0, 0, 0, 2, 1)), "reflect": lambda x: F.pad(x, (2, 1, 0, 3), mode="reflect"),
    "concatenate": lambda x: torch.cat([x, 2 * x[:, :1]], 1), "split in sizes": lambda x: x.split([2, 1], 1)[0],
    "split evenly": lambda x: x.split(3, 2)[2], "both parts": lambda x: x.split(5, 3)[1] * x.split(5, 3)[0][..., :3],
    "parts of a part": lambda x: torch.cat(x.split([2, 6], 2)[1].split(3, 2)[::-1], 1),
    "a part of another size, enlarged": lambda x: F.interpolate(x.split([3, 5], 2)[1], scale_factor=2.0),
    "nearest": lambda x: F.interpolate(x, scale_factor=2.0), "nearest, odd": lambda x: F.interpolate(x, size=(12, 20)),
    "nearest, broken factor": lambda x: F.interpolate(x, size=(82, 9)),
    "nearest, smaller": lambda x: F.interpolate(x, size=(5, 3)),
    "bilinear, to a size that its factor falls short of":
        lambda x: F.interpolate(x[:, :, 1:], size=(31, 8), mode="bilinear", align_corners=False),
    "bilinear": lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False),
    "bilinear, corners": lambda x: F.interpolate(x, size=(15, 9), mode="bilinear", align_corners=True),
    "bilinear, by a factor": lambda x: F.interpolate(x[:, :, 1:], scale_factor=1.7, mode="bilinear"),
    "bilinear, by a factor, corners": lambda x: F.interpolate(x, scale_factor=1.3, mode="bilinear", align_corners=True),
    "bilinear, by the factor of its size":
        lambda x: F.interpolate(x, scale_factor=1.7, mode="bilinear", recompute_scale_factor=True),
    "bilinear, by a factor that leaves a side": lambda x: F.interpolate(x, scale_factor=(1.1, 1.5), mode="bilinear"),
    "bilinear, by a factor just below that of a size":
        lambda x: F.interpolate(x[..., :3, :3], scale_factor=1.6666666, mode="bilinear"),
    "nearest, by a factor": lambda x: F.interpolate(x, scale_factor=1.7),
    "nearest, by a factor whose size is a multiple": lambda x: F.interpolate(x[..., :3, :3], scale_factor=3.3)}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_on_floats_as_pytorch(tmp_path, name):
    check_float(FUNCTIONS[name], tmp_path / "f.onnx")


@pytest.mark.parametrize("kernel, function, channels", [
    ("Slice", lambda x: x[:, :, ::2, 1:], 6), ("Reshape", lambda x: x.reshape(-1, 12, 4, 8), 12),
    ("Transpose", lambda x: x.transpose(2, 3), 6), ("Pad", lambda x: F.pad(x, (1, 1, 2, 0)), 6),
    ("Pad", lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), 6),
    ("Resize", lambda x: F.interpolate(x, scale_factor=2.0), 6),
    ("Gather", lambda x: F.interpolate(x, size=(12, 20)), 6),
    ("Gather", lambda x: x.unsqueeze(1).select(1, 0), 6)])
def test_on_integers_they_stay_on_the_grid(tmp_path, kernel, function, channels):
    check_integers(function, tmp_path / "q.onnx", kernel=kernel, channels=channels)


def test_parts_that_nobody_reads_are_no_trouble(tmp_path):
    program = float_program(Function(lambda x: x.split([1, 1, 1], 1)[1].relu()), IMAGE)
    assert save_onnx(program, tmp_path / "f.onnx")["operators"]["Split"] == 1
