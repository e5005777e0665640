"""Quantized layers and the conversion of a whole model.

Each quantized convolution or linear quantizes its own weight and its own input. That needs no surgery on the model's
code: functional ReLU, residual sums and concatenations all end at some layer's input, and every call site gets a range
of its own. Notebook 01 builds the layer, notebook 02 converts the first network.
"""
import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .folding import fold, output_axis, replace_module
from .fused import split_fused_norms
from .graph import BATCH_NORMS, LAYERS, Graph, tensors, trace
from .input_hooks import copy_images, suit_layout
from .quantizer import Quantizer, integer_range
from .trials import overwrites_images

CONVENTIONS = ("deployable", "literature")
IMAGE_BITS = 8  # the input image, in every convention
# Layers whose weights are used without the layer being called: quantizing their parts would change nothing or break.
UNSUPPORTED = (nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase, nn.Embedding, nn.EmbeddingBag, nn.Bilinear)


@dataclass(frozen=True)
class QuantConfig:
    """How a model is quantized.

    weight_bits, activation_bits: 2..16. edge_bits: bits of the first and last layer, None for the same as the others.
    convention: "deployable" (BatchNorm folded, weights symmetric per output channel, activations per tensor, ranges by
    error search) or "literature" (BatchNorm kept, weights affine min-max per channel, activations min-max per tensor).
    Which weights have a scale in common: `scale_axis`.
    layer_bits: weight bits of single layers by name, where they differ (`mixed_precision`).
    """

    weight_bits: int = 8
    activation_bits: int = 8
    edge_bits: int | None = None
    convention: str = "deployable"
    layer_bits: dict[str, int] | None = None

    def __post_init__(self):
        for layer, bits in (self.layer_bits or {}).items():
            try:
                integer_range(bits, symmetric=True)
            except ValueError as error:
                raise ValueError(f"layer_bits of '{layer}': {error}") from None
        for name in ("weight_bits", "activation_bits", "edge_bits"):
            bits = getattr(self, name)
            if name == "edge_bits" and bits is None:
                continue
            try:
                integer_range(bits, symmetric=True)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        if self.convention not in CONVENTIONS:
            raise ValueError(f"unknown convention '{self.convention}': expected one of {', '.join(CONVENTIONS)}")

    @property
    def narrowest(self) -> int:
        """The least bits of the layers' weights and activations, those of the first and last layer aside."""
        return min(self.weight_bits, self.activation_bits, *(self.layer_bits or {}).values())

    def __str__(self) -> str:
        edges = f", first and last layer {self.edge_bits} bits" if self.edge_bits else ""
        weights = "mixed " if self.layer_bits else f"W{self.weight_bits}"
        return f"{weights}A{self.activation_bits} {self.convention}{edges}"


class QuantLayer(nn.Module):
    """A convolution or linear that quantizes its weight and its input before it computes.

    layer: the float layer. A layer that a forward pass calls n times has n input quantizers, one for each call site.
    A model's code may ask for the attributes of its layer: `weight` is the quantized one, all others are the float layer's.
    """

    def __init__(self, layer: nn.Module, weight_quantizer: Quantizer, input_quantizers: list[Quantizer]):
        super().__init__()
        self.layer, self.weight_quantizer = layer, weight_quantizer
        self.input_quantizers = nn.ModuleList(input_quantizers)
        self.call = 0

    @property
    def input_quantizer(self) -> Quantizer:
        """The quantizer of the (first) call site."""
        return self.input_quantizers[0]

    @property
    def weight(self) -> Tensor:
        """The weight that the layer computes with."""
        return self.weight_quantizer(self.layer.weight)

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            layer = self.__dict__.get("_modules", {}).get("layer")
            if layer is None or name.startswith("__"):  # not yet restored by pickle, or what Python asks of a QuantLayer
                raise
            return getattr(layer, name)

    def forward(self, input: Tensor, *args, **kwargs) -> Tensor:  # named as PyTorch does, for calls by keyword
        site, self.call = self.call, (self.call + 1) % len(self.input_quantizers)  # torch.compile compiles for each value
        return functional_call(self.layer, {"weight": self.weight}, (self.input_quantizers[site](input), *args), kwargs)


def restart_calls(model: nn.Module, _inputs=None) -> None:
    """Forward pre-hook of a model with shared layers: call sites are counted anew in each pass, even after an error."""
    for layer in quant_layers(model).values():
        layer.call = 0


def quant_layers(model: nn.Module) -> dict[str, QuantLayer]:
    """The quantized layers of `model` by the names that their float layers had."""
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantLayer)}


def float_layers(model: nn.Module) -> list[str]:
    """Names of the convolutions and linears that `quantize_model` left as they were."""
    quantized = {layer.layer for layer in quant_layers(model).values()}
    return [name for name, module in model.named_modules() if isinstance(module, LAYERS) and module not in quantized]


@contextmanager
def quantization_off(model: nn.Module, *, weights: bool = True, activations: bool = True) -> Iterator[nn.Module]:
    """Inside the block the chosen quantizers of `model` let values pass unchanged."""
    chosen = [q for layer in quant_layers(model).values()
              for q in ([layer.weight_quantizer] if weights else []) + (list(layer.input_quantizers) if activations else [])]
    before = [q.enabled for q in chosen]
    try:
        for quantizer in chosen:
            quantizer.enabled = False
        yield model
    finally:
        for quantizer, enabled in zip(chosen, before, strict=True):
            quantizer.enabled = enabled


