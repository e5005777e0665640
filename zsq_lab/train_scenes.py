"""Training of the full-precision networks for masks and boxes, from nothing, on scenes with annotations.

AdamW on one cycle; random crops at random zoom, flips and colours; most epochs see crops, the last fifth whole scenes.
Masks: cross-entropy with rare classes counting more, plus one minus a soft IoU (what is measured in the end). Boxes:
generalised IoU, and a class score that learns how well its box fits (quality focal loss, Li et al. 2020). State is saved
after each epoch; the same command resumes and repeats the uninterrupted run.
"""
import json
import platform
import sys
import time
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from tqdm import tqdm

from .boxes import assign, generalised_iou, iou, locations, to_boxes
from .checkpoints import save_model, write_card
from .data import cache_folder
from .scene_models import STRIDE
from .models import build
from .scenes import UNLABELLED, Boxes, SceneDataset, Scenes
from .tasks import task_of
from .train import learning_rate

WHOLE = 0.8  # share of the run after which whole scenes are shown
VISIBLE = 0.4  # share of a box that a crop must keep


@dataclass(frozen=True)
class Plan:
    """How a network is trained: epochs, batch size, crop (height, width), zoom of the crops, upside-down flips, rate."""

    epochs: int
    batch_size: int
    crop: tuple[int, int]
    zoom: tuple[float, float]
    vertical: bool = False
    peak: float = 3e-3
    colour: float = 0.25


PLANS = {"camvid/segmenter": Plan(40, 8, (144, 192), (0.75, 1.6)),
         "bccd/detector": Plan(64, 8, (144, 192), (0.75, 1.4), vertical=True),
         "embedded/segmenter": Plan(2, 16, (96, 96), (0.9, 1.25)),
         "embedded/detector": Plan(4, 16, (96, 96), (0.9, 1.25))}


@dataclass(frozen=True)
class Views:
    """Which part of each scene is shown: pixel p of the view lies at `centre + (p - middle) / zoom` of the scene.

    centre, zoom: [N, 2] as x, y; a negative zoom in x or y is a flip. size: height and width of the view.
    """

    centre: Tensor
    zoom: Tensor
    size: tuple[int, int]

    def points(self) -> tuple[Tensor, Tensor]:
        """Where the centres of the view's columns and rows lie in the scene: x [N, W], y [N, H] in pixels."""
        height, width = self.size
        x, y = torch.arange(width) + 0.5 - width / 2, torch.arange(height) + 0.5 - height / 2
        return self.centre[:, :1] + x / self.zoom[:, :1], self.centre[:, 1:] + y / self.zoom[:, 1:]

    def images(self, images: Tensor) -> Tensor:
        """float [N, C, H, W] of normalised images, 0 (their mean) beyond the edge."""
        height, width = images.shape[2:]
        x, y = self.points()
        grid = torch.stack([(2 * x / width - 1)[:, None].expand(-1, y.shape[1], -1),
                            (2 * y / height - 1)[:, :, None].expand(-1, -1, x.shape[1])], 3)
        return F.grid_sample(images, grid, align_corners=False)

    def masks(self, masks: Tensor) -> Tensor:
        """uint8 [N, H, W], unlabelled beyond the edge."""
        x, y = (points.floor().long() for points in self.points())
        height, width = masks.shape[1:]
        n = torch.arange(len(masks))[:, None, None]
        shown = masks[n, y.clamp(0, height - 1)[:, :, None], x.clamp(0, width - 1)[:, None]]
        beyond = ((x < 0) | (x >= width))[:, None] | ((y < 0) | (y >= height))[:, :, None]
        return shown.masked_fill(beyond, UNLABELLED)

    def boxes(self, targets: list[Boxes]) -> list[Boxes]:
        """The boxes in pixels of the view, cut off at its edge; those with less than `VISIBLE` of their area are gone."""
        height, width = self.size
        middle, shown = torch.tensor([width / 2, height / 2]), []
        for target, centre, zoom in zip(targets, self.centre, self.zoom, strict=True):
            corners = (target.boxes.view(-1, 2, 2) - centre) * zoom + middle
            whole = torch.cat([corners.amin(1), corners.amax(1)], 1)
            cut = torch.minimum(whole.clamp(min=0), torch.tensor([width, height, width, height]))
            area = (cut[:, 2:] - cut[:, :2]).clamp(min=0).prod(1)
            kept = area > VISIBLE * (whole[:, 2:] - whole[:, :2]).prod(1)
            shown.append(Boxes(cut[kept], target.labels[kept]))
        return shown


