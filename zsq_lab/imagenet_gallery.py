"""Synthetic images of named ImageNet classes, made by the network from its own memory: a file that may be shared.

`python -m zsq_lab.imagenet_gallery` makes the committed ones (notebook 07). Their seed is one that no recipe is given,
so that they also serve as held-out images where a computer has no photograph at all.
"""
import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .bn_stats import BatchNormStatistics
from .code_version import files_version
from .data import cache_folder
from .image_folder import Preprocess, classes
from .image_maker import make_images
from .imagenet_evaluate import denormalise, normalise
from .imagenet_models import load_imagenet
from .job import MAKERS, fingerprint
from .layers import QuantConfig, convert
from .memory import keep_freed_memory
from .resume import RunState
from .whole_file import whole

FILE = Path(__file__).resolve().parent.parent / "data" / "imagenet_synthetic.jpg"
MODEL, SEED, ITERATIONS, COLUMNS = "imagenet/efficientnet_lite0", 1_000_003, 160, 4
# goldfish, ladybug, monarch, zebra, strawberry, lemon, daisy, pizza: known by colour and texture
LABELS = (1, 301, 323, 340, 949, 951, 985, 963)
CLASS_WEIGHT = 0.05  # more than recipes give: a class is to be seen


def make(file: Path = FILE, iterations: int = ITERATIONS, labels: tuple[int, ...] = LABELS,
         progress: bool = True) -> dict:
    """Make one image of each class, write the sheet (JPEG) and its card beside it, return the facts. Resumes."""
    from PIL import Image

    keep_freed_memory()
    network, preprocess = load_imagenet(MODEL)
    teacher, _ = convert(network, QuantConfig(), preprocess.image_shape)
    started = time.perf_counter()
    made_by = files_version(MAKERS["images"])
    run = RunState(cache_folder() / "runs" / f"gallery_{fingerprint(teacher, made_by, iterations, list(labels))}")
    images, _ = make_images(teacher, len(labels), preprocess.image_shape, iterations=iterations, batch_size=len(labels),
                            class_weight=CLASS_WEIGHT, labels=torch.tensor(labels), seed=SEED, progress=progress, run=run)
    pixels = (denormalise(images, preprocess) * 255).round().byte()
    side, rows = preprocess.crop, -(-len(labels) // COLUMNS)
    sheet = np.zeros((rows * side, COLUMNS * side, 3), np.uint8)
    for index, image in enumerate(pixels):
        top, left = index // COLUMNS * side, index % COLUMNS * side
        sheet[top:top + side, left:left + side] = image.permute(1, 2, 0).numpy()
    with whole(file) as partial:
        Image.fromarray(sheet).save(partial, "JPEG", quality=92, subsampling=0)
    read, wanted = load(file, labels, preprocess)
    with torch.inference_mode(), BatchNormStatistics(teacher) as statistics:
        believed = int((teacher(read).argmax(1) == wanted).sum())
        facts = {"model": MODEL, "classes": ", ".join(classes()[label][1] for label in labels), "iterations": iterations,
                 "seed": SEED, "class_weight": CLASS_WEIGHT, "believed": f"{believed} of {len(labels)}",
                 "statistics": round(statistics.loss().item(), 3),
                 "seconds": round(time.perf_counter() - started + run.reused_seconds),
                 "command": "python -m zsq_lab.imagenet_gallery",
                 "machine": f"{platform.machine()} CPU, {torch.get_num_threads()} threads", "torch": torch.__version__}
    lines = [f"| {key} | {value} |" for key, value in facts.items()]
    text = ["# Synthetic images of ImageNet classes", "",
            f"`{file.name}`: made from the weights of the network alone; no photograph was read.", "",
            "| fact | value |", "|---|---|", *lines]
    file.with_suffix(".md").write_text("\n".join(text) + "\n", encoding="utf-8")
    run.clear()
    return facts


def load(file: Path = FILE, labels: tuple[int, ...] = LABELS,
         preprocess: Preprocess | None = None) -> tuple[Tensor, Tensor]:
    """The committed images as the network takes them, float32 [N, 3, 224, 224], and their classes int64 [N].

    Raises ValueError where the sheet is missing or another.
    """
    from PIL import Image

    from .imagenet_models import preprocess as preprocessing
    preprocess = preprocess or preprocessing(MODEL)
    side, rows = preprocess.crop, -(-len(labels) // COLUMNS)
    try:
        sheet = np.asarray(Image.open(file).convert("RGB"))
    except OSError as error:
        raise ValueError(f"no sheet of synthetic images at {file} ({error}): make it with "
                         "`python -m zsq_lab.imagenet_gallery`") from None
    if sheet.shape != (rows * side, COLUMNS * side, 3):
        raise ValueError(f"{file} has {sheet.shape[1]}x{sheet.shape[0]} pixels, expected "
                         f"{COLUMNS * side}x{rows * side}: make it again with `python -m zsq_lab.imagenet_gallery`")
    tiles = sheet.reshape(rows, side, COLUMNS, side, 3).transpose(0, 2, 1, 3, 4).reshape(-1, side, side, 3)
    return normalise(torch.from_numpy(tiles[:len(labels)].copy()), preprocess), torch.tensor(labels)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m zsq_lab.imagenet_gallery", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=FILE)
    parser.add_argument("--iterations", type=int, default=ITERATIONS)
    args = parser.parse_args(argv)
    print(json.dumps(make(args.out, args.iterations)))


if __name__ == "__main__":
    main()
