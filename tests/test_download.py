"""Downloads from local servers that work, dawdle, hang up, keep silent, ignore Range or send something else."""
import builtins
import errno
import http.server
import io
import shutil
import socket
import threading
import time
from collections import namedtuple

import numpy as np
import pytest
from PIL import Image
from test_data import PUBLISHED, TINY, noise_images, write_binary_archive, write_python_archive, write_tar

from zsq_lab import data, download
from zsq_lab.download import Limits, Source

PATIENT = Limits(timeout=60, min_speed=0)  # a busy machine is no failure
RESULT = ["cifar10_test.npz", "cifar10_train.npz"]


class Server(http.server.ThreadingHTTPServer):
    """Serves `files` (name: bytes) and misbehaves as told.

    cut: bytes sent before hanging up, for each connection in turn. block, pause: sends `block` bytes, then sleeps
    `pause` seconds, and so on. ranges: whether it understands Range.
    """

    daemon_threads = True

    def __init__(self, files, cut=(), block=1 << 20, pause=0.0, ranges=True):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.cut, self.block, self.pause, self.ranges = files, list(cut), block, pause, ranges
        self.log = []  # (path, Range header) of each request
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def source(self, *names, read=data.read_binary, name="local", needs=None):
        return Source(name, tuple(f"http://127.0.0.1:{self.server_port}/{n}" for n in names or self.files), read, needs)

    def handle_error(self, request, client_address):
        """Silent: the client hangs up on slow servers."""


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, wanted = self.server, self.headers.get("Range")
        server.log.append((self.path, wanted))
        if (content := server.files.get(self.path[1:])) is None:
            return self.send_error(404)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and server.ranges else 0
        if start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        body = content[start:][:server.cut.pop(0) if server.cut else None]
        for i in range(0, len(body), server.block):
            self.wfile.write(body[i:i + server.block])
            time.sleep(server.pause)

    def log_message(self, *_):
        """Silent."""


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("archive") / "cifar-10-binary.tar.gz"
    write_binary_archive(path)
    return path.read_bytes()


