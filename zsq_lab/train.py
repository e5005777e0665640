"""Training of the full-precision networks, the only file of the lab that looks at labels of real images.

One-cycle SGD (Smith & Topin 2018) with Nesterov momentum, random crops and flips. Early epochs run on images scaled
down (progressive resizing): a convolution's cost falls with the square of the side, so that 32x32 is paid for only once
the weights are worth it. A second cycle may start from a finished network (warm restart, Loshchilov & Hutter 2017), at
full size throughout. State is saved after each epoch; the same command resumes and repeats the uninterrupted run.
"""
import platform
import sys
import time
from hashlib import sha256
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from .checkpoints import load_model, save_model, write_card
from .data import Dataset, cache_folder
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


def learning_rate(step: float, steps: int, peak: float) -> float:
    """One cycle: linear from peak/10 to the peak at 20 % of the run, then linear to zero."""
    warm = 0.2 * steps
    return peak * (0.1 + 0.9 * step / warm) if step < warm else peak * (steps - step) / (steps - warm)


def train(model: nn.Module, images: Tensor, labels: Tensor, normalise, *, epochs: int, seed: int = 0,
          peak: float = 0.2, batch_size: int = 128, weight_decay: float = 5e-4, small_first: bool = True,
          state_file: Path | None = None, progress: bool = True) -> dict:
    """Train `model` in place on uint8 `images` [N, C, H, W] and int64 `labels` [N]; returns {loss, seconds, epochs}.

    normalise: function from uint8 images to the floats that the network takes.
    small_first: progressive resizing, see `image_side`; else all epochs see the images in full.
    state_file: where the state is kept after each epoch; when it exists the run goes on from there.
    """
    model.train().to(memory_format=torch.channels_last)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    free = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.SGD([{"params": decayed, "weight_decay": weight_decay}, {"params": free}],
                                lr=peak, momentum=0.9, nesterov=True)
    first, seconds, loss_mean = 0, 0.0, float("nan")
    if state_file and state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first, seconds, loss_mean = state["epoch"], state["seconds"], state["loss"]
    batches = len(images) // batch_size
    if batches == 0:
        raise ValueError(f"{len(images)} images do not fill one batch of {batch_size}: pass more images, or a smaller "
                         "batch_size")
    for epoch in range(first, epochs):
        started = time.perf_counter()
        generator = torch.Generator().manual_seed(seed * 100_003 + epoch)  # an epoch is the same after a resume
        order = torch.randperm(len(images), generator=generator)
        side, total = image_side(epoch, epochs, images.shape[-1]) if small_first else images.shape[-1], 0.0
        bar = tqdm(range(batches), f"epoch {epoch + 1}/{epochs} at {side}px", disable=not progress, leave=False)
        for batch in bar:
            chosen = order[batch * batch_size:(batch + 1) * batch_size]
            x = normalise(augment(images[chosen], generator))
            if side < x.shape[-1]:
                x = F.interpolate(x, size=side, mode="bilinear", antialias=True)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(epoch * batches + batch, epochs * batches, peak)
            loss = F.cross_entropy(model(x.contiguous(memory_format=torch.channels_last)), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        if total != total:  # NaN
            raise RuntimeError(f"training diverged in epoch {epoch + 1}: the loss is not a number; lower --lr ({peak})")
        loss_mean = total / batches
        seconds += time.perf_counter() - started
        if progress:
            tqdm.write(f"epoch {epoch + 1}/{epochs} at {side}px: loss {loss_mean:.3f}, {seconds:.0f} s so far",
                       file=sys.stderr)  # standard output may be a JSON object
        if state_file:
            _save_state(state_file, model=model.state_dict(), optimizer=optimizer.state_dict(), epoch=epoch + 1,
                        seconds=seconds, loss=loss_mean)
    model.eval()
    return {"loss": loss_mean, "seconds": seconds, "epochs": epochs}


def train_checkpoint(name: str, dataset: Dataset, out: Path, *, epochs: int, peak: float, seed: int,
                     start: Path | None = None) -> dict:
    """Train the network of a full name, write checkpoint and card, return the facts that both state.

    start: a checkpoint to go on from (a second cycle), else fresh weights.
    The state between epochs lies in `data/cache/`, one file for each setting, and goes away at the end.
    Raises ValueError where `start` is missing or not a checkpoint of this architecture.
    """
    keep_freed_memory()  # MobileNetV2, one thread: 235 images a second instead of 180
    earlier, kind = {}, "train"
    if start:
        network, earlier = load_model(name, start)
        kind = f"from_{sha256(start.read_bytes()).hexdigest()[:8]}"  # of this file, not of one that had its name
    else:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = build(name.split("/")[1], len(dataset.classes))
    state_file = cache_folder() / f"{kind}_{name.replace('/', '_')}_{epochs}_{peak}_{seed}.pt"
    split = dataset.train()
    outcome = train(network, split.images, split.labels, dataset.normalise, epochs=epochs, seed=seed, peak=peak,
                    small_first=not start, state_file=state_file)
    test = dataset.test()
    facts = {"model": name, "accuracy": round(accuracy(network, test, dataset, progress=True), 2), "n_test": len(test),
             "classes": len(dataset.classes), "epochs": epochs, "seed": seed, "seconds": round(outcome["seconds"]),
             "command": f"python -m zsq_lab train --model {name} --epochs {epochs} --lr {peak} --seed {seed}"
             + (f" --start {start.name}" if start else ""),
             "machine": f"{platform.machine()} CPU, {torch.get_num_threads()} threads", "torch": torch.__version__}
    facts |= {f"start_{key}": earlier[key] for key in ("accuracy", "epochs", "seconds", "command") if key in earlier}
    save_model(network, out, facts)
    write_card(out, facts)
    state_file.unlink(missing_ok=True)
    return facts


def _save_state(path: Path, **state) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)