def draw_views(n: int, scene: tuple[int, int], plan: Plan, whole: bool, generator: torch.Generator) -> Views:
    """Random views of n scenes of height and width `scene`; whole: all of it, flipped perhaps."""
    size = scene if whole else plan.crop
    low, high = (1.0, 1.0) if whole else plan.zoom
    zoom = low * (high / low) ** torch.rand(n, 1, generator=generator)
    reach = (torch.tensor([scene[1], scene[0]]) - torch.tensor([size[1], size[0]]) / zoom).clamp(min=0) / 2
    centre = torch.tensor([scene[1], scene[0]]) / 2 + reach * (2 * torch.rand(n, 2, generator=generator) - 1)
    flip = torch.rand(n, 2, generator=generator) < torch.tensor([0.5, 0.5 if plan.vertical else 0.0])
    return Views(centre, torch.where(flip, -zoom, zoom), size)


def recolour(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Normalised images with random contrast, brightness and tint."""
    n = len(images)
    contrast, brightness, tint = (torch.randn(n, c, 1, 1, generator=generator) for c in (1, 1, 3))
    return images * (1 + strength * contrast.clamp(-2, 2)) + strength * brightness + 0.4 * strength * tint


def class_weights(masks: Tensor, classes: int) -> Tensor:
    """[classes]: one over the square root of a class's share of the pixels, mean 1 over the pixels, at most 5."""
    counts = torch.bincount(masks[masks < classes].flatten().long(), minlength=classes).double()
    share = (counts / counts.sum()).clamp(min=1e-6)
    weights = share.rsqrt()
    return (weights / (weights * share).sum()).clamp(max=5).float()


def mask_loss(logits: Tensor, masks: Tensor, weights: Tensor) -> Tensor:
    """Weighted cross-entropy of logits [N, K, H, W] plus one minus the batch's soft IoU, mean over the classes present."""
    masks = masks.long()
    known = masks != UNLABELLED
    entropy = F.cross_entropy(logits, masks, weights, ignore_index=UNLABELLED)
    share = logits.softmax(1) * known[:, None]
    truth = F.one_hot(masks.where(known, torch.zeros_like(masks)), logits.shape[1]).permute(0, 3, 1, 2) * known[:, None]
    both, sizes = (share * truth).sum((0, 2, 3)), truth.sum((0, 2, 3))
    soft = both / (share.sum((0, 2, 3)) + sizes - both).clamp(min=1)
    return entropy + 1 - soft[sizes > 0].mean()


def box_loss(output: dict[str, Tensor], targets: list[Boxes]) -> Tensor:
    """Quality focal loss of the class logits plus twice one minus the generalised IoU, per location that has a box."""
    logits, logs = output["classes"], output["boxes"]
    centres = locations(*logits.shape[2:], STRIDE)
    assigned = [assign(target.boxes, target.labels, centres, STRIDE) for target in targets]
    wanted, labels = (torch.cat(parts) for parts in zip(*assigned, strict=True))
    has = labels >= 0
    logits = logits.permute(0, 2, 3, 1).flatten(0, 2)
    found = to_boxes(logs.permute(0, 2, 3, 1).flatten(1, 2), centres, STRIDE).flatten(0, 1)
    quality = torch.zeros_like(logits)
    quality[has, labels[has]] = iou(found[has], wanted[has]).detach()
    score = logits.sigmoid()
    focal = F.binary_cross_entropy_with_logits(logits, quality, reduction="none") * (score - quality).detach().square()
    return (focal.sum() + 2 * (1 - generalised_iou(found[has], wanted[has])).sum()) / max(1, int(has.sum()))


def train(model: nn.Module, scenes: Scenes, normalise, plan: Plan, *, classes: int, seed: int = 0,
          state_file: Path | None = None, progress: bool = True) -> dict:
    """Train `model` in place on scenes with masks or boxes; returns {loss, seconds, epochs}. Resumes from `state_file`."""
    with_masks = isinstance(scenes.targets, Tensor)
    weights = class_weights(scenes.targets, classes) if with_masks else None
    model.train().to(memory_format=torch.channels_last)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    free = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.05}, {"params": free, "weight_decay": 0.0}])
    first, seconds, loss_mean = 0, 0.0, float("nan")
    if state_file and state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first, seconds, loss_mean = state["epoch"], state["seconds"], state["loss"]
    steps = len(scenes) // plan.batch_size
    if steps == 0:
        raise ValueError(f"{len(scenes)} scenes do not fill one batch of {plan.batch_size}: pass more scenes")
    for epoch in range(first, plan.epochs):
        started, total = time.perf_counter(), 0.0
        generator = torch.Generator().manual_seed(seed * 100_003 + epoch)  # an epoch is the same after a resume
        order = torch.randperm(len(scenes), generator=generator)
        whole = epoch >= WHOLE * plan.epochs
        for step in tqdm(range(steps), f"epoch {epoch + 1}/{plan.epochs}", disable=not progress, leave=False):
            chosen = order[step * plan.batch_size:(step + 1) * plan.batch_size]
            views = draw_views(len(chosen), scenes.images.shape[2:], plan, whole, generator)
            images = recolour(views.images(normalise(scenes.images[chosen])), plan.colour, generator)
            output = model(images.contiguous(memory_format=torch.channels_last))
            if with_masks:
                loss = mask_loss(output, views.masks(scenes.targets[chosen]), weights)
            else:
                loss = box_loss(output, views.boxes([scenes.targets[i] for i in chosen]))
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(epoch * steps + step, plan.epochs * steps, plan.peak)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            total += loss.item()
        if total != total:  # NaN
            raise RuntimeError(f"training diverged in epoch {epoch + 1}: the loss is not a number; lower the rate ({plan.peak})")
        loss_mean = total / steps
        seconds += time.perf_counter() - started
        if progress:
            print(f"epoch {epoch + 1}/{plan.epochs}: loss {loss_mean:.3f}, {seconds:.0f} s so far", file=sys.stderr, flush=True)
        if state_file:
            state_file.parent.mkdir(parents=True, exist_ok=True)
            partial = state_file.with_suffix(".partial")
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch + 1,
                        "seconds": seconds, "loss": loss_mean}, partial)
            partial.replace(state_file)
    model.eval()
    return {"loss": loss_mean, "seconds": seconds, "epochs": plan.epochs}


