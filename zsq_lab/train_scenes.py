"""Training of the full-precision networks for masks and boxes on scenes with annotations.

From nothing, except that the encoder of `LiteSegmenter` begins as ImageNet has left it.

AdamW on one cycle; random crops at random zoom, flips and colours (`scene_views`); most epochs see crops, the last
fifth whole scenes. What they learn from is in `scene_losses`. State is saved after each epoch (`epochs`); the same
command resumes and repeats the uninterrupted run.
"""
import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from .checkpoints import load_model, save_model, write_card
from .data import cache_folder
from .epochs import conditions, decayed, run_epochs, state_path
from .lite_segmenter import ENCODER, LiteSegmenter
from .models import build
from .scene_losses import box_loss, class_weights, mask_loss
from .scene_metrics import require_shown
from .scene_views import draw_views, recolour
from .scenes import SceneDataset, Scenes
from .tasks import task_of
from .weight_file import read_weights

WHOLE = 0.8  # share of the run after which whole scenes are shown


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
         "camvid/lite_segmenter": Plan(40, 8, (144, 192), (0.75, 1.6), peak=1e-3),
         "bccd/detector": Plan(64, 8, (144, 192), (0.75, 1.4), vertical=True),
         "embedded/segmenter": Plan(14, 16, (96, 96), (0.9, 1.25)),
         "embedded/detector": Plan(14, 16, (96, 96), (0.9, 1.25))}


def train(model: nn.Module, scenes: Scenes, normalise, plan: Plan, *, classes: int, seed: int = 0,
          state_file: Path | None = None, progress: bool = True) -> dict:
    """Train `model` in place on scenes with masks or boxes; returns {loss, seconds, epochs}. Resumes from `state_file`."""
    with_masks, size = isinstance(scenes.targets, Tensor), tuple(scenes.images.shape[2:])
    weights = class_weights(scenes.targets, classes) if with_masks else None
    crops = {"crop": plan.crop, "zoom": plan.zoom}

    def loss_of(epoch: int, chosen: Tensor, generator: torch.Generator) -> Tensor:
        how = {} if epoch >= WHOLE * plan.epochs else crops
        views = draw_views(len(chosen), size, generator, vertical=plan.vertical, **how)
        images = recolour(views.images(normalise(scenes.images[chosen])), plan.colour, generator)
        output = model(images.contiguous(memory_format=torch.channels_last))
        if with_masks:
            return mask_loss(output, views.masks(scenes.targets[chosen]), weights)
        return box_loss(output, views.boxes([scenes.targets[i] for i in chosen]))

    return run_epochs(model, torch.optim.AdamW(decayed(model, 0.05)), loss_of, len(scenes), epochs=plan.epochs,
                      batch_size=plan.batch_size, peak=plan.peak, seed=seed, largest_gradient=5.0, kind="scenes",
                      state_file=state_file, progress=progress)


def warm_start(network: nn.Module, name: str, start: Path) -> dict:
    """Give `network` the weights of a checkpoint, or its pyramid's if that is of another architecture; returns its facts.

    Raises ValueError where the file is missing, damaged, or of a network without such a pyramid.
    """
    if not start.is_file():
        raise ValueError(f"no checkpoint at {start}: expected one that `python -m zsq_lab train` wrote")
    try:
        origin = json.loads(read_weights(start)[1].get("facts", "{}"))["model"]
        other, facts = load_model(origin, start)
        same = origin.split("/")[1] == name.split("/")[1]
        mine, theirs = (network, other) if same else (network.pyramid, other.pyramid)
        mine.load_state_dict(theirs.state_dict())
    except (RuntimeError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{start} is no checkpoint that {name} can start from: {str(error).splitlines()[0]}") from error
    return facts


def train_scene_checkpoint(name: str, dataset: SceneDataset, out: Path, *, epochs: int | None = None, seed: int = 0,
                           peak: float | None = None, start: Path | None = None, data: Path | None = None) -> dict:
    """Train the network of a full name, write checkpoint (half precision) and card, return the facts that both state.

    epochs, peak: other than in `PLANS`. start: a checkpoint to go on from, by one more cycle; of a network for another
    task its pyramid. data: the folder of the scenes, for the card, where one was named. Raises ValueError where `start` is
    missing or no checkpoint of scenes, the encoder that a `LiteSegmenter` begins with is not installed (extra `imagenet`), or
    the test scenes show nothing to measure by.
    """
    plan = replace(PLANS[name], epochs=epochs or PLANS[name].epochs, peak=peak or PLANS[name].peak)
    task, earlier, begun = task_of(name), {}, {}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build(name.split("/")[1], len(dataset.classes))
    if start:
        earlier = warm_start(network, name, start)
    elif isinstance(network, LiteSegmenter):
        network.pyramid.begin_trained(load_model(ENCODER)[0])
        begun = {"encoder": ENCODER}
    scenes, test = dataset.train(), dataset.test()
    require_shown(test)  # before the work
    state_file = state_path(cache_folder(), name, plan.epochs, plan.peak, seed, start, scenes.images)
    outcome = train(network, scenes, dataset.normalise, plan, classes=len(dataset.classes), seed=seed,
                    state_file=state_file)
    network.half().float()  # what is measured is what is stored
    measured = task.measure(network, test, dataset)
    per_class = measured.pop("per_class")
    facts = {"model": name, "task": task.name, **{key: round(value, 2) for key, value in measured.items()},
             "per_class": {key: round(value, 1) for key, value in per_class.items()},
             "accuracy": round(measured[task.metric], 2), "n_test": len(test), "n_train": len(scenes),
             **begun, "image_shape": list(dataset.image_shape), "classes": len(dataset.classes), "epochs": plan.epochs,
             "seed": seed, "seconds": round(outcome["seconds"]),
             **conditions(name, plan.epochs, plan.peak, seed, start, earlier, data)}
    save_model(network.half(), out, facts)
    write_card(out, facts)
    network.float()
    state_file.unlink(missing_ok=True)
    return facts
