"""Batch-norm folding: in eval mode a BatchNorm is a scale and a shift, which the layer before it can absorb.

    gamma (W x + b - mu) / sigma + beta  =  (gamma / sigma) W x + (b - mu) gamma / sigma + beta

The layer before is found by the data flow (`graph.trace`), not by the order of definition. What BatchNorm remembered is
kept: `FoldedBatchNorm` stands in its place as an identity and knows the mean and deviation that its input should have,
beta and |gamma|. Notebook 02 works this out by hand.
"""
import torch
from torch import Tensor, nn

from .graph import BATCH_NORMS, LAYERS, Graph, trace
from .trials import require_unchanged, takes_factors


class FoldedBatchNorm(nn.Identity):
    """Identity in place of a folded BatchNorm; `mean` and `std` [C] of the values that pass, as training left them.

    They are its beta and |gamma|. A channel whose values hardly varied (running_var not far above eps) varied less than that.
    overwritten: the operation after it, ReLU(inplace=True) for instance, changes the values where they lie.
    """

    def __init__(self, mean: Tensor, std: Tensor, *, overwritten: bool = False):
        super().__init__()
        self.overwritten = overwritten
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    @property
    def num_features(self) -> int:
        """The number of channels, which a model's code may ask its BatchNorm for."""
        return len(self.mean)


def affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """gamma and beta [C] of a BatchNorm, 1 and 0 where it was made without them."""
    gamma = norm.weight if norm.weight is not None else torch.ones_like(norm.running_var)
    beta = norm.bias if norm.bias is not None else torch.zeros_like(norm.running_mean)
    return gamma.detach(), beta.detach()


def output_axis(layer: nn.Module) -> int:
    """The dimension of a layer's weight that runs over its output channels."""
    return 1 if isinstance(layer, nn.modules.conv._ConvTransposeNd) else 0


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """Put `new` wherever `old` is registered in `model`; returns the model (`new` itself if `old` was the model)."""
    if model is old:
        return new
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child is old:
                setattr(parent, name, new)
        # named_children() lists a module once per parent; the same layer may have two names there
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new
    return model


def fold(model: nn.Module, image_shape: tuple[int, ...]) -> nn.Module:
    """`fold_batchnorms` of a model, in place. Raises ValueError where that would change what the model computes."""
    graph = trace(model, image_shape)
    model = fold_batchnorms(model, graph)
    require_unchanged(graph, model, image_shape, "folding its BatchNorms",
                      "call the layer, or use convention 'literature', which folds nothing")
    return model


@torch.no_grad()
def fold_batchnorms(model: nn.Module, graph: Graph) -> nn.Module:
    """Fold each BatchNorm of `model` whose only input is a layer that feeds nothing else; changes `model` in place.

    graph: `trace(model, image_shape)`. A BatchNorm that cannot be folded (after a sum, shared, without statistics, or after a
    layer that is not linear) stays as it is and is computed in floating point. Raises ValueError, before anything is changed,
    for a graph of another model: of a copy, for instance, whose layers would be scaled instead.
    """
    own = set(model.modules())
    for node in graph.nodes:
        if isinstance(node.module, (*LAYERS, *BATCH_NORMS)) and node.module not in own:
            raise ValueError("the graph was traced on another model, or before this one was changed: its layer "
                             f"'{node.name}' is not part of this model. Pass trace(model, image_shape) of this model.")
    for index, node in enumerate(graph.nodes):
        norm = node.module
        if not isinstance(norm, BATCH_NORMS) or norm.running_mean is None or len(node.inputs) != 1:
            continue
        before = graph.nodes[node.inputs[0]] if node.inputs[0] >= 0 else None
        if before is None or not isinstance(before.module, LAYERS) or graph.consumers(node.inputs[0]) != [index]:
            continue
        if isinstance(before.module, nn.Linear) and len(before.output_shape) != 2:
            continue  # on [N, C, L] a linear works along L, BatchNorm along C
        if len(graph.calls(norm)) > 1 or len(graph.calls(before.module)) > 1:
            continue
        if not takes_factors(before.module, before.input_shape):
            continue
        _absorb(before.module, norm)
        overwritten = any(graph.nodes[consumer].in_place for consumer in graph.consumers(index))
        gamma, beta = affine(norm)
        model = replace_module(model, norm, FoldedBatchNorm(beta.clone(), gamma.abs(), overwritten=overwritten))
    return model


def _absorb(layer: nn.Module, norm: nn.Module) -> None:
    gamma, beta = affine(norm)
    factor = gamma / (norm.running_var + norm.eps).sqrt()
    weight = layer.weight.detach()
    if output_axis(layer) == 0:
        weight = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
    else:  # transposed: [in, out / groups, ...], the output channels of group g belong to the g-th slice of the inputs
        groups = layer.groups
        slices = weight.reshape(groups, -1, *weight.shape[1:])
        weight = (slices * factor.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))).reshape(weight.shape)
    bias = layer.bias.detach() if layer.bias is not None else torch.zeros_like(beta)
    layer.weight = nn.Parameter(weight, requires_grad=layer.weight.requires_grad)
    layer.bias = nn.Parameter((bias - norm.running_mean) * factor + beta, requires_grad=layer.weight.requires_grad)
