"""Fine-tuning the quantized student against its full-precision teacher: no labels, only what the teacher says.

The student matches the teacher's outputs (Kullback-Leibler) and its features where the resolution changes; weights
move through the straight-through gradient and every scale is learned (LSQ, Esser et al. 2020). BatchNorm statistics
are never updated from synthetic images. Notebook 03 shows what this buys over ranges alone.
"""
from collections.abc import Callable
from functools import partial
from math import cos, isfinite, pi

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .distributed import average_gradients, part
from .graph import Graph, input_of, tensors
from .health import Stopped
from .layers import QuantLayer, quant_layers
from .quantizer import Quantizer
from .resume import RunState
from .tasks import CLASSIFICATION, Task, output_loss, relative_error  # noqa: F401  (notebooks take both from here)

SCALE_RATE = 10.0  # a scale moves per step by this times the learning rate, relative to its own size
# How far a student is from its teacher, by the error of the features before the first step, decides how `best` trains it.
# ResNet-20 starts at 0.08 with four bits, at 0.28 with three, at 0.7 with two.
FAR = 0.33
THOROUGH = ((FAR, 30.0), (0.2, 3.0))  # (from this error on, what the features weigh); below: `knowledge_loss`
RATES, SLOW = ((0.6, 1e-3), (0.15, 5e-4), (0.045, 2e-4)), 5e-5  # (from this error on, Adam's rate); below: SLOW
Sampler = Callable[[torch.Generator], Tensor]  # draws one batch of images


def stage_layers(graph: Graph) -> list[str]:
    """The layers whose inputs are compared: those that change the resolution, and the last ones.

    Together they see the end of each stage, whatever the architecture calls its stages.
    """
    stages = [node.name for index in graph.layers() if len((node := graph.nodes[index]).input_shape) > 2
              and node.input_shape[2:] != node.output_shape[2:] and node.name not in graph.first_layers()]
    return list(dict.fromkeys([*stages, *sorted(graph.last_layers())]))


def dense_layers(graph: Graph) -> list[str]:
    """Every layer but those that read the image: comparing at each input leaves few ways to be right for wrong reasons.

    The dense form of `stage_layers`, as close to block-wise reconstruction (BRECQ, Li et al. 2021) as one backward pass gets.
    """
    names = [graph.nodes[index].name for index in graph.layers()]
    return list(dict.fromkeys(name for name in names if name not in graph.first_layers())) or names[:1]


class Features:
    """Context manager that keeps the input of the named layers in each forward pass, of teacher or student alike."""

    def __init__(self, model: nn.Module, names: list[str]):
        self.values: dict[str, Tensor] = {}
        modules = dict(model.named_modules())
        self._modules = {name: modules[name] for name in names}
        self._handles = []

    def __enter__(self) -> "Features":
        for name, module in self._modules.items():
            self._handles.append(module.register_forward_pre_hook(self._keep(name), with_kwargs=True))
        return self

    def __exit__(self, *_) -> None:
        for handle in self._handles:
            handle.remove()

    def _keep(self, name: str):
        def hook(_module, args, kwargs):
            self.values[name] = input_of(args, kwargs)
        return hook


def knowledge_loss(student_output, teacher_output, student_features: dict, teacher_features: dict,
                   task: Task = CLASSIFICATION) -> Tensor:
    """The task's `output_loss` plus the mean `relative_error` of the features of all stages."""
    return task.output_loss(student_output, teacher_output) + _mean_error(student_features, teacher_features)


def thorough_loss(student_output, teacher_output, student_features: dict, teacher_features: dict,
                  task: Task = CLASSIFICATION, *, features: float) -> Tensor:
    """`knowledge_loss` whose features weigh `features` times as much, plus the `relative_error` of the outputs themselves.

    A network is surer of images that were made for it than of photographs. The Kullback-Leibler divergence of answers
    that are almost certain has little left to say; the logits behind them, and the features, still differ.
    A student that starts far from its teacher has most to mend on the way to the answer: the farther, the more features may
    weigh (`data/results/cifar10.md`).
    """
    pairs = zip(tensors(student_output), tensors(teacher_output), strict=True)
    outputs = [relative_error(own, wanted) for own, wanted in pairs if wanted.is_floating_point()]
    return (task.output_loss(student_output, teacher_output) + torch.stack(outputs).sum()
            + features * _mean_error(student_features, teacher_features))


def _mean_error(student_features: dict, teacher_features: dict) -> Tensor:
    return torch.stack([relative_error(student_features[name], wanted) for name, wanted in teacher_features.items()]).mean()


def suited_loss(begun: float) -> Callable[..., Tensor]:
    """The loss for a student whose `feature_error` is `begun` before the first step: `knowledge_loss`, or `thorough_loss`."""
    weight = next((weight for least, weight in THOROUGH if begun >= least), None)
    return partial(thorough_loss, features=weight) if weight else knowledge_loss


def suited_rate(begun: float) -> float:
    """Adam's rate for the same student. By bits alone (`job.learning_rate`) a network that is hard to quantize learns too
    slowly: MobileNetV2 with four bits starts where ResNet-20 does between four and three."""
    return next((rate for least, rate in RATES if begun >= least), SLOW)


@torch.no_grad()  # and not inference_mode: what a model keeps from this pass may meet gradients in the next
def feature_error(student: nn.Module, teacher: nn.Module, images: Tensor, stages: list[str]) -> float:
    """Mean `relative_error` of the student's features at these layers on images [N, ...]: how far it is from its teacher."""
    with Features(student, stages) as own, Features(teacher, stages) as wanted:
        student(images), teacher(images)
        return _mean_error(own.values, wanted.values).item()


