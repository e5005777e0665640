"""The containers of CIFAR-10 and the digest that proves them, on a CIFAR-10 of 50 + 20 noise images."""
import os
import pickle
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from tiny_cifar10 import PUBLISHED, TINY, binary_batch, planes, write_binary_archive, write_python_archive, write_tar

from zsq_lab import cifar10


def pairs(images: np.ndarray, labels: np.ndarray) -> dict[bytes, int]:
    return {image.tobytes(): int(label) for image, label in zip(images, labels, strict=True)}


@pytest.mark.parametrize("write, read", [(write_binary_archive, cifar10.read_binary),
                                         (write_python_archive, cifar10.read_python)])
def test_archives_give_every_image_with_its_label(tmp_path, write, read):
    write(tmp_path / "archive.tar.gz")
    splits = read(tmp_path / "archive.tar.gz")
    assert list(splits) == ["train", "test"]
    for split, (images, labels) in splits.items():
        assert images.dtype == np.uint8 and images.shape == (len(labels), 32, 32, 3)
        assert pairs(images, labels) == pairs(*TINY[split])


def test_check_gives_one_order_whatever_order_came():
    images, labels = TINY["train"]
    backwards = cifar10.check(images[::-1], labels[::-1].astype(np.int64), PUBLISHED, "train")
    for own, expected in zip(backwards, cifar10.check(images, labels, PUBLISHED, "train"), strict=True):
        assert np.array_equal(own, expected) and own.dtype == np.uint8
    assert pairs(*backwards) == pairs(images, labels)


@pytest.mark.parametrize("images, labels, message", [
    (TINY["test"][0][:19], TINY["test"][1], r"\[19, 32, 32, 3\], expected.*20"),
    (TINY["test"][0] / 255, TINY["test"][1], "float64.*expected uint8"),
    (TINY["test"][0], TINY["test"][1][:19], r"labels are uint8 \[19\], expected 20"),
    (TINY["test"][0], TINY["test"][1] + 10, "0 to 9"),
    (TINY["test"][0], TINY["test"][1] / 2, "float"),
    (TINY["test"][0], np.roll(TINY["test"][1], 1), "digest")])
def test_check_names_what_was_found(images, labels, message):
    with pytest.raises(cifar10.DataError, match=message):
        cifar10.check(images, labels, PUBLISHED, "test")


class Evil:
    """What a pickle can do to whoever loads it plainly."""

    def __reduce__(self):
        return os.mkdir, ("harm",)


@pytest.mark.parametrize("payload", [Evil(), np.array([None])], ids=["call", "objects"])
def test_python_archive_cannot_run_code(tmp_path, monkeypatch, payload):
    monkeypatch.chdir(tmp_path)
    batch = pickle.dumps({"data": planes("test")[0], "labels": payload}, protocol=4)
    write_tar(tmp_path / "cifar-10-python.tar.gz", {"test_batch": batch, "data_batch_1": batch})
    with pytest.raises(pickle.UnpicklingError, match="refuses"):
        cifar10.read_python(tmp_path / "cifar-10-python.tar.gz")
    assert not Path("harm").exists()


def test_archive_without_a_split_and_with_a_bomb(tmp_path, monkeypatch):
    write_tar(tmp_path / "a.tar.gz", {"test_batch.bin": binary_batch("test")})
    with pytest.raises(cifar10.DataError, match="no train images"):
        cifar10.read_binary(tmp_path / "a.tar.gz")
    monkeypatch.setattr(cifar10, "MAX_MEMBER", 1000)
    with pytest.raises(cifar10.DataError, match="at most 1,000"):
        cifar10.read_binary(tmp_path / "a.tar.gz")


def test_digest_ignores_order_and_notices_every_change():
    images, labels = TINY["train"]
    reference = cifar10.digest(images, labels)
    order = np.random.default_rng(2).permutation(len(labels))
    assert cifar10.digest(images[order], labels[order]) == reference
    assert cifar10.digest(images, labels.astype(np.int64)) == reference
    assert cifar10.digest(images[order], labels) != reference  # the same images and labels, paired differently
    one_pixel, one_label = images.copy(), labels.copy()
    one_pixel[17, 30, 2, 1] ^= 1
    one_label[17] = (one_label[17] + 1) % 10
    assert len({reference, cifar10.digest(one_pixel, labels), cifar10.digest(images, one_label)}) == 3
    assert cifar10.digest(images.swapaxes(1, 2), labels) != reference


def test_digest_by_hand():
    images = np.stack([np.full((32, 32, 3), value, np.uint8) for value in (7, 9)])
    hashes = sorted([sha256(b"\x03" + b"\x07" * 3072).digest(), sha256(b"\x01" + b"\x09" * 3072).digest()])
    assert cifar10.digest(images, np.array([3, 1])) == sha256(hashes[0] + hashes[1]).hexdigest()
