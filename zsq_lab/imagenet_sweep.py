"""One item of a sweep on an `imagenet/...` network: the images stream from `$ZSQ_IMAGENET`, full precision answers once."""
import platform
from functools import cache
from pathlib import Path

import torch

from .checkpoints import load_model
from .image_folder import ImageFolder, Preprocess, find_images
from .imagenet_command import reference_images, warn_unreadable
from .imagenet_evaluate import Answers, evaluate
from .imagenet_models import preprocess
from .layers import QuantConfig
from .recipes import RECIPES, quantize
from .results import Item


def run(item: Item, shared: Path, threads: int | None = None) -> dict:
    """As `sweeps.run`, and beside the columns: top-5, agreement, 95 % intervals, peak memory in GiB (None on Windows)."""
    prepared, before = preprocess(item.model), torch.get_num_threads()
    folder = _images()
    network, _ = load_model(item.model)
    images = reference_images(folder, prepared) if RECIPES[item.recipe].needs_images else None
    config = QuantConfig(item.weight_bits, item.activation_bits, item.edge_bits, item.convention)
    try:
        torch.set_num_threads(threads or before)
        result = quantize(network, config, item.recipe, image_shape=prepared.image_shape, seed=item.seed,
                          budget=item.budget, images=images, resume=shared, size_budget=item.size_budget)
        memory = _peak_gib()
        full = _full_precision(item.model, item.n_test, prepared)
        chosen = folder.first(item.n_test)
        own = evaluate({"own": result.model}, chosen, prepared)["own"]
        warn_unreadable(chosen)
    finally:
        torch.set_num_threads(before)
    report, (drop, half) = result.report, own.drop(full)
    return {"fp_accuracy": round(full.top1.percent, 2), "accuracy": round(own.top1.percent, 2), "drop": round(drop, 2),
            "seconds": round(report["seconds"], 1), "bytes": report["bytes_after"], "n_test": own.top1.n,
            "threads": report["threads"], "torch": report["versions"]["torch"],
            "machine": f"{platform.machine()} {report['device']}",
            "drop_interval": [round(drop - half, 2), round(drop + half, 2)],
            "fp_top5": round(full.top5.percent, 2), "top5": round(own.top5.percent, 2),
            "agreement": round(own.agreement(full).percent, 2), "peak_gib": memory}


def _images() -> ImageFolder:
    folder = find_images()
    if folder is None:
        raise ValueError("a sweep over ImageNet networks measures on images: set ZSQ_IMAGENET to a folder of them")
    return folder


@cache
def _full_precision(model: str, n_test: int | None, prepared: Preprocess) -> Answers:
    return evaluate({"full": load_model(model)[0]}, _images().first(n_test), prepared)["full"]


def _peak_gib() -> float | None:
    """The most memory that this process has held so far."""
    try:
        import resource
    except ImportError:
        return None
    unit = 2**30 if platform.system() == "Darwin" else 2**20
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 2)
