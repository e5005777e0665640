"""A stand-in for EfficientNet-Lite0 with a thousand classes and one convolution, and a folder of images for it."""
from functools import partial
from pathlib import Path

import pytest
from networks import TINY, awaken, images, teach
from test_image_folder import class_folders
from torch import nn

from zsq_lab import (
    data,
    image_folder,
    imagenet_command,
    imagenet_models,
    imagenet_sweep,
    job,
    onnx_runtime,
    results,
)
from zsq_lab.image_folder import Preprocess

LITE = "imagenet/efficientnet_lite0"
SMALL = Preprocess(40, 32)
QUANTIZE = ["quantize", "--model", LITE, "-w", "8", "-a", "8", "--budget", "quick"]


def network():
    layers = (nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
              nn.Linear(8, 1000))
    return teach(awaken(nn.Sequential(*layers)), images(8, SMALL.image_shape))


@pytest.fixture
def small(monkeypatch, tmp_path):
    """efficientnet_lite0's name stands for a network of one convolution; budgets are tiny;
    caches in a folder of the test."""
    for home in (imagenet_command, imagenet_models):
        monkeypatch.setattr(home, "load_imagenet", lambda name: (network(), SMALL))
    monkeypatch.setattr(imagenet_models, "build", lambda own: network())
    monkeypatch.setattr(imagenet_sweep, "preprocess", lambda name: SMALL)
    monkeypatch.setattr(results, "weights_version", lambda model: "0")
    monkeypatch.setattr(results, "weights_file", lambda name: Path(__file__))  # any that is there
    monkeypatch.setattr(imagenet_command, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(data, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(image_folder, "spare_cores", lambda: 0)
    monkeypatch.setitem(job.BUDGETS, "quick", TINY)
    monkeypatch.setattr(imagenet_command, "HELD_OUT_ITERATIONS", 2)
    monkeypatch.setattr(onnx_runtime, "measure", partial(onnx_runtime.measure, rounds=2))
    monkeypatch.delenv("ZSQ_IMAGENET", raising=False)
    return tmp_path


@pytest.fixture
def folder(small, monkeypatch):
    monkeypatch.setenv("ZSQ_IMAGENET", str(class_folders(small / "images", each=34)))
    return small / "images"
