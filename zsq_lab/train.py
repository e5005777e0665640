"""Training of the full-precision networks, the only file of the lab that looks at labels of real images.

One-cycle SGD (Smith & Topin 2018) with Nesterov momentum, random crops and flips. Early epochs run on images scaled
down (progressive resizing): a convolution's cost falls with the square of the side, so that 32x32 is paid for only once
the weights are worth it. A second cycle may start from a finished network (warm restart, Loshchilov & Hutter 2017), at
full size throughout. State is saved after each epoch (`epochs`); the same command resumes and repeats the uninterrupted
run.
"""
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checkpoints import load_model, save_model, write_card
from .data import Dataset, cache_folder
from .epochs import conditions, decayed, run_epochs, state_path
from .evaluate import accuracy
from .memory import keep_freed_memory
from .models import build

EPOCHS = {"cifar10/resnet20": 40, "cifar10/mobilenetv2": 15, "embedded/resnet20": 6}  # of the shipped networks

PAD = 4  # pixels a random crop may move


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image cropped at its own random offset (zero padding of `PAD`) and flipped with probability one half.

    images: uint8 or float [N, C, H, W]; returned with the same shape and type.
    """
    n, _, height, width = images.shape
    padded = F.pad(images, (PAD, PAD, PAD, PAD))
    top, left = torch.randint(0, 2 * PAD + 1, (2, n, 1), generator=generator)
    flip = torch.rand(n, 1, generator=generator) < 0.5
    rows = top + torch.arange(height)
    columns = torch.where(flip, torch.arange(width - 1, -1, -1), torch.arange(width)) + left
    return padded[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def image_side(epoch: int, epochs: int, full: int) -> int:
    """Side in pixels of the training images of an epoch: from half of `full` up to all of it at 55 % of the run."""
    fraction = min(1.0, epoch / (0.55 * epochs))
    return full // 2 + int(fraction * 4) * full // 8


def train(model: nn.Module, images: Tensor, labels: Tensor, normalise, *, epochs: int, seed: int = 0,
          peak: float = 0.2, batch_size: int = 128, small_first: bool = True, state_file: Path | None = None,
          progress: bool = True) -> dict:
    """Train `model` in place on uint8 `images` [N, C, H, W] and int64 `labels` [N]; returns {loss, seconds, epochs}.

    normalise: function from uint8 images to the floats that the network takes.
    small_first: progressive resizing, see `image_side`; else all epochs see the images in full.
    state_file: where the state is kept after each epoch; when it exists the run goes on from there.
    """
    optimizer = torch.optim.SGD(decayed(model, 5e-4), lr=peak, momentum=0.9, nesterov=True)
    full = images.shape[-1]

    def side(epoch: int) -> int:
        return image_side(epoch, epochs, full) if small_first else full

    def loss_of(epoch: int, chosen: Tensor, generator: torch.Generator) -> Tensor:
        x = normalise(augment(images[chosen], generator))
        if side(epoch) < full:
            x = F.interpolate(x, size=side(epoch), mode="bilinear", antialias=True)
        return F.cross_entropy(model(x.contiguous(memory_format=torch.channels_last)), labels[chosen])

    return run_epochs(model, optimizer, loss_of, len(images), epochs=epochs, batch_size=batch_size, peak=peak, seed=seed,
                      note=lambda epoch: f" at {side(epoch)}px", state_file=state_file, progress=progress)


def train_checkpoint(name: str, dataset: Dataset, out: Path, *, epochs: int, peak: float, seed: int,
                     start: Path | None = None) -> dict:
    """Train the network of a full name, write checkpoint and card, return the facts that both state.

    start: a checkpoint to go on from (a second cycle), else fresh weights.
    The state between epochs lies in `data/cache/`, one file for each setting, and goes away at the end.
    Raises ValueError where `start` is missing or not a checkpoint of this architecture.
    """
    keep_freed_memory()  # MobileNetV2, one thread: 235 images a second instead of 180
    earlier = {}
    if start:
        network, earlier = load_model(name, start)
    else:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = build(name.split("/")[1], len(dataset.classes))
    split = dataset.train()
    state_file = state_path(cache_folder(), name, epochs, peak, seed, start, split.images)
    outcome = train(network, split.images, split.labels, dataset.normalise, epochs=epochs, seed=seed, peak=peak,
                    small_first=not start, state_file=state_file)
    test = dataset.test()
    facts = {"model": name, "accuracy": round(accuracy(network, test, dataset, progress=True), 2), "n_test": len(test),
             "classes": len(dataset.classes), "epochs": epochs, "seed": seed, "seconds": round(outcome["seconds"]),
             **conditions(name, epochs, peak, seed, start, earlier)}
    save_model(network, out, facts)
    write_card(out, facts)
    state_file.unlink(missing_ok=True)
    return facts
