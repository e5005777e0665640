"""The blocks of a network: which modules are reconstructed one after another, what goes into them and what comes out.

What a block puts out is kept and goes into the next one, where that is what the model itself does with it; only where it
does something in between, the images pass through all blocks before once more.
"""
from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .graph import input_of
from .layers import QuantLayer, quant_layers, restart_calls

BATCH = 8  # images that pass at once


class Reached(Exception):
    """The forward pass has come as far as it must."""


@torch.no_grad()
def find_blocks(student: nn.Module, image_shape: tuple[int, ...], kinds: tuple[type, ...] = (QuantLayer,)) -> list[str]:
    """Names of the modules that are reconstructed, in the order in which they run. kinds: what counts as a layer.

    The parts of nested `nn.Sequential`s and of the model itself, down to the first module with code of its own: a residual
    block is one, a convolution with its norm and activation is one. Left out is what is not called exactly once, shares a
    quantized layer with another, or takes or gives anything but one tensor (an encoder that gives its features of all sizes);
    its own parts are looked at instead, and theirs, down to the layers.
    """
    names = list(_parts(student, "", kinds))
    while True:
        fit = _that_fit(student, image_shape, names)
        parts = [part for name in names if name not in fit for part in _parts(student.get_submodule(name), f"{name}.", kinds)]
        if not parts:
            return fit
        names = [*fit, *parts]


def required_blocks(student: nn.Module, image_shape: tuple[int, ...]) -> list[str]:
    """`find_blocks` for those who have nothing to do without. Raises ValueError where there is no block."""
    names = find_blocks(student, image_shape)
    if not names:
        raise ValueError("no block of the model takes and gives one tensor: use recipe 'distilled'")
    return names


def _that_fit(model: nn.Module, image_shape: tuple[int, ...], names: list[str]) -> list[str]:
    """Those of the named modules that are called once, with one tensor, and give one; in the order in which they run."""
    modules, order = dict(model.named_modules()), []
    names = [name for name in names if name in modules]  # the others are second names
    layers = {name: quant_layers(modules[name]).values() for name in names}
    holders = Counter(layer for held in layers.values() for layer in held)
    unfit = {name for name, held in layers.items() if any(holders[layer] > 1 for layer in held)}

    def seen(name):
        def hook(_module, args, kwargs, output):
            given, others = [*args, *kwargs.values()], set(kwargs) - {"input"}  # the name that PyTorch's layers give it
            if name in order or others or len(given) != 1 or not all(isinstance(t, Tensor) for t in (*given, output)):
                unfit.add(name)
            order.append(name)
        return hook

    handles = [modules[name].register_forward_hook(seen(name), with_kwargs=True) for name in names]
    try:
        model(torch.zeros(2, *image_shape, device=next(model.parameters()).device))
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


@torch.no_grad()
def chained(model: nn.Module, names: list[str], images: Tensor) -> set[str]:
    """The blocks among `names` that get, untouched, what the block before them in the list gave. images: a few, [N, ...]."""
    found, last = set(), [None, None, 0]

    def keep(name):
        def before(_module, args, kwargs):
            x = input_of(args, kwargs)
            if x is last[1] and x._version == last[2] and names.index(name) - 1 == names.index(last[0]):
                found.add(name)

        def after(_module, _args, output):
            last[:] = name, output, output._version
        return before, after

    handles = []
    for name in names:
        before, after = keep(name)
        module = model.get_submodule(name)
        handles += [module.register_forward_pre_hook(before, with_kwargs=True), module.register_forward_hook(after)]
    try:
        model(channels_last(images.clone()))
    finally:
        for handle in handles:
            handle.remove()
    return found


@torch.no_grad()
def block_inputs(model: nn.Module, name: str, images: Tensor) -> Tensor:
    """What goes into a block when the images pass through the model; nothing after it is computed."""
    kept = []

    def keep(_module, args, kwargs):
        kept.append(input_of(args, kwargs).clone())  # what comes after may work in place
        raise Reached

    handle = model.get_submodule(name).register_forward_pre_hook(keep, with_kwargs=True)
    try:
        for batch in images.split(BATCH):
            try:
                model(channels_last(batch))
            except Reached:
                pass
    finally:
        handle.remove()
    return torch.cat(kept)


@torch.no_grad()
def block_outputs(block: nn.Module, inputs: Tensor) -> Tensor:
    """What a block gives for inputs [N, ...], which stay as they are."""
    kept = []
    for x in inputs.split(BATCH):
        restart_calls(block)
        kept.append(block(channels_last(x.clone())))
    return torch.cat(kept)


def channels_last(x: Tensor) -> Tensor:
    """The same values; in images [N, C, H, W] the channels of a position lie side by side, which convolutions like."""
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
