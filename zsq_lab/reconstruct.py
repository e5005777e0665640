"""Block by block reconstruction (BRECQ, Li et al. 2021): each block learns to give the teacher's output, one after another.

Only one block is worked on at a time, on inputs that were computed once, so that memory and time are a block's and not the
network's. Its inputs are those that it will get, from the quantized blocks before it. It starts from the best of three
roundings that need no training (`best_start`), and learns which way each weight is rounded (`soft_rounding`), its biases,
and all its scales (LSQ, Esser et al. 2020). Where activations are narrow, half of the input values, drawn anew in each step,
are the teacher's (QDrop, Wei et al. 2022), so that a block does not learn the errors of a few images by heart. Written from
the papers' equations. Notebook 07 uses it at 224x224.
"""
import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import cos, isfinite, pi, prod

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .blocks import block_inputs, block_outputs, chained, channels_last
from .distill import scale_group, take_step
from .distributed import part, world
from .health import Stopped
from .layers import QuantLayer, restart_calls
from .resume import RunState
from .soft_rounding import SoftRounding
from .starts import best_start, correct_bias, layers_of, set_weights
from .tasks import relative_error

LEARNING_RATE = 0.005  # of the V that decide the roundings
SCALE_RATE, BIAS_RATE = 0.1, 0.05  # times that: a scale's step relative to its own size, a bias's relative to their mean
TEACHERS_SHARE, NARROW = 0.5, 4  # of the input values that are the teacher's, where activations have so many bits or fewer
POSITIONS = 28 * 28  # of an input, beyond which a batch holds fewer images: each has more places to learn from


@torch.inference_mode(False)  # gradients are needed here, whatever the caller has switched off
def reconstruct(student: nn.Module, teacher: nn.Module, images: Tensor, names: list[str], *, iterations: int,
                learning_rate: float = LEARNING_RATE, scale_rate: float = SCALE_RATE, batch_size: int = 16,
                seed: int = 0, on_block: Callable[[str, float, float], None] | None = None, progress: bool = False,
                run: RunState | None = None) -> None:
    """Train roundings, biases and scales of the student's blocks in place, `iterations` steps each; ranges frozen again.

    student: ranges set, weights not yet rounded. images: [N, ...], synthetic. names: `blocks.find_blocks`. learning_rate:
    Adam's, cosine to zero. scale_rate: times that is a scale's step, relative to its own size. batch_size: images of a
    step, fewer in blocks whose inputs have more than POSITIONS positions.
    on_block(name, before, after) gets the block's relative error with its weights rounded to nearest, and at the end.
    Raises `health.Stopped` when a loss stops being a number.
    """
    run, random = run or RunState(), torch.Generator().manual_seed(seed)
    first, inputs, teachers = 0, None, None
    if state := run.load("blocks"):
        with torch.no_grad():
            for name, value in student.state_dict().items():
                value.copy_(state["student"][name])
        random.set_state(state["random"])
        first = state["block"]
    follows = chained(student, names, images[:2])
    bar = tqdm(total=iterations * len(names), initial=iterations * first, desc="blocks", disable=not progress, leave=False)
    with bar:
        for number, name in list(enumerate(names))[first:]:
            block = student.get_submodule(name)
            if inputs is None or name not in follows:
                inputs, teachers = (block_inputs(model, name, images) for model in (student, teacher))
            wanted = block_outputs(teacher.get_submodule(name), teachers)
            before, error, start = best_start(block, inputs, wanted)
            untrained = copy.deepcopy(block.state_dict())
            with softly_rounded(block, start):
                _train(name, block, (inputs, teachers, wanted), error, iterations,
                       rounding_groups(layers_of(block), learning_rate, scale_rate), images_per_step(inputs, batch_size),
                       random, bar)
            _, after = correct_bias(block, inputs, wanted)
            if after > error:  # few steps on few images need not have helped
                block.load_state_dict(untrained)
                set_weights(layers_of(block), start)
                after = error
            if on_block:
                on_block(name, before, after)
            inputs, teachers = block_outputs(block, inputs), wanted
            run.save("blocks", lambda: {"student": student.state_dict(), "random": random.get_state(), "block": number + 1})


def images_per_step(inputs: Tensor, batch_size: int) -> int:
    """Of inputs [N, C, ...]: batch_size, or as many fewer as they have more than POSITIONS positions.

    The same in each process."""
    processes = world()[1]
    fewer = max(1, prod(inputs.shape[2:]) // POSITIONS)
    return processes * max(1, batch_size // fewer // processes)


@contextmanager
def softly_rounded(block: nn.Module, start: list[Tensor]) -> Iterator[None]:
    """Inside the block of code the layers' weights are rounded softly, from `start` on; after it, to where they then are."""
    layers = layers_of(block)
    for layer, rounded in zip(layers, start, strict=True):
        layer.weight_quantizer = SoftRounding(layer.weight_quantizer, layer.layer.weight, rounded)
    try:
        yield
    finally:
        with torch.no_grad():
            for layer in layers:
                layer.layer.weight.copy_(layer.weight_quantizer.rounded())
                layer.weight_quantizer = layer.weight_quantizer.quantizer


def _train(name: str, block: nn.Module, data: tuple[Tensor, Tensor, Tensor], error: float, iterations: int,
           groups: list[dict], batch_size: int, random: torch.Generator, bar: tqdm) -> None:
    inputs, teachers, wanted = data
    layers = layers_of(block)
    parameters = [p.requires_grad_(True) for group in groups for p in group["params"]]
    optimizer, rates = torch.optim.Adam(groups), [group["lr"] for group in groups]
    mixing = any(quantizer.bits <= NARROW for layer in layers for quantizer in layer.input_quantizers)
    try:
        for iteration in range(iterations):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * 0.5 * (1 + cos(pi * (iteration / iterations)))
            chosen = torch.randint(len(inputs), (batch_size,), generator=random).to(inputs.device)
            x = inputs[chosen]
            if mixing:
                x = torch.where(torch.rand(x.shape, generator=random).to(x.device) < TEACHERS_SHARE, teachers[chosen], x)
            restart_calls(block)
            loss = relative_error(block(channels_last(part(x))), part(wanted[chosen])) / (error + 1e-12)
            if not isfinite(loss.item()):
                raise Stopped(f"reconstruction of block '{name}' diverged at iteration {iteration}: lower the learning rate "
                              f"({rates[0]}), or use more bits or recipe 'distilled'; the input model is unchanged")
            take_step(optimizer, loss, parameters)
            bar.update()
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
            parameter.grad = None


def rounding_groups(layers: list[QuantLayer], learning_rate: float, scale_rate: float = SCALE_RATE) -> list[dict]:
    """What `softly_rounded` layers learn, for an optimiser: V at the learning rate; biases and scales in steps proportional
    to their own size (Adam's steps are not), scales in steps of `scale_rate` times the learning rate."""
    groups = [{"params": [layer.weight_quantizer.v for layer in layers], "lr": learning_rate}]
    for layer in layers:
        if layer.layer.bias is not None:
            size = layer.layer.bias.detach().abs().mean().item()
            groups.append({"params": [layer.layer.bias], "lr": BIAS_RATE * learning_rate * size})
        groups += [scale_group(quantizer, scale_rate * learning_rate)
                   for quantizer in (layer.weight_quantizer.quantizer, *layer.input_quantizers)]
    return groups
