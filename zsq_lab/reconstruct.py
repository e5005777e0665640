"""Block by block reconstruction (BRECQ, Li et al. 2021): each block learns to give the teacher's output, one after another.

Only one block is trained at a time, on inputs that were computed once, so that memory and time of a step are a block's and
not the network's. Its inputs are those that it will get, from the quantized blocks before it; in half of the places, drawn
anew in each step, the teacher's (QDrop, Wei et al. 2022), so that it does not learn the errors of a few images by heart.
Written from the papers' equations. Notebook 07 uses it at 224x224.
"""
from collections.abc import Callable, Iterator
from math import cos, isfinite, pi

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .distill import parameter_groups, relative_error
from .distributed import average_gradients, part
from .health import Stopped
from .layers import QuantLayer, quant_layers, restart_calls
from .resume import RunState

TEACHERS_SHARE = 0.5  # of the input values that are the teacher's


class _Reached(Exception):
    """The forward pass has come as far as it must."""


@torch.no_grad()
def find_blocks(student: nn.Module, image_shape: tuple[int, ...], kinds: tuple[type, ...] = (QuantLayer,)) -> list[str]:
    """Names of the modules that are reconstructed, in the order in which they run. kinds: what counts as a layer.

    The parts of nested `nn.Sequential`s and of the model itself, down to the first module with code of its own: a residual
    block is one, a convolution with its norm and activation is one. Left out is what is called more than once, or takes or
    gives anything but one tensor; its layers keep the ranges that they have.
    """
    names = list(_parts(student, "", kinds))
    modules, order, unfit = dict(student.named_modules()), [], set()

    def seen(name):
        def hook(_module, args, kwargs, output):
            if name in order or kwargs or len(args) != 1 or not all(isinstance(t, Tensor) for t in (args[0], output)):
                unfit.add(name)
            order.append(name)
        return hook

    handles = [modules[name].register_forward_hook(seen(name), with_kwargs=True) for name in names]
    try:
        student(torch.zeros(2, *image_shape, device=next(student.parameters()).device))
    finally:
        for handle in handles:
            handle.remove()
    return [name for name in dict.fromkeys(order) if name not in unfit]


def _parts(module: nn.Module, prefix: str, kinds: tuple[type, ...]) -> Iterator[str]:
    def holds(part: nn.Module) -> bool:
        return any(isinstance(inner, kinds) for inner in part.modules())

    for name, child in module.named_children():
        if not holds(child):
            continue
        nested = isinstance(child, nn.Sequential) and any(holds(part) and not isinstance(part, kinds)
                                                          for part in child.children())
        if nested or isinstance(child, nn.ModuleList):
            yield from _parts(child, f"{prefix}{name}.", kinds)
        else:
            yield f"{prefix}{name}"


@torch.inference_mode(False)  # gradients are needed here, whatever the caller has switched off
def reconstruct(student: nn.Module, teacher: nn.Module, images: Tensor, names: list[str], *, iterations: int,
                learning_rate: float, batch_size: int = 16, seed: int = 0,
                on_block: Callable[[str, float, float], None] | None = None, progress: bool = False,
                run: RunState | None = None) -> None:
    """Train weights, biases and scales of the student's blocks in place, `iterations` steps each; ranges frozen again.

    student: ranges set. images: [N, ...], synthetic. names: `find_blocks`. learning_rate: Adam's, cosine to zero.
    on_block(name, before, after) gets the block's relative error on all images. Raises `health.Stopped` when a loss stops
    being a number.
    """
    run, random = run or RunState(), torch.Generator().manual_seed(seed)
    first = 0
    if state := run.load("blocks"):
        with torch.no_grad():
            for name, value in student.state_dict().items():
                value.copy_(state["student"][name])
        random.set_state(state["random"])
        first = state["block"]
    own, theirs = dict(student.named_modules()), dict(teacher.named_modules())
    bar = tqdm(total=iterations * len(names), initial=iterations * first, desc="blocks", disable=not progress, leave=False)
    with bar:
        for number, name in list(enumerate(names))[first:]:
            wanted = _captured(teacher, theirs[name], images, batch_size, output=True)
            teachers = _captured(teacher, theirs[name], images, batch_size, output=False)
            inputs = _captured(student, own[name], images, batch_size, output=False)
            before = _error(own[name], inputs, wanted, batch_size)
            _train(name, own[name], inputs, teachers, wanted, iterations, learning_rate, batch_size, random, bar)
            if on_block:
                on_block(name, before, _error(own[name], inputs, wanted, batch_size))
            run.save("blocks", lambda: {"student": student.state_dict(), "random": random.get_state(), "block": number + 1})


def _train(name: str, block: nn.Module, inputs: Tensor, teachers: Tensor, wanted: Tensor, iterations: int,
           learning_rate: float, batch_size: int, random: torch.Generator, bar: tqdm) -> None:
    layers = [block] if isinstance(block, QuantLayer) else list(quant_layers(block).values())
    groups = parameter_groups(layers, learning_rate)
    parameters = [p.requires_grad_(True) for group in groups for p in group["params"]]
    optimizer, rates = torch.optim.Adam(groups), [group["lr"] for group in groups]
    try:
        for iteration in range(iterations):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * 0.5 * (1 + cos(pi * iteration / iterations))
            chosen = torch.randint(len(inputs), (batch_size,), generator=random).to(inputs.device)
            mixed = torch.rand(inputs[chosen].shape, generator=random).to(inputs.device) < TEACHERS_SHARE
            x = torch.where(mixed, teachers[chosen], inputs[chosen])
            restart_calls(block)
            loss = relative_error(block(_channels_last(part(x))), part(wanted[chosen]))
            if not isfinite(loss.item()):
                raise Stopped(f"reconstruction of block '{name}' diverged at iteration {iteration}: lower the learning rate "
                              f"({learning_rate}); the input model is unchanged")
            optimizer.zero_grad()
            loss.backward()
            average_gradients(parameters)
            optimizer.step()
            with torch.no_grad():
                for group in optimizer.param_groups:
                    for parameter in group["params"] if "floor" in group else ():
                        parameter.clamp_(min=group["floor"])
            bar.update()
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
            parameter.grad = None


@torch.no_grad()
def _captured(model: nn.Module, block: nn.Module, images: Tensor, batch_size: int, *, output: bool) -> Tensor:
    """What goes into `block`, or comes out of it, when the images pass through the model; nothing after it is computed."""
    kept = []

    def keep_input(_module, args):
        kept.append(args[0].clone())  # what comes after may work in place
        raise _Reached

    def keep_output(_module, _args, result):
        kept.append(result)
        raise _Reached

    handle = block.register_forward_hook(keep_output) if output else block.register_forward_pre_hook(keep_input)
    try:
        for batch in images.split(batch_size):
            try:
                model(_channels_last(batch))
            except _Reached:
                pass
    finally:
        handle.remove()
    return torch.cat(kept)


@torch.no_grad()
def _error(block: nn.Module, inputs: Tensor, wanted: Tensor, batch_size: int) -> float:
    wrong = size = 0.0
    for x, y in zip(inputs.split(batch_size), wanted.split(batch_size), strict=True):
        restart_calls(block)
        wrong += (block(_channels_last(x.clone())) - y).square().sum().item()
        size += y.square().sum().item()
    return wrong / (size + 1e-12)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
