"""What folding and equalization take for granted, tried on noise: where it does not hold, a model would change unnoticed.

A factor moves through a layer's weight only if the layer is linear in it, which a class with a `forward` of its own need not
be. And a record of the data flow does not see everything: a module that is called from a plain Python list as well cannot be
replaced there, and a weight may be used without its layer being called.
"""
import copy

import torch
from torch import Tensor, nn

from .graph import LAYERS, Graph, evaluating, example, tensors, trace

LINEAR, UNCHANGED = 1e-4, 1e-2  # relative error that rounding stays far below, in a layer and in a whole model
NUDGE = 1e-5  # of the input, about what rounding does to it


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
        wanted, own = -6 * weighed + bias.reshape(each), other(3 * x)
    except TypeError:  # it takes, or gives, more than one tensor
        return False
    return _alike(own, wanted, LINEAR)


@torch.no_grad()
def require_unchanged(before: Graph, model: nn.Module, image_shape: tuple[int, ...], change: str, instead: str) -> None:
    """Raise ValueError if a model does not put out what it did when `before` was traced. change: what was done to it since.

    Only outputs in floats are compared, and nothing where a model is random, or leaps so that rounding alone changes it.
    """
    output = trace(model, image_shape).output
    if _alike(output, before.output, UNCHANGED):
        return
    with evaluating(model):
        nudged = model(example(model, image_shape) * (1 + NUDGE))
    if _alike(nudged, output, UNCHANGED):
        raise ValueError(f"{change} changes what this model computes. Either it calls a module that it also holds in a plain "
                         "Python list, dictionary or function: hold it in nn.ModuleList or nn.ModuleDict alone. Or it uses a "
                         f"layer's weight without calling the layer: {instead}.")


def _alike(own, wanted, error: float) -> bool:
    pairs = zip(tensors(own), tensors(wanted), strict=False)
    return not any((a - b).norm() > error * b.norm() for a, b in pairs if b.is_floating_point() and a.shape == b.shape)
