"""Profiles, search order and the proof that a file holds CIFAR-10, on a CIFAR-10 of 50 + 20 noise images."""
import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from zsq_lab import data, shapes


def noise_images(n: int, seed: int) -> data.Arrays:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8), rng.integers(0, 10, n).astype(np.uint8)


TINY = {"train": noise_images(50, 0), "test": noise_images(20, 1)}
PUBLISHED = data.Published("cifar10", {split: len(labels) for split, (_, labels) in TINY.items()},
                           {split: data.digest(*arrays) for split, arrays in TINY.items()})


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
    (lambda path: path.unlink(), "not readable"),
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
    assert "cifar10_test.npz" in str(caught.value) and data.COMMAND in str(caught.value)


class Evil:
    """What a pickle can do to whoever loads it plainly."""

    def __reduce__(self):
        return os.mkdir, ("harm",)


@pytest.mark.parametrize("payload", [Evil(), np.array([None])], ids=["call", "objects"])
def test_python_archive_cannot_run_code(tmp_path, payload):
    batch = pickle.dumps({"data": planes("test")[0], "labels": payload}, protocol=4)
    write_tar(tmp_path / "cifar-10-python.tar.gz", {"test_batch": batch, "data_batch_1": batch})
    with pytest.raises(pickle.UnpicklingError, match="refuses"):
        data.read_python(tmp_path / "cifar-10-python.tar.gz")
    assert not Path("harm").exists()


def test_archive_without_a_split_and_with_a_bomb(tmp_path, monkeypatch):
    write_tar(tmp_path / "a.tar.gz", {"test_batch.bin": binary_batch("test")})
    with pytest.raises(data.DataError, match="no train images"):
        data.read_binary(tmp_path / "a.tar.gz")
    monkeypatch.setattr(data, "MAX_MEMBER", 1000)
    with pytest.raises(data.DataError, match="at most 1,000"):
        data.read_binary(tmp_path / "a.tar.gz")


def test_digest_ignores_order_and_notices_every_change():
    images, labels = TINY["train"]
    reference = data.digest(images, labels)
    order = np.random.default_rng(2).permutation(len(labels))
    assert data.digest(images[order], labels[order]) == reference
    assert data.digest(images, labels.astype(np.int64)) == reference
    assert data.digest(images[order], labels) != reference  # the same images and labels, paired differently
    one_pixel, one_label = images.copy(), labels.copy()
    one_pixel[17, 30, 2, 1] ^= 1
    one_label[17] = (one_label[17] + 1) % 10
    assert len({reference, data.digest(one_pixel, labels), data.digest(images, one_label)}) == 3
    assert data.digest(images.swapaxes(1, 2), labels) != reference


def test_digest_by_hand():
    from hashlib import sha256
    images = np.stack([np.full((32, 32, 3), value, np.uint8) for value in (7, 9)])
    hashes = sorted([sha256(b"\x03" + b"\x07" * 3072).digest(), sha256(b"\x01" + b"\x09" * 3072).digest()])
    assert data.digest(images, np.array([3, 1])) == sha256(hashes[0] + hashes[1]).hexdigest()


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
