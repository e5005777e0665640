"""What each source's files hold, written by Pillow and pyarrow and read back, and the published addresses."""
import io

import numpy as np
import pytest
from PIL import Image
from tiny_cifar10 import PUBLISHED, TINY, write_python_archive, write_tar

from zsq_lab.cifar10 import CIFAR10_CLASSES, DataError, check, digest, read_python
from zsq_lab.sources import SOURCES, read_parquet, read_png_folders


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def assert_all_there(splits: dict) -> None:
    for split, arrays in TINY.items():
        assert digest(*check(*splits[split], PUBLISHED, split)) == digest(*arrays)


def test_python_archive(tmp_path):
    write_python_archive(tmp_path / "python.tar.gz")
    assert_all_there(read_python(tmp_path / "python.tar.gz"))


def test_png_folders(tmp_path):
    write_tar(tmp_path / "png.tgz", {"cifar10/labels.txt": b"airplane"} | {
        f"cifar10/{split}/{CIFAR10_CLASSES[label]}/{i}.png": png(image)
        for split, arrays in TINY.items() for i, (image, label) in enumerate(zip(*arrays))})
    assert_all_there(read_png_folders(tmp_path / "png.tgz"))


def test_png_folders_without_a_split(tmp_path):
    write_tar(tmp_path / "png.tgz", {"cifar10/train/dog/1.png": png(TINY["train"][0][0])})
    with pytest.raises(DataError, match="no test images"):
        read_png_folders(tmp_path / "png.tgz")


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet
    for split, (images, labels) in TINY.items():
        table = pyarrow.table({"img": [{"bytes": png(image), "path": "x.png"} for image in images], "label": labels})
        parquet.write_table(table, tmp_path / split)
    assert_all_there(read_parquet(tmp_path / "train", tmp_path / "test"))


def test_addresses_are_encrypted_and_named_once():
    urls = [url for sources in SOURCES.values() for source in sources for url in source.urls]
    assert all(url.startswith("https://") for url in urls) and len(set(urls)) == len(urls)
    for sources in SOURCES.values():
        assert len({source.name for source in sources}) == len(sources), "a partial file is named after its source"