@torch.no_grad()  # a model made in inference mode tolerates no record of what is asked of it
def check_model(model: nn.Module) -> None:
    """Raise ValueError, naming the layer, for a model that cannot be quantized."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"expected a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError("the model is a TorchScript module, whose layers cannot be replaced: pass the nn.Module that it was "
                         "made from")
    for name, module in model.named_modules():
        if isinstance(module, QuantLayer) or "quantized" in type(module).__module__.split("."):
            raise ValueError(f"layer '{name}' is already quantized: pass the full-precision model")
        if isinstance(module, UNSUPPORTED):
            raise ValueError(f"layer '{name}' ({type(module).__name__}) is not supported: the lab quantizes convolutions "
                             "and linears; replace or remove this layer")
        if isinstance(module, LAYERS) and "weight" not in module._parameters:
            raise ValueError(f"layer '{name}' computes its weight from others (weight_norm, spectral_norm, pruning): make it "
                             "a plain parameter first, with remove_parametrizations or the like")
        for own, parameter in module.named_parameters(recurse=False):
            if isinstance(parameter, nn.UninitializedParameter):
                raise ValueError(f"layer '{name}' has no weights yet: run the model once before quantizing it")
            if not torch.isfinite(parameter).all():
                raise ValueError(f"layer '{name}' has NaN or infinity in its {own}: load a sound checkpoint")
        for own, buffer in module.named_buffers(recurse=False):
            if isinstance(module, BATCH_NORMS) and not torch.isfinite(buffer.float()).all():
                raise ValueError(f"layer '{name}' has NaN or infinity in its {own}: load a sound checkpoint")
    if not any(isinstance(m, LAYERS) for m in model.modules()):
        raise ValueError("the model has no convolution and no linear layer: there is nothing to quantize (of a network that "
                         "torch.export or torch.jit made, pass the nn.Module that it was made from)")


def float_copy(model: nn.Module) -> nn.Module:
    """An independent copy in float32 and eval mode, channels last, whose parameters ask for no gradient."""
    # What a model keeps of an earlier pass may hang on a graph, which cannot be copied.
    kept = {id(t): t.detach().clone() for module in model.modules() for t in tensors(vars(module)) if not t.is_leaf}
    copied = copy.deepcopy(model, kept).float().eval().requires_grad_(False)
    seen = set()
    for module in copied.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:  # one tensor in two layers: each gets its own, to be scaled and rounded by itself
                module._parameters[name] = nn.Parameter(parameter.clone(), requires_grad=False)
            seen.add(id(parameter))
    # Convolutions on CPUs run up to four times faster on channels-last data.
    dimensions = {p.ndim for p in copied.parameters()}
    return copied.to(memory_format=torch.channels_last) if 4 in dimensions and 5 not in dimensions else copied


def scale_axis(layer: nn.Module) -> int:
    """The dimension of a layer's weight along which each place has a scale of its own: that of the output channels.

    A transposed convolution in groups, [in, out / groups, ...], has none. A depthwise one has a scale for each group, which
    makes one output channel as a rule; in others the channels at the same place of all groups share a scale.
    """
    axis = output_axis(layer)
    return 0 if axis == 1 and 1 < layer.groups == layer.in_channels else axis


def quantize_model(model: nn.Module, config: QuantConfig, graph: Graph) -> nn.Module:
    """Replace the layers of `model` (in place) by quantized ones, ranges not yet set; returns the model.

    graph: `trace(model, image_shape)` of this model, BatchNorms already folded where the convention wants that.
    Layers that the image did not reach in the traced pass stay as they are (`float_layers`): what the model computes from
    its own tensors alone is a constant.
    """
    images, edges = graph.first_calls(), graph.first_layers() | graph.last_layers()
    sites = {}
    for index in graph.layers():
        node = graph.nodes[index]
        sites.setdefault(node.name, (node.module, []))[1].append(index)
    symmetric = config.convention == "deployable"
    own = set(model.modules())
    if foreign := [name for name, (layer, _) in sites.items() if layer not in own]:
        raise ValueError(f"the graph is of another model (its layer '{foreign[0]}' is no part of this one): trace this one")
    if unknown := set(config.layer_bits or ()) - set(sites):
        raise ValueError(f"layer_bits names '{min(unknown)}', which is no layer of the model: expected some of "
                         f"{', '.join(list(sites)[:8])}, ...")
    for name, (layer, calls) in sites.items():
        edge = config.edge_bits if name in edges else None
        weight_bits = (config.layer_bits or {}).get(name) or edge or config.weight_bits
        weight_quantizer = Quantizer(weight_bits, symmetric=symmetric, axis=scale_axis(layer))
        input_quantizers = [Quantizer(IMAGE_BITS if call in images else edge or config.activation_bits, symmetric=False)
                            for call in calls]
        quantized = QuantLayer(layer, weight_quantizer, input_quantizers).to(layer.weight)  # device and type
        model = replace_module(model, layer, quantized)
    if any(len(calls) > 1 for _, calls in sites.values()):
        model.register_forward_pre_hook(restart_calls)
    return model.eval()


def convert(model: nn.Module, config: QuantConfig, image_shape: tuple[int, ...]) -> tuple[nn.Module, nn.Module]:
    """The pair that every recipe starts from: (teacher, student), both independent of `model`.

    teacher: float copy, BatchNorms folded in the deployable convention. student: the same with quantized layers, whose
    ranges are still to be set. Raises ValueError for models that cannot be quantized.
    """
    check_model(model)
    teacher = suit_layout(split_fused_norms(float_copy(model)), image_shape)
    if config.convention == "deployable":
        teacher = fold(teacher, image_shape)
    student = copy.deepcopy(teacher)
    student = quantize_model(student, config, trace(student, image_shape))
    if overwrites_images(teacher, image_shape):
        for network in (teacher, student):
            network.register_forward_pre_hook(copy_images, with_kwargs=True)
    return teacher, student