class FineTuning:
    """A student that learns from its teacher, step by step; whoever holds it decides which images come.

    Inside the block weights, biases and scales of the student ask for gradients; after it they are frozen again.
    learning_rate: Adam's, falling to zero on a cosine over the run. loss: as `knowledge_loss`, the default.
    groups: (layers, learning rate) -> what the optimiser moves, as `parameter_groups`, the default.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, stages: list[str], learning_rate: float, loss=knowledge_loss,
                 groups: Callable[[list[QuantLayer], float], list[dict]] | None = None):
        self.student, self.teacher, self.learning_rate, self.loss = student, teacher, learning_rate, loss
        groups = (groups or parameter_groups)(list(quant_layers(student).values()), learning_rate)
        self.parameters = [p for group in groups for p in group["params"]]
        self.optimizer = torch.optim.Adam(groups)
        self.rates = [group["lr"] for group in groups]
        self.own, self.wanted = Features(student, stages), Features(teacher, stages)

    def __enter__(self) -> "FineTuning":
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        self.own.__enter__()
        self.wanted.__enter__()
        return self

    def __exit__(self, *_) -> None:
        self.own.__exit__()
        self.wanted.__exit__()
        for parameter in self.parameters:
            parameter.requires_grad_(False)
            parameter.grad = None

    def step(self, images: Tensor, done: float) -> float:
        """One step on a batch; done: the share of the run that lies behind, 0..1. Returns the loss."""
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * 0.5 * (1 + cos(pi * done))
        images = part(images)
        with torch.no_grad():
            teacher_output = self.teacher(images)
        loss = self.loss(self.student(images), teacher_output, self.own.values, self.wanted.values)
        value = loss.item()
        if not isfinite(value):
            raise Stopped(f"fine-tuning diverged after {done:.0%} of its run (loss {value}): lower the learning rate "
                          f"({self.learning_rate}), or use more bits or another recipe; the input model is unchanged")
        take_step(self.optimizer, loss, self.parameters)
        return value

    def state(self) -> dict:
        return {"student": self.student.state_dict(), "optimizer": self.optimizer.state_dict()}

    def restore(self, state: dict) -> None:
        with torch.no_grad():  # in place: the optimizer holds these very tensors
            for name, value in self.student.state_dict().items():
                value.copy_(state["student"][name])
        self.optimizer.load_state_dict(state["optimizer"])


@torch.inference_mode(False)  # gradients are needed here, whatever the caller has switched off
def finetune(student: nn.Module, teacher: nn.Module, sampler: Sampler, stages: list[str], *, iterations: int,
             learning_rate: float, seed: int = 0, on_step: Callable[[int, float], None] | None = None,
             progress: bool = False, run: RunState | None = None, loss=knowledge_loss,
             groups: Callable[[list[QuantLayer], float], list[dict]] | None = None) -> None:
    """Train weights, biases and scales of `student` in place; the last iteration is the result, ranges frozen again.

    sampler: draws a batch of images from a generator seeded with `seed`. stages: `stage_layers` of the teacher's graph.
    loss: as `knowledge_loss`, which is that of classification. groups: as `FineTuning` takes it.
    Raises `health.Stopped` when the loss stops being a number.
    """
    generator, run, first = torch.Generator().manual_seed(seed), run or RunState(), 0
    with FineTuning(student, teacher, stages, learning_rate, loss, groups) as tuning:
        if state := run.load("finetune"):
            tuning.restore(state)
            generator.set_state(state["generator"])
            first = state["iteration"]
        bar = tqdm(range(first, iterations), "fine-tuning", iterations, initial=first, disable=not progress, leave=False)
        for iteration in bar:
            value = tuning.step(sampler(generator), iteration / iterations)
            run.save("finetune", lambda: {**tuning.state(), "generator": generator.get_state(), "iteration": iteration + 1})
            if on_step:
                on_step(iteration, value)


def parameter_groups(layers: list[QuantLayer], learning_rate: float) -> list[dict]:
    """Weights and biases at the learning rate; scales in steps proportional to their own size (Adam's steps are not)."""
    float_parameters = [p for layer in layers for p in (layer.layer.weight, layer.layer.bias) if p is not None]
    return [{"params": float_parameters, "lr": learning_rate},
            *(scale_group(quantizer, SCALE_RATE * learning_rate) for layer in layers
              for quantizer in (layer.weight_quantizer, *layer.input_quantizers))]


def scale_group(quantizer: Quantizer, rate: float) -> dict:
    """A quantizer's scale for an optimiser: steps of `rate` times its own size, never down to zero (`take_step`)."""
    size = quantizer.scale.detach().median().item()  # not the mean: a dead channel has the stand-in scale 1
    return {"params": [quantizer.scale], "lr": rate * size, "floor": quantizer.scale.detach().min().item() * 1e-3}


def take_step(optimizer: torch.optim.Optimizer, loss: Tensor, parameters: list[nn.Parameter]) -> None:
    """One step of the optimiser on the loss, its gradients averaged over all processes; scales stay above their floor."""
    optimizer.zero_grad()
    loss.backward()
    average_gradients(parameters)
    optimizer.step()
    with torch.no_grad():
        for group in optimizer.param_groups:
            for parameter in group["params"] if "floor" in group else ():
                parameter.clamp_(min=group["floor"])
