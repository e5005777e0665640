"""Profiles, search order, lazy splits and what the networks take, on a CIFAR-10 of 50 + 20 noise images."""
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_cifar10 import PUBLISHED, TINY, WRITERS, noise_images, write_npz

from zsq_lab import data, shapes


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A computer without CIFAR-10, on which the published one is the tiny one."""
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    monkeypatch.setattr(data, "cache_folder", lambda: tmp_path / "project" / "data" / "cache")
    monkeypatch.setattr(data, "CIFAR10", PUBLISHED)
    monkeypatch.delenv("ZSQ_DATA", raising=False)


@pytest.mark.parametrize("kind", WRITERS)
def test_each_container_gives_the_same_split(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("ZSQ_DATA", str(tmp_path))
    WRITERS[kind](tmp_path)
    dataset = data.find_dataset()
    assert dataset.name == "cifar10" and len(dataset.classes) == 10
    for split, loaded in (("train", dataset.train()), ("test", dataset.test())):
        assert loaded.images.dtype == torch.uint8 and loaded.labels.dtype == torch.int64
        assert loaded.images.shape == (len(loaded), 3, 32, 32) and loaded.images.is_contiguous()
        expected = {image.transpose(2, 0, 1).tobytes(): label for image, label in zip(*TINY[split])}
        found = {image.numpy().tobytes(): label for image, label in zip(loaded.images, loaded.labels.tolist())}
        assert found == expected
    if kind != "npz":  # whatever order the container had
        write_npz(tmp_path / "other")
        monkeypatch.setenv("ZSQ_DATA", str(tmp_path / "other"))
        assert torch.equal(data.find_dataset().train().images, dataset.train().images)


def test_search_order(tmp_path, monkeypatch):
    assert data.find_dataset().name == "embedded"
    for place in ("data/cache", "notebooks/data/cache", "project/data/cache", "chosen"):  # last to first
        write_npz(tmp_path / place)
        monkeypatch.setenv("ZSQ_DATA", str(tmp_path / "chosen"))
        monkeypatch.setattr(data, "_cifar10", lambda folder: folder)
        assert data.find_dataset() == tmp_path / place


def test_half_of_it_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setenv("ZSQ_DATA", str(tmp_path))
    write_npz(tmp_path)
    (tmp_path / "cifar10_train.npz").unlink()
    assert data.cifar10_folder() is None and data.find_dataset().name == "embedded"
    write_npz(data.cache_folder())  # what the download does
    assert data.cifar10_folder() == data.cache_folder() and len(data.find_dataset("cifar10").train()) == 50
    WRITERS["binary"](tmp_path)
    assert data.cifar10_folder() == tmp_path and len(data.find_dataset("cifar10").train()) == 50


def test_default_folder_is_beside_the_package(monkeypatch):
    monkeypatch.undo()
    assert data.cache_folder().parts[-2:] == ("data", "cache")


def test_splits_are_loaded_lazily_and_once(tmp_path, monkeypatch):
    write_npz(tmp_path)
    (tmp_path / "cifar10_train.npz").write_bytes(b"damaged")
    monkeypatch.setenv("ZSQ_DATA", str(tmp_path))
    first = data.find_dataset("cifar10").test()
    assert data.find_dataset().test() is first


def test_without_cifar10(capsys):
    assert data.find_dataset().name == "embedded"
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and data.COMMAND in err
    data.find_dataset("embedded")
    assert capsys.readouterr() == ("", "")
    with pytest.raises(data.DataError, match="not in any of these folders.*download cifar10"):
        data.find_dataset("cifar10")
    with pytest.raises(ValueError, match="'mnist'.*cifar10, embedded"):
        data.find_dataset("mnist")


@pytest.mark.parametrize("damage, message", [
    (lambda path: path.write_bytes(path.read_bytes()[:5000]), "not readable"),
    (lambda path: path.write_bytes(b""), "not readable"),
    (lambda path: np.savez(path, pictures=TINY["test"][0]), "not readable"),
    (lambda path: np.savez(path, images=TINY["test"][0][:19], labels=TINY["test"][1]),
     r"\[19, 32, 32, 3\], expected.*20"),
    (lambda path: np.savez(path, images=TINY["test"][0] / 255, labels=TINY["test"][1]), "float64.*expected uint8"),
    (lambda path: np.savez(path, images=TINY["test"][0], labels=TINY["test"][1] + 1), "labels"),
    (lambda path: np.savez(path, images=TINY["test"][0], labels=np.roll(TINY["test"][1], 1)), "digest"),
])
def test_damaged_file(tmp_path, monkeypatch, damage, message):
    write_npz(tmp_path)
    damage(tmp_path / "cifar10_test.npz")
    monkeypatch.setenv("ZSQ_DATA", str(tmp_path))
    with pytest.raises(data.DataError, match=message) as caught:
        data.find_dataset().test()
    assert "cifar10_test.npz" in str(caught.value)
    assert f'{data.COMMAND} --out "{tmp_path}"' in str(caught.value), "elsewhere it would not be found before this one"


def test_normalise_and_back():
    dataset = data.find_dataset("embedded")
    images = torch.arange(256, dtype=torch.uint8).repeat(12).view(1, 3, 32, 32)
    normal = dataset.normalise(images)
    assert normal.dtype == torch.float32 and normal.shape == images.shape
    assert normal.min() == -2 and normal.max() == 2  # (0 - 0.5) / 0.25 and (1 - 0.5) / 0.25
    assert torch.allclose(dataset.denormalise(normal) * 255, images.float(), atol=1e-4)
    assert dataset.denormalise(normal * 9).max() == 1 and dataset.denormalise(normal * 9).min() == 0
    with pytest.raises(ValueError, match="normalised already"):
        dataset.normalise(normal)


def test_normalise_takes_each_channel_by_itself():
    dataset = data._cifar10(Path("nowhere"))
    mean_pixel = (torch.tensor(dataset.mean) * 255).round().to(torch.uint8).view(3, 1, 1).expand(3, 32, 32)
    assert dataset.normalise(mean_pixel).abs().max() < 0.01
    assert len(set(dataset.mean)) == len(set(dataset.std)) == 3


def test_batches_are_slices_of_the_whole():
    split = data.Split(*map(torch.from_numpy, noise_images(10, 3)))
    parts = list(data.batches(split, 4))
    assert [len(labels) for _, labels in parts] == [4, 4, 2]
    assert torch.equal(torch.cat([images for images, _ in parts]), split.images)
    assert torch.equal(torch.cat([labels for _, labels in parts]), split.labels)
    assert parts[1][0].untyped_storage().data_ptr() == split.images.untyped_storage().data_ptr()
    with pytest.raises(ValueError, match="at least 1"):
        data.batches(split, 0)


def test_embedded_is_drawn_once_and_by_the_published_seeds(monkeypatch):
    drawn = []

    def draw(n, seed):
        drawn.append((n, seed))
        return np.zeros((n, 3, 32, 32), np.uint8), np.zeros(n, np.int64)

    monkeypatch.setattr(shapes, "draw_images", draw)
    data._embedded.cache_clear()
    assert data.find_dataset("embedded").test() is data.find_dataset("embedded").test()
    assert drawn == [(shapes.TEST_SIZE, shapes.TEST_SEED)]  # the training images only when asked for
    data.find_dataset("embedded").train()
    assert drawn[1:] == [(shapes.TRAIN_SIZE, shapes.TRAIN_SEED)]
    data._embedded.cache_clear()


@pytest.mark.real_data
def test_real_cifar10(monkeypatch):
    monkeypatch.undo()
    folder = os.environ.get("ZSQ_DATA")
    if not folder or not (Path(folder) / "cifar10_test.npz").is_file():
        pytest.skip("needs ZSQ_DATA with CIFAR-10")
    dataset = data.find_dataset("cifar10")
    train, test = dataset.train(), dataset.test()  # both digests agree, or this raises
    assert train.labels.bincount().tolist() == [5000] * 10 and test.labels.bincount().tolist() == [1000] * 10
    for channel, (mean, std) in enumerate(zip(dataset.mean, dataset.std)):
        pixels = train.images[:, channel].float() / 255
        assert float(pixels.mean()) == pytest.approx(mean, abs=2e-4)
        assert float(pixels.std()) == pytest.approx(std, abs=2e-4)
    assert dataset.normalise(test.images[:1000]).std().sub(1).abs() < 0.05
