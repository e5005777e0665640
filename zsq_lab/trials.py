"""What folding and equalization take for granted, tried on noise: where it does not hold, a model would change unnoticed.

A factor moves through a layer's weight only if the layer is linear in it, which a class with a `forward` of its own need not
be. And a record of the data flow does not see everything: a module that is called from a plain Python list as well cannot be
replaced there, and a weight may be used without its layer being called. Nor may a model spoil its images for who comes next.
"""
import copy

import torch
from torch import Tensor, nn

from .graph import LAYERS, Graph, evaluating, example, tensors, trace

LINEAR, UNCHANGED = 1e-4, 1e-2  # relative error that rounding stays far below, in a layer and in most models
NUDGE, TIMES = 1e-5, 10  # of the input; a change of the function is so many times more than what comes of a nudge


@torch.no_grad()
def takes_factors(layer: nn.Module, input_shape: tuple[int, ...]) -> bool:
    """Whether a layer is W x + b, so that factors may move into its weight and out again, and a shift into its bias.

    PyTorch's own layers are. A subclass is not if it standardises its weight, for instance, or holds a norm or an activation.
    """
    if type(layer) in LAYERS:
        return True
    other, random = copy.deepcopy(layer), torch.Generator().manual_seed(0)
    channels = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    x, bias = (torch.randn(shape, generator=random).to(layer.weight) for shape in (input_shape, (channels,)))
    other.weight, other.bias = nn.Parameter(-2 * layer.weight), nn.Parameter(bias)
    each = (-1, *[1] * (layer.weight.ndim - 2))  # a linear has its channels last
    try:
        weighed = layer(x) - (0 if layer.bias is None else layer.bias.reshape(each))
        wanted, own = -8 * weighed + bias.reshape(each), other(4 * x)  # powers of two, which nothing rounds
    except (TypeError, RuntimeError):  # it takes, or gives, more than one tensor, or other channels
        return False
    return own.shape == wanted.shape and _error(own, wanted) < LINEAR


@torch.no_grad()
def require_unchanged(before: Graph, model: nn.Module, image_shape: tuple[int, ...], change: str, instead: str) -> None:
    """Raise ValueError if a model does not put out what it did when `before` was traced. change: what was done to it since.

    Only outputs in floats are compared. A model that is random, or magnifies what rounding does, may change as much as it does
    by itself.
    """
    output = trace(model, image_shape).output
    error = _error(output, before.output)
    if error < UNCHANGED:
        return
    with evaluating(model):
        nudged = model(example(model, image_shape) * (1 + NUDGE))
    if error > TIMES * _error(nudged, output):
        raise ValueError(f"{change} changes what this model computes. Either it calls a module that it also holds in a plain "
                         "Python list, dictionary or function: hold it in nn.ModuleList or nn.ModuleDict alone. Or it uses a "
                         f"layer's weight without calling the layer: {instead}.")


@torch.inference_mode(False)  # whose tensors do not know whether they were changed
@torch.no_grad()
def overwrites_images(model: nn.Module, image_shape: tuple[int, ...]) -> bool:
    """Whether a forward pass changes the very images that it is given, to normalise them for instance."""
    images = example(model, image_shape)
    before = images._version
    model(images)
    return images._version != before


def _error(own, wanted) -> float:
    """The largest relative error of the outputs in floats, of those whose sizes agree; 0 where one has NaN or infinity."""
    pairs = zip(tensors(own), tensors(wanted), strict=False)
    errors = [(a - b).norm() / b.norm().clamp(min=1e-30) for a, b in pairs if b.is_floating_point() and a.shape == b.shape]
    return max([error.nan_to_num(0).item() for error in errors], default=0.0)
