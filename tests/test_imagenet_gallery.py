"""The committed sheet of synthetic images: what it says it is, and one made anew reads back as it was made."""
import pytest
import torch
from networks import awaken, images, teach
from torch import nn

from zsq_lab import imagenet_gallery
from zsq_lab.image_folder import Preprocess, classes
from zsq_lab.image_maker import make_images
from zsq_lab.imagenet_evaluate import denormalise
from zsq_lab.imagenet_models import preprocess
from zsq_lab.layers import QuantConfig, convert

SMALL = Preprocess(40, 32)


def test_the_committed_sheet_holds_its_classes():
    read, labels = imagenet_gallery.load()
    assert read.shape == (8, 3, 224, 224) and len(set(labels.tolist())) == 8
    card = imagenet_gallery.FILE.with_suffix(".md").read_text()
    assert all(classes()[label][1] in card for label in labels.tolist()) and "imagenet_gallery" in card
    assert read.std() > 0.2 and read.isfinite().all()
    assert preprocess(imagenet_gallery.MODEL).crop == 224


def test_a_sheet_reads_back_as_it_was_made(tmp_path, monkeypatch):
    layers = (nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
              nn.Linear(8, 1000))
    network = teach(awaken(nn.Sequential(*layers)), images(8, SMALL.image_shape))
    monkeypatch.setattr(imagenet_gallery, "load_imagenet", lambda name: (network, SMALL))
    monkeypatch.setattr(imagenet_gallery, "cache_folder", lambda: tmp_path)
    file, labels = tmp_path / "sheet.jpg", (3, 1, 2, 7, 5)
    facts = imagenet_gallery.make(file, 2, labels, progress=False)
    read, wanted = imagenet_gallery.load(file, labels, SMALL)
    assert wanted.tolist() == list(labels) and read.shape == (5, 3, 32, 32) and facts["believed"].endswith("of 5")
    teacher, _ = convert(network, QuantConfig(), SMALL.image_shape)
    made, _ = make_images(teacher, 5, SMALL.image_shape, iterations=2, batch_size=5, labels=torch.tensor(labels),
                          class_weight=imagenet_gallery.CLASS_WEIGHT, seed=imagenet_gallery.SEED)
    assert (denormalise(read, SMALL) - denormalise(made, SMALL)).abs().mean() < 0.05, "JPEG should lose little"
    with pytest.raises(ValueError, match="expected 896x448"):
        imagenet_gallery.load(file)
    with pytest.raises(ValueError, match="no sheet of synthetic images at .*imagenet_gallery"):
        imagenet_gallery.load(tmp_path / "missing.jpg")
