"""What large networks cost: bfloat16 where the hardware has it, and gradient checkpointing where memory would not do.

bfloat16 keeps the range of float32 and eight bits of its mantissa; making images bears that, weights and statistics stay in
float32. Checkpointing (Chen et al. 2016) keeps only the inputs of each block and computes its inside again on the way back:
a third more time for a fraction of the memory.
"""
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from .blocks import find_blocks
from .graph import LAYERS
from .memory import is_large

SHARE = 0.5  # of the free memory that a backward pass may keep its activations in
CGROUPS = Path("/sys/fs/cgroup")  # where Linux shows the limits of containers and batch jobs


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 in hardware (a CPU with AVX512-BF16 or AMX, any recent GPU)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    probes = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return device.type == "cpu" and any(probe() for probe in probes if probe)


@contextmanager
def economical(model: nn.Module, image_shape: tuple[int, ...], batch_size: int) -> Iterator[nn.Module]:
    """Inside the block, gradients through `model` (eval mode) for large images cost what the hardware makes possible.

    bfloat16 where the device has it; blocks are checkpointed where a batch would not fit into half of the free memory.
    Small images are left as they are.
    """
    device = next(model.parameters()).device
    if not is_large(image_shape):
        yield model
        return
    enough = activation_bytes(model, image_shape) * batch_size < SHARE * free_memory(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16(device)):
        if enough:
            yield model
        else:
            with checkpointed(model, image_shape):
                yield model


@contextmanager
def checkpointed(model: nn.Module, image_shape: tuple[int, ...]) -> Iterator[nn.Module]:
    """Inside the block the model's blocks (`blocks.find_blocks`) keep their inputs only; the gradients are the same."""
    blocks = map(model.get_submodule, find_blocks(model, image_shape, LAYERS))
    own = {block: vars(block).get("forward") for block in blocks}  # what an instance may have been given for itself
    try:
        for block in own:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        yield model
    finally:
        for block, forward in own.items():
            vars(block).pop("forward", None)  # the class has its own
            if forward is not None:
                block.forward = forward


@torch.inference_mode(False)
def activation_bytes(model: nn.Module, image_shape: tuple[int, ...]) -> int:
    """Bytes that a backward pass to the image keeps for each image, the model's own weights left out."""
    own = {p.data_ptr() for p in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def note(tensor):
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    image = torch.zeros(1, *image_shape, device=next(model.parameters()).device, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), torch.enable_grad():
        held = model(image)  # noqa: F841  (the graph must live while its tensors are counted)
    return sum(kept.values())


def free_memory(device: torch.device) -> int:
    """Free bytes of the device; in a container or batch job no more than its limit leaves.

    Where the system does not say, half of all memory; where it does not say that either, 4 GiB.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            free = 1024 * next(int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        pages = "SC_PHYS_PAGES" if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names else None
        free = os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE") // 2 if pages else 4 * 2**30
    return min(free, left_by_limits())


def left_by_limits() -> float:
    """Bytes that the control groups of this process (version 2) still allow; infinity where nothing is limited or readable."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    own = CGROUPS.joinpath(next((line[3:] for line in lines if line.startswith("0::")), "").strip("/"))
    return min(_left(group) for group in (own, *own.parents))  # a limit of an outer group holds for all inside


def _left(group: Path) -> float:
    try:
        most, used, kinds = ((group / f"memory.{what}").read_text(encoding="ascii") for what in ("max", "current", "stat"))
        cached = dict(line.split() for line in kinds.splitlines())["inactive_file"]  # read files, forgotten when space is short
        return max(0, int(most) - int(used) + int(cached))
    except (OSError, ValueError, KeyError):  # ValueError: the limit is "max", there is none
        return math.inf
