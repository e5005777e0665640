"""Servers on this computer that work, dawdle, hang up or ignore Range, for the tests of downloads."""
import http.server
import threading
import time

import pytest
from tiny_cifar10 import write_binary_archive

from zsq_lab.cifar10 import read_binary
from zsq_lab.sources import Source
from zsq_lab.transfer import Limits

PATIENT = Limits(timeout=60, min_speed=0)  # a busy machine is no failure


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

    def source(self, *names, read=read_binary, name="local", needs=None):
        return Source(name, tuple(map(self.url, names or self.files)), read, needs)

    def url(self, name="a"):
        return f"http://127.0.0.1:{self.server_port}/{name}"

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


def names(folder):
    return sorted(path.name for path in folder.iterdir())
