"""Several processes, one training: `torchrun --nproc-per-node N -m zsq_lab quantize ...`, on one machine or many.

Every process draws the same batch from the same seed and works on its own part of it; gradients are averaged, and
whatever is a statistic of the batch (BatchNorm's matching loss, the generator's own BatchNorms, relative errors) is
taken over all processes, so that N processes take the steps that one would.
In a single process everything here does nothing.
"""
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world() -> tuple[int, int]:
    """(rank of this process, number of processes); (0, 1) outside of torchrun."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def is_first() -> bool:
    """Whether this is the process that writes files and speaks."""
    return world()[0] == 0


@contextmanager
def joined() -> Iterator[torch.device]:
    """Join the other processes of torchrun for the block, if it started this one; gives the device of this process.

    NCCL between GPUs, Gloo between CPUs; beside a GPU both, because the commands keep their networks on the CPU.
    """
    local = int(os.environ.get("LOCAL_RANK", 0))
    cuda = torch.cuda.device_count() > local  # one GPU for each process; those beyond the last one work on the CPU
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if int(os.environ.get("WORLD_SIZE", 1)) < 2 or "MASTER_ADDR" not in os.environ:
        yield device
        return
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def part(batch: Tensor | None) -> Tensor | None:
    """This process's rows of a batch [N, ...]: every so many-th. Raises ValueError where N does not divide evenly."""
    rank, size = world()
    if size == 1 or batch is None:
        return batch
    if len(batch) % size:
        raise ValueError(f"a batch of {len(batch)} cannot be shared evenly by {size} processes: choose another number of them")
    return batch[rank::size]


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return _reduced(x)

    @staticmethod
    def backward(ctx, grad):
        return _reduced(grad)


def _reduced(x: Tensor) -> Tensor:
    x = x.detach().clone().contiguous()
    dist.all_reduce(x)
    return x / dist.get_world_size()


def mean_over_processes(x: Tensor) -> Tensor:
    """The mean of x over all processes, with a gradient: with losses that are equal everywhere, averaged gradients of
    the parameters are then those of the whole batch."""
    return _Mean.apply(x) if world()[1] > 1 else x


@torch.no_grad()
def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Replace each gradient by its mean over the processes, in one message."""
    if world()[1] == 1:
        return
    moving = [p for p in parameters if p.grad is not None]
    flat, start = _reduced(torch.cat([p.grad.reshape(-1) for p in moving])), 0
    for p in moving:
        p.grad = flat[start:start + p.numel()].view_as(p)
        start += p.numel()


def batch_norm(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """What a BatchNorm without memory gives for x [N, C, H, W], its statistics taken over all processes."""
    if world()[1] == 1:
        return norm(x)
    dims = (0, 2, 3)
    mean = mean_over_processes(x.mean(dims))
    variance = mean_over_processes((x - mean[:, None, None]).square().mean(dims))
    y = (x - mean[:, None, None]) / (variance + norm.eps).sqrt()[:, None, None]
    return y * norm.weight[:, None, None] + norm.bias[:, None, None] if norm.affine else y
