"""Fine-tuning the quantized student against its full-precision teacher: no labels, only what the teacher says.

The student matches the teacher's outputs (Kullback-Leibler) and its features where the resolution changes; weights
move through the straight-through gradient and every scale is learned (LSQ, Esser et al. 2020). BatchNorm statistics
are never updated from synthetic images. Notebook 03 shows what this buys over ranges alone.
"""
from collections.abc import Callable
from math import cos, pi

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from .graph import Graph, tensors
from .layers import QuantLayer, quant_layers

SCALE_RATE = 10.0  # a scale moves per step by this times the learning rate, relative to its own size
Sampler = Callable[[torch.Generator], Tensor]  # draws one batch of images


def stage_layers(graph: Graph) -> list[str]:
    """The layers whose inputs are compared: those that change the resolution, and the last ones.

    Together they see the end of each stage, whatever the architecture calls its stages.
    """
    stages = [node.name for index in graph.layers() if len((node := graph.nodes[index]).input_shape) > 2
              and node.input_shape[2:] != node.output_shape[2:] and node.name not in graph.first_layers()]
    return list(dict.fromkeys([*stages, *sorted(graph.last_layers())]))


class Features:
    """Context manager that keeps the input of the named layers in each forward pass, of teacher or student alike."""

    def __init__(self, model: nn.Module, names: list[str]):
        self.values: dict[str, Tensor] = {}
        modules = dict(model.named_modules())
        self._modules = {name: modules[name] for name in names}
        self._handles = []

    def __enter__(self) -> "Features":
        for name, module in self._modules.items():
            self._handles.append(module.register_forward_pre_hook(self._keep(name)))
        return self

    def __exit__(self, *_) -> None:
        for handle in self._handles:
            handle.remove()

    def _keep(self, name: str):
        def hook(_module, args):
            self.values[name] = args[0]
        return hook


def output_loss(student_output, teacher_output) -> Tensor:
    """KL(teacher || student) of class logits [N, K], averaged over the batch; relative squared error of anything else.

    Several outputs (tuples, lists, dictionaries of tensors): the sum over those of floats.
    """
    if not isinstance(teacher_output, Tensor):
        pairs = zip(tensors(student_output), tensors(teacher_output), strict=True)
        return torch.stack([output_loss(own, wanted) for own, wanted in pairs if wanted.is_floating_point()]).sum()
    if teacher_output.ndim == 2 and teacher_output.shape[1] > 1:
        return F.kl_div(F.log_softmax(student_output, 1), F.log_softmax(teacher_output, 1),
                        reduction="batchmean", log_target=True)
    return relative_error(student_output, teacher_output)


def relative_error(student: Tensor, teacher: Tensor) -> Tensor:
    """|student - teacher|^2 / |teacher|^2, the inverse of the signal-to-noise ratio."""
    return (student - teacher).square().sum() / (teacher.square().sum() + 1e-12)


@torch.inference_mode(False)  # gradients are needed here, whatever the caller has switched off
def finetune(student: nn.Module, teacher: nn.Module, sampler: Sampler, stages: list[str], *, iterations: int,
             learning_rate: float, feature_weight: float = 1.0, seed: int = 0,
             on_step: Callable[[int, float], None] | None = None, progress: bool = False) -> None:
    """Train weights, biases and scales of `student` in place; the last iteration is the result, ranges frozen again.

    sampler: draws a batch of images from a generator seeded with `seed`. stages: `stage_layers` of the teacher's graph.
    learning_rate: Adam's, falling to zero on a cosine. Raises RuntimeError when the loss stops being a number.
    """
    generator = torch.Generator().manual_seed(seed)
    layers = quant_layers(student).values()
    groups = _parameter_groups(layers, learning_rate)
    for group in groups:
        for parameter in group["params"]:
            parameter.requires_grad_(True)
    optimizer = torch.optim.Adam(groups)
    rates = [group["lr"] for group in optimizer.param_groups]
    smallest = [(group["params"], group["floor"]) for group in optimizer.param_groups if "floor" in group]
    try:
        with Features(student, stages) as own, Features(teacher, stages) as wanted:
            for iteration in tqdm(range(iterations), "fine-tuning", disable=not progress, leave=False):
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * 0.5 * (1 + cos(pi * iteration / iterations))
                images = sampler(generator)
                with torch.no_grad():
                    teacher_output = teacher(images)
                loss = output_loss(student(images), teacher_output)
                if feature_weight:
                    errors = [relative_error(own.values[name], wanted.values[name]) for name in stages]
                    loss = loss + feature_weight * torch.stack(errors).mean()
                if not torch.isfinite(loss):
                    raise RuntimeError(f"fine-tuning diverged at iteration {iteration} (loss {loss.item()}): lower the "
                                       f"learning rate ({learning_rate}); the input model is unchanged")
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                with torch.no_grad():
                    for parameters, floor in smallest:
                        for parameter in parameters:
                            parameter.clamp_(min=floor)
                if on_step:
                    on_step(iteration, loss.item())
    finally:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.requires_grad_(False)
                parameter.grad = None


def _parameter_groups(layers: list[QuantLayer], learning_rate: float) -> list[dict]:
    """Weights and biases at the learning rate; scales in steps proportional to their own size (Adam's steps are not)."""
    float_parameters = [p for layer in layers for p in (layer.layer.weight, layer.layer.bias) if p is not None]
    groups = [{"params": float_parameters, "lr": learning_rate}]
    for layer in layers:
        for quantizer in (layer.weight_quantizer, *layer.input_quantizers):
            size = quantizer.scale.detach().median().item()  # not the mean: a dead channel has the stand-in scale 1
            groups.append({"params": [quantizer.scale], "lr": SCALE_RATE * learning_rate * size,
                           "floor": quantizer.scale.detach().min().item() * 1e-3})
    return groups
