"""Images on disk for the calibration step of any toolkit: arrays, pictures, and a manifest that says how to read them.

    folder/images.npz       `images` float32 [N, 3, H, W] as the network takes them, `mean` and `std` of each channel
    folder/images/*.png     the same as 8-bit pictures, for tools that want files: rounded, and cut off at black and white
    folder/manifest.json    the normalisation in words and numbers, shape, layout, how the images were made, checksums

Notebook 09 calibrates other people's toolkits with such a folder.
"""
import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .data import Dataset
from .whole_file import beside, whole

FORMAT = "zsq-lab calibration set 1"


def write_calibration_set(folder: Path, images: Tensor, dataset: Dataset, facts: dict) -> dict:
    """Write images [N, 3, H, W] in the network's own scale; returns the manifest.

    The folder appears complete or not at all; an earlier calibration set there is replaced, anything else is an error.
    """
    folder = check_place(folder)
    partial, aside = beside(folder), beside(folder)
    try:
        manifest = _fill(partial, images, dataset, facts)
        if folder.exists():
            folder.replace(aside)
        partial.replace(folder)
    finally:
        if aside.exists() and not folder.exists():  # the new set could not take its place
            aside.replace(folder)
        for left in (partial, aside):
            shutil.rmtree(left, ignore_errors=True)
    return manifest


def _fill(folder: Path, images: Tensor, dataset: Dataset, facts: dict) -> dict:
    (folder / "images").mkdir(parents=True)
    save_npz(folder / "images.npz", images, dataset)
    pictures = _pictures(folder / "images", images, dataset)
    manifest = {
        "format": FORMAT, **facts, "n": len(images), "shape": list(images.shape[1:]), "layout": "NCHW",
        "channels": "RGB",
        "normalisation": {"formula": "input = (pixel / 255 - mean) / std, per channel", "mean": list(dataset.mean),
                          "std": list(dataset.std)},
        "arrays": {"file": "images.npz", "key": "images", "dtype": "float32", "normalised": True,
                   "sha256": _digest(folder / "images.npz")},
        "pictures": {"folder": "images", "dtype": "uint8", "normalised": False, "clipped": pictures.pop("clipped"),
                     "sha256": pictures}}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest


def check_place(folder: Path) -> Path:
    """The folder with no `..` in it, if a calibration set may be written there; else ValueError. What is there goes then."""
    given, folder = folder, Path(folder).resolve()
    if folder.is_dir() and any(folder.iterdir()):
        try:
            own = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["format"] == FORMAT
        except (OSError, ValueError, KeyError, TypeError):
            own = False
        if not own or {path.name for path in folder.iterdir()} - {"images.npz", "images", "manifest.json"}:
            raise ValueError(f"{given} exists and is no calibration set: name a new folder, or an empty one")
    elif not folder.is_dir() and (folder.exists() or any(place.is_file() for place in folder.parents)):
        raise ValueError(f"{given} is a file, or inside of one: name a folder")
    parent = next((place for place in folder.parents if place.exists()), folder)
    for place in (parent, folder):
        if place.exists() and not os.access(place, os.W_OK):
            raise ValueError(f"{given}: no permission to write to {place}: name another folder")
    return folder


def save_npz(path: Path, images: Tensor, dataset: Dataset) -> None:
    """The arrays alone, atomically: `images` normalised, `mean`, `std`; pixels are images * std + mean."""
    with whole(path) as partial, open(partial, "wb") as file:  # NumPy would add an ending to a name
        np.savez(file, images=images.cpu().numpy(), mean=np.float32(dataset.mean), std=np.float32(dataset.std))


def read_calibration_set(path: Path) -> Tensor:
    """The normalised images [N, 3, H, W] of a folder, or of an .npz file, that `synthesize` wrote; no code is executed.

    Raises ValueError when it is missing, damaged or foreign.
    """
    path = Path(path)
    file = path / "images.npz" if path.is_dir() else path
    try:
        if path.is_dir():
            manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
            if manifest["format"] != FORMAT or manifest["arrays"]["sha256"] != _digest(file):
                raise ValueError("its images are not those that the manifest describes")
        with np.load(file, allow_pickle=False) as arrays:
            images = arrays["images"]
        if images.dtype != np.float32 or images.ndim < 2 or not np.isfinite(images).all():
            raise ValueError(f"its images are {images.dtype} {list(images.shape)}, expected finite float32 [N, ...]")
        return torch.from_numpy(images)
    except Exception as error:  # a damaged file can raise anything: zipfile, zlib, NumPy, JSON
        raise ValueError(f"{path} is not a calibration set of this lab: {error}. Write it again with "
                         "`python -m zsq_lab synthesize`.") from error


def _pictures(folder: Path, images: Tensor, dataset: Dataset) -> dict:
    """PNG files, their digests by name, and under "clipped" the share of values that were beyond black or white."""
    from PIL import Image
    mean, std = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in (dataset.mean, dataset.std))
    pixels = images * std + mean
    digests = {"clipped": round(((pixels < 0) | (pixels > 1)).double().mean().item(), 4)}
    pixels = (pixels.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    for index, picture in enumerate(pixels):
        file = folder / f"{index:05}.png"
        Image.fromarray(picture).save(file)
        digests[file.name] = _digest(file)
    return digests


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def calibration_images(network: nn.Module, image_shape: tuple[int, ...], seed: int = 0, *,
                       progress: bool = False) -> Tensor:
    """The quick budget's synthetic images; kept in data/cache/runs and reused by the recipes that make the same ones."""
    from .data import cache_folder
    from .image_maker import make_images
    from .image_start import suited
    from .job import Job, named_budget
    from .layers import QuantConfig, convert
    from .resume import RunState
    from .tasks import CLASSIFICATION
    budget = named_budget("quick", image_shape, CLASSIFICATION)
    teacher, student = convert(network, QuantConfig(), image_shape)
    job = Job(teacher, student, QuantConfig(), image_shape, budget, seed,
              run=RunState(cache_folder() / "runs" / "export"))
    settings = suited(teacher, image_shape, seed=seed)
    run = job.shared("images", budget.images, budget.image_iterations, budget.image_batch, settings)
    return make_images(teacher, budget.images, image_shape, iterations=budget.image_iterations,
                       batch_size=budget.image_batch, seed=seed, progress=progress, run=run, settings=settings)[0]