@pytest.fixture
def serve(monkeypatch):
    """serve(files, ...) -> Server, closed at the end of the test."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    servers = []

    def start(files, **manners):
        servers.append(Server(files, **manners))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def fetch(folder, *sources, limits=PATIENT):
    return download.download("cifar10", folder, sources, published=PUBLISHED, limits=limits)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def assert_downloaded(folder):
    assert names(folder) == RESULT
    for split, arrays in TINY.items():
        assert data.digest(*data.read_npz(folder / data.npz_name(split))) == data.digest(*arrays)


def test_download_then_nothing_to_do(tmp_path, serve, archive):
    server = serve({"a.tar.gz": archive})
    assert fetch(tmp_path / "new" / "folder", server.source()) == tmp_path / "new" / "folder"
    assert_downloaded(tmp_path / "new" / "folder")
    fetch(tmp_path / "new" / "folder", server.source())
    assert len(server.log) == 1


def test_damaged_result_is_replaced(tmp_path, serve, archive):
    (tmp_path / RESULT[0]).write_bytes(b"damaged")
    fetch(tmp_path, serve({"a.tar.gz": archive}).source())
    assert_downloaded(tmp_path)


def test_data_finds_what_was_downloaded(tmp_path, serve, archive, monkeypatch):
    fetch(tmp_path, serve({"a.tar.gz": archive}).source())
    monkeypatch.setenv("ZSQ_DATA", str(tmp_path))
    monkeypatch.setattr(data, "CIFAR10", PUBLISHED)
    assert len(data.find_dataset("cifar10").train()) == 50


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def test_python_archive_and_png_folders(tmp_path, serve):
    write_python_archive(tmp_path / "python.tar.gz")
    write_tar(tmp_path / "png.tgz", {"cifar10/labels.txt": b"airplane"} | {
        f"cifar10/{split}/{data.CIFAR10_CLASSES[label]}/{i}.png": png(image)
        for split, arrays in TINY.items() for i, (image, label) in enumerate(zip(*arrays))})
    for file, read in (("python.tar.gz", data.read_python), ("png.tgz", download.read_png_folders)):
        server = serve({file: (tmp_path / file).read_bytes()})
        fetch(tmp_path / read.__name__, server.source(read=read))
        assert_downloaded(tmp_path / read.__name__)


def test_parquet(tmp_path, serve):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet
    files = {}
    for split, (images, labels) in TINY.items():
        table = pyarrow.table({"img": [{"bytes": png(image), "path": "x.png"} for image in images], "label": labels})
        parquet.write_table(table, tmp_path / split)
        files[split] = (tmp_path / split).read_bytes()
    fetch(tmp_path / "out", serve(files).source("train", "test", read=download.read_parquet))
    assert_downloaded(tmp_path / "out")


def test_source_without_its_module_is_skipped(tmp_path, serve, archive, capsys):
    server = serve({"a.tar.gz": archive})
    fetch(tmp_path, server.source(name="mirror", needs="no_such_module"), server.source())
    assert_downloaded(tmp_path)
    assert "mirror: skipped, it needs no_such_module" in capsys.readouterr().out and len(server.log) == 1


def test_cut_off_is_resumed_at_once(tmp_path, serve, archive):
    server = serve({"a.tar.gz": archive}, cut=[1000, 3000])
    fetch(tmp_path, server.source())
    assert_downloaded(tmp_path)
    assert [wanted for _, wanted in server.log] == [None, "bytes=1000-", "bytes=4000-"]


def test_cut_off_for_good_is_resumed_by_the_next_call(tmp_path, serve, archive):
    server = serve({"a.tar.gz": archive}, cut=[1000] + [0] * 9)
    with pytest.raises(data.DataError, match=r"cut off after 1,000 of [\d,]+ bytes") as caught:
        fetch(tmp_path, server.source())
    assert names(tmp_path) == ["cifar10-local-a.tar.gz.partial"] and names(tmp_path)[0] in str(caught.value)
    server.cut.clear()
    fetch(tmp_path, server.source())
    assert_downloaded(tmp_path)
    assert server.log[-1][1] == "bytes=1000-"


def test_server_that_ignores_range(tmp_path, serve, archive):
    server = serve({"a.tar.gz": archive}, cut=[1000], ranges=False)
    (tmp_path / "cifar10-local-a.tar.gz.partial").write_bytes(b"x" * 500)
    fetch(tmp_path, server.source())
    assert_downloaded(tmp_path)
    assert [wanted for _, wanted in server.log] == ["bytes=500-", "bytes=1000-"]


@pytest.mark.parametrize("extra, requests", [(b"", 1), (b"more", 2)])
def test_partial_that_is_complete_or_too_long(tmp_path, serve, archive, extra, requests):
    server = serve({"a.tar.gz": archive})
    (tmp_path / "cifar10-local-a.tar.gz.partial").write_bytes(archive + extra)
    fetch(tmp_path, server.source())
    assert_downloaded(tmp_path)
    assert len(server.log) == requests


def test_slow_server_yields_to_the_next(tmp_path, serve, archive, capsys):
    slow, fast = serve({"a.tar.gz": archive}, block=100, pause=0.1), serve({"a.tar.gz": archive})
    fetch(tmp_path, slow.source(name="slow"), fast.source(), limits=Limits(60, min_speed=5000, patience=0.3))
    assert_downloaded(tmp_path)
    assert "slow: slow, " in capsys.readouterr().out
    assert len(slow.log) == len(fast.log) == 1


def test_slow_server_is_used_when_there_is_no_other(tmp_path, serve, archive):
    slow, gone = serve({"a.tar.gz": archive}, block=len(archive) // 10, pause=0.1), serve({})
    fetch(tmp_path, slow.source(name="slow"), gone.source("b"), limits=Limits(60, min_speed=1e9, patience=0.3))
    assert_downloaded(tmp_path)
    assert len(slow.log) == 2 and slow.log[1][1] is not None  # went on from what it had


def test_silent_server(tmp_path, serve):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the system accepts, nobody answers
        source = Source("silent", (f"http://127.0.0.1:{silent.getsockname()[1]}/a",), data.read_binary)
        with pytest.raises(data.DataError, match="silent: timed out(.|\n)*next: "):
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
               Source("closed", (f"http://127.0.0.1:{closed}/a",), data.read_binary)]
    with pytest.raises(data.DataError) as caught:
        fetch(tmp_path, *sources)
    for reason in ("gone: the server answers 404", "html: damaged file (ReadError", "damaged: damaged file (",
                   "other: train pixels or labels are not those of cifar10: digest", "closed: "):
        assert reason in str(caught.value)
    assert names(tmp_path) == []


@pytest.mark.parametrize("change", ["pixel", "label"])
def test_one_wrong_value_is_noticed(tmp_path, serve, archive, change):
    altered = {split: (images.copy(), labels.copy()) for split, (images, labels) in TINY.items()}
    altered["test"]["label" == change].flat[5] ^= 1
    with pytest.raises(data.DataError, match="test pixels or labels are not those"):
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

    monkeypatch.setattr(download, "open", refuse, raising=False)
    second = serve({"a.tar.gz": archive})
    with pytest.raises(download.DiskError, match=message):
        fetch(tmp_path, serve({"a.tar.gz": archive}).source(), second.source(name="second"))
    assert names(tmp_path) == [] and second.log == []


def test_disk_fills_up_while_writing(tmp_path, serve, archive, monkeypatch):
    class Full(io.FileIO):
        def write(self, content):
            if self.tell() + len(content) > 2000:
                raise OSError(errno.ENOSPC, "full")
            return super().write(content)

    server = serve({"a.tar.gz": archive})
    monkeypatch.setattr(download, "CHUNK", 1000)
    monkeypatch.setattr(download, "open", Full, raising=False)
    with pytest.raises(download.DiskError, match="No space left"):
        fetch(tmp_path, server.source())
    assert names(tmp_path) == []


@pytest.mark.parametrize("free, requests", [(1000, 0), (3073 * 70 + 1000, 1)])
def test_too_little_space_is_seen_before(tmp_path, serve, archive, monkeypatch, free, requests):
    server = serve({"a.tar.gz": archive})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("usage", "free")(free))
    with pytest.raises(download.DiskError, match="No space.*are needed"):
        fetch(tmp_path, server.source())
    assert len(server.log) == requests and names(tmp_path) == []


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(download.DiskError, match="Cannot write .*file"):
        fetch(tmp_path / "file" / "cache")


def test_interrupt_keeps_the_partial_file(tmp_path, serve, archive, monkeypatch, capsys):
    class Impatient(io.FileIO):
        def write(self, content):
            super().write(content)
            raise KeyboardInterrupt

    monkeypatch.setattr(download, "open", Impatient, raising=False)
    with pytest.raises(KeyboardInterrupt):
        fetch(tmp_path, serve({"a.tar.gz": archive}).source())
    assert names(tmp_path) == ["cifar10-local-a.tar.gz.partial"]
    assert "goes on from cifar10-local-a.tar.gz.partial" in capsys.readouterr().out


def test_unknown_name_and_published_sources():
    with pytest.raises(ValueError, match="'mnist'.*cifar10"):
        download.download("mnist")
    assert download.DATASETS.keys() == download.SOURCES.keys()
    urls = [url for sources in download.SOURCES.values() for source in sources for url in source.urls]
    assert all(url.startswith("https://") for url in urls) and len(set(urls)) == len(urls)
