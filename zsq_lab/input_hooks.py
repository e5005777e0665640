"""What happens to images before a network sees them, where its own code would spoil them or takes no other layout.

Networks run channels last (`layers.float_copy`), and several look at the same images. Forward pre-hooks, so that the student
keeps them wherever it goes.
"""
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .graph import evaluating, example

ONE_LAYOUT = "view size is not compatible"  # what PyTorch says where a model views a map as a vector, channels last


def copy_images(_model: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Forward pre-hook of a model that `overwrites_images`: teacher and student see the same ones, the caller keeps his."""
    return _each_tensor(torch.clone, args, kwargs)


def channels_first(_model: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Forward pre-hook of a model that takes no other layout."""
    return _each_tensor(Tensor.contiguous, args, kwargs)


def _each_tensor(change, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    def changed(value):
        return change(value) if isinstance(value, Tensor) else value
    return tuple(map(changed, args)), {name: changed(value) for name, value in kwargs.items()}


@torch.no_grad()
def suit_layout(model: nn.Module, image_shape: tuple[int, ...]) -> nn.Module:
    """Channels first, in place, for a model that views its maps as vectors, which only that layout allows."""
    try:
        with evaluating(model):
            model(example(model, image_shape))
    except Exception as error:  # any other one is the trace's to explain
        if ONE_LAYOUT in str(error):
            model.to(memory_format=torch.contiguous_format).register_forward_pre_hook(channels_first, with_kwargs=True)
    return model


def any_layout(model: nn.Module) -> Callable[[Tensor], object]:
    """The model as a function of images [N, C, H, W] on any device, which stay as they are.

    It gets them channels last, or first where it takes no other, which shows at the first call. For networks that did not
    go through `suit_layout`.
    """
    layout, device = torch.channels_last, next(model.parameters()).device

    def say(images: Tensor) -> object:
        nonlocal layout
        try:
            return model(images.to(device).clone(memory_format=layout))
        except RuntimeError as error:
            if ONE_LAYOUT not in str(error) or layout is torch.contiguous_format:
                raise
        layout = torch.contiguous_format
        return say(images)
    return say
