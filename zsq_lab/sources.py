"""Where copies of CIFAR-10 lie and how each is read: a source is a few addresses and a function.

The containers differ (two official archives, a mirror's folders of PNG files, another's parquet tables); what is read
from them is proved by `zsq_lab.cifar10.check`, so that a mirror is as trustworthy as the original.
"""
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np

from .cifar10 import CIFAR10_CLASSES, SPLITS, Arrays, archive_members, join, read_binary, read_python

TORONTO = "https://www.cs.toronto.edu/~kriz/"
HUGGING_FACE = "https://huggingface.co/datasets/uoft-cs/cifar10/resolve/main/plain_text/"


@dataclass(frozen=True)
class Source:
    """Where a copy lies. read: the files, one for each of `urls` -> both splits. needs: a module it imports."""

    name: str
    urls: tuple[str, ...]
    read: Callable[..., dict[str, Arrays]]
    needs: str | None = None


def read_png_folders(path: Path) -> dict[str, Arrays]:
    """An archive of `train/<class>/<name>.png` and `test/<class>/<name>.png`. Needs Pillow."""
    return join((name.parts[-3], (_decode_png(content)[None], np.array([CIFAR10_CLASSES.index(name.parts[-2])])))
                for name, content in archive_members(path) if name.suffix == ".png")


def read_parquet(*paths: Path) -> dict[str, Arrays]:
    """A parquet file for each split, with columns `img` (PNG) and `label`. Needs pyarrow and Pillow."""
    from pyarrow import parquet  # optional

    tables = [parquet.read_table(path, columns=["img", "label"]).to_pydict() for path in paths]
    return {split: (np.stack([_decode_png(image["bytes"]) for image in table["img"]]), np.array(table["label"]))
            for split, table in zip(SPLITS, tables)}


SOURCES = {"cifar10": (
    Source("official-binary", (TORONTO + "cifar-10-binary.tar.gz",), read_binary),
    Source("fastai-png", ("https://s3.amazonaws.com/fast-ai-imageclas/cifar10.tgz",), read_png_folders, "PIL"),
    Source("huggingface-parquet", tuple(f"{HUGGING_FACE}{split}-00000-of-00001.parquet" for split in SPLITS),
           read_parquet, "pyarrow"),
    Source("official-python", (TORONTO + "cifar-10-python.tar.gz",), read_python),
)}


def _decode_png(content: bytes) -> np.ndarray:
    from PIL import Image  # only some sources need it

    return np.asarray(Image.open(BytesIO(content)).convert("RGB"))
