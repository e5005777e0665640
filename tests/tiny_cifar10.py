"""A CIFAR-10 of 50 + 20 noise images that the tests share, and the containers that it comes in."""
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np

from zsq_lab import cifar10


def noise_images(n: int, seed: int) -> cifar10.Arrays:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8), rng.integers(0, 10, n).astype(np.uint8)


TINY = {"train": noise_images(50, 0), "test": noise_images(20, 1)}
PUBLISHED = cifar10.Published("cifar10", {split: len(labels) for split, (_, labels) in TINY.items()},
                              {split: cifar10.digest(*arrays) for split, arrays in TINY.items()})


def write_npz(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split, (images, labels) in TINY.items():
        np.savez(folder / f"cifar10_{split}.npz", images=images, labels=labels)


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def planes(split: str, part: slice = slice(None)) -> tuple[np.ndarray, np.ndarray]:
    """Pixels [N, 3072] as the official archives hold them (red, green, blue plane of each image), and labels."""
    images, labels = TINY[split]
    return images[part].transpose(0, 3, 1, 2).reshape(-1, 3072), labels[part]


def binary_batch(split: str, part: slice = slice(None)) -> bytes:
    return b"".join(bytes([label]) + row.tobytes() for row, label in zip(*planes(split, part)))


def write_binary_archive(path: Path) -> None:
    write_tar(path, {"cifar-10-batches-bin/data_batch_2.bin": binary_batch("train", slice(30, 50)),
                     "cifar-10-batches-bin/readme.html": b"text",
                     "cifar-10-batches-bin/test_batch.bin": binary_batch("test"),
                     "cifar-10-batches-bin/data_batch_1.bin": binary_batch("train", slice(0, 30))})


def python2_pickle(pixels: np.ndarray, labels: np.ndarray) -> bytes:
    """A batch as Python 2 and an old NumPy pickled it, which is what the official archive holds; by hand."""
    def text(value: bytes) -> bytes:
        return b"T" + len(value).to_bytes(4, "little") + value  # BINSTRING: the `str` of Python 2

    def number(value: int) -> bytes:
        return b"J" + value.to_bytes(4, "little", signed=True)

    dtype = (b"cnumpy\ndtype\n" + text(b"u1") + number(0) + number(1) + b"\x87R("
             + number(3) + text(b"|") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb")
    shape = number(len(pixels)) + number(3072) + b"\x86"
    array = (b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + number(0) + b"\x85" + text(b"b") + b"\x87R("
             + number(1) + shape + dtype + b"\x89" + text(pixels.tobytes()) + b"tb")
    return (b"\x80\x02}(" + text(b"data") + array + text(b"labels") + b"](" + b"".join(map(number, labels.tolist()))
            + b"e" + b"u.")


def write_python_archive(path: Path) -> None:
    modern = pickle.dumps(dict(zip(("data", "labels"), (planes("test")[0], planes("test")[1].tolist()))), protocol=4)
    write_tar(path, {"cifar-10-batches-py/batches.meta": b"not read", "cifar-10-batches-py/test_batch": modern,
                     "cifar-10-batches-py/data_batch_1": python2_pickle(*planes("train"))})


WRITERS = {"npz": lambda folder: write_npz(folder),
           "binary": lambda folder: write_binary_archive(folder / "cifar-10-binary.tar.gz"),
           "python": lambda folder: write_python_archive(folder / "cifar-10-python.tar.gz")}