def warm_start(network: nn.Module, name: str, start: Path) -> dict:
    """Give `network` the weights of a checkpoint, or its pyramid's if that is of another architecture; returns its facts."""
    if not start.is_file():
        raise ValueError(f"no checkpoint at {start}: expected one that `python -m zsq_lab train` wrote")
    try:
        with safe_open(start, framework="pt") as file:
            facts = json.loads((file.metadata() or {}).get("facts", "{}"))
            weights = {key: file.get_tensor(key) for key in file.keys()}
        same = facts["model"].split("/")[1] == name.split("/")[1]
        part = network if same else network.pyramid
        part.load_state_dict(weights if same else {key.removeprefix("pyramid."): value for key, value in weights.items()
                                                   if key.startswith("pyramid.")})
    except (SafetensorError, RuntimeError, KeyError, IndexError, json.JSONDecodeError) as error:
        raise ValueError(f"{start} is no checkpoint that {name} can start from: {str(error).splitlines()[0]}") from error
    return facts


def train_scene_checkpoint(name: str, dataset: SceneDataset, out: Path, *, epochs: int | None = None, seed: int = 0,
                           peak: float | None = None, start: Path | None = None) -> dict:
    """Train the network of a full name, write checkpoint (half precision) and card, return the facts that both state.

    epochs, peak: other than in `PLANS`. start: a checkpoint to go on from, by one more cycle; of a network for another task
    its pyramid. Raises ValueError where `start` is missing or no checkpoint of scenes.
    """
    plan = replace(PLANS[name], epochs=epochs or PLANS[name].epochs, peak=peak or PLANS[name].peak)
    task, earlier, kind = task_of(name), {}, "train"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build(name.split("/")[1], len(dataset.classes))
    if start:
        earlier = warm_start(network, name, start)
        kind = f"from_{sha256(start.read_bytes()).hexdigest()[:8]}"
    state_file = cache_folder() / f"{kind}_{name.replace('/', '_')}_{plan.epochs}_{plan.peak}_{seed}.pt"
    scenes = dataset.train()
    outcome = train(network, scenes, dataset.normalise, plan, classes=len(dataset.classes), seed=seed, state_file=state_file)
    network.half().float()  # what is measured is what is stored
    test = dataset.test()
    measured = task.measure(network, test, dataset)
    facts = {"model": name, "task": task.name, **{key: round(value, 2) for key, value in measured.items() if key != "per_class"},
             "per_class": {key: round(value, 1) for key, value in measured["per_class"].items()},
             "accuracy": round(measured[task.metric], 2), "n_test": len(test), "n_train": len(scenes),
             "image_shape": list(dataset.image_shape), "classes": len(dataset.classes), "epochs": plan.epochs, "seed": seed,
             "seconds": round(outcome["seconds"]),
             "command": f"python -m zsq_lab train --model {name} --epochs {plan.epochs} --lr {plan.peak} --seed {seed}"
             + (f" --start {start.name}" if start else ""),
             "machine": f"{platform.machine()} CPU, {torch.get_num_threads()} threads", "torch": torch.__version__}
    facts |= {f"start_{key}": earlier[key] for key in ("accuracy", "epochs", "seconds", "command", "model") if key in earlier}
    save_model(network.half(), out, facts)
    write_card(out, facts)
    network.float()
    state_file.unlink(missing_ok=True)
    return facts
