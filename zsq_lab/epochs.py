"""The loop over epochs that all training of full-precision networks shares, and the state that survives its end.

Each epoch shuffles by a seed of its own and writes its state when it is done: a run that was ended, in whatever way,
goes on from its last whole epoch and repeats the uninterrupted run to the bit. The learning rate is one cycle (Smith &
Topin 2018).
"""
import platform
import sys
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .whole_file import whole


def learning_rate(step: float, steps: int, peak: float) -> float:
    """One cycle: linear from peak/10 to the peak at 20 % of the run, then linear to zero."""
    warm = 0.2 * steps
    return peak * (0.1 + 0.9 * step / warm) if step < warm else peak * (steps - step) / (steps - warm)


def decayed(model: nn.Module, weight_decay: float) -> list[dict]:
    """The groups of an optimizer: weights decay, biases and the numbers of BatchNorms do not."""
    return [{"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0}]


def run_epochs(model: nn.Module, optimizer: torch.optim.Optimizer,
               loss_of: Callable[[int, Tensor, torch.Generator], Tensor], n: int, *, epochs: int, batch_size: int,
               peak: float, seed: int = 0, largest_gradient: float | None = None, kind: str = "images",
               note: Callable[[int], str] = lambda epoch: "", state_file: Path | None = None,
               progress: bool = True) -> dict:
    """Train `model` in place on n examples; returns {loss, seconds, epochs} and leaves it in eval mode.

    loss_of: (epoch, indices of the batch's examples, generator for its augmentation) -> the loss. An incomplete last
    batch is left out. largest_gradient: the norm of all gradients is cut off there. note: said of an epoch beside its
    number. state_file: where the state is kept after each epoch; when it exists the run goes on from there.
    Raises ValueError where the examples fill no batch or the state is damaged, RuntimeError where the loss is no number
    any more.
    """
    batches = n // batch_size
    if batches == 0:
        raise ValueError(f"{n} {kind} do not fill one batch of {batch_size}: pass more {kind}, or a smaller batch_size")
    model.train().to(memory_format=torch.channels_last)
    first, seconds, loss_mean = 0, 0.0, float("nan")
    if state_file and state_file.exists():
        first, seconds, loss_mean = _restore(state_file, model, optimizer)
    for epoch in range(first, epochs):
        started, total, name = time.perf_counter(), 0.0, f"epoch {epoch + 1}/{epochs}{note(epoch)}"
        generator = torch.Generator().manual_seed(seed * 100_003 + epoch)  # an epoch is the same after a resume
        order = torch.randperm(n, generator=generator)
        for batch in tqdm(range(batches), name, disable=not progress, leave=False):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(epoch * batches + batch, epochs * batches, peak)
            loss = loss_of(epoch, order[batch * batch_size:(batch + 1) * batch_size], generator)
            optimizer.zero_grad()
            loss.backward()
            if largest_gradient is not None:
                nn.utils.clip_grad_norm_(model.parameters(), largest_gradient)
            optimizer.step()
            total += loss.item()
        if total != total:  # NaN
            raise RuntimeError(f"training diverged in epoch {epoch + 1}: the loss is not a number; lower --lr ({peak})")
        loss_mean = total / batches
        seconds += time.perf_counter() - started
        if progress:
            tqdm.write(f"{name}: loss {loss_mean:.3f}, {seconds:.0f} s so far",
                       file=sys.stderr)  # standard output may be a JSON object
        if state_file:
            _save_state(state_file, model=model.state_dict(), optimizer=optimizer.state_dict(), epoch=epoch + 1,
                        seconds=seconds, loss=loss_mean)
    model.eval()
    return {"loss": loss_mean, "seconds": seconds, "epochs": epochs}


def _save_state(path: Path, **state) -> None:
    with whole(path) as partial:
        torch.save(state, partial)


def _restore(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, float, float]:
    """(epochs done, seconds, mean loss) of a kept state. Raises ValueError, naming the file, where it is damaged."""
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        return state["epoch"], state["seconds"], state["loss"]
    except Exception as error:  # whatever a damaged file makes the reader stumble over
        raise ValueError(f"{path} is damaged or another network's ({type(error).__name__}): delete it to start anew") from error


def state_path(folder: Path, name: str, epochs: int, peak: float, seed: int, start: Path | None, images: Tensor) -> Path:
    """The file for the state of a run with these settings on these images; `start` counts by its bytes, not by its name."""
    kind = f"from_{sha256(start.read_bytes()).hexdigest()[:8]}" if start else "train"
    seen = f"{len(images)}_{sha256(images.contiguous().numpy()).hexdigest()[:8]}"
    return folder / f"{kind}_{name.replace('/', '_')}_{epochs}_{peak}_{seed}_{seen}.pt"


def conditions(name: str, epochs: int, peak: float, seed: int, start: Path | None, earlier: dict,
               data: Path | None = None) -> dict:
    """What a card says of a run: its command, the machine, and as `start_...` the facts of the checkpoint before it.

    data: the folder that the command named, if it did.
    """
    command = f"python -m zsq_lab train --model {name} --epochs {epochs} --lr {peak} --seed {seed}"
    command += f" --data {data.name}" if data else ""
    before = {f"start_{key}": earlier[key] for key in ("model", "accuracy", "epochs", "seconds", "command")
              if key in earlier}
    return {"command": command + (f" --start {start.name}" if start else ""),
            "machine": f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
            "torch": torch.__version__} | before
