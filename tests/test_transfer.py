"""One file over servers that work, hang up, dawdle, keep silent or ignore Range, onto disks that refuse or fill up."""
import builtins
import errno
import io
import shutil
import socket
from collections import namedtuple

import pytest
from servers import PATIENT, names, serve  # noqa: F401 (one of them is a fixture)

from zsq_lab import transfer
from zsq_lab.transfer import DiskError, Limits, SlowSource, SourceError, fetch

CONTENT = bytes(range(256)) * 40


def ranges(server) -> list[str | None]:
    return [wanted for _, wanted in server.log]


def test_a_whole_file(tmp_path, serve):
    server = serve({"a": CONTENT})
    fetch(server.url(), tmp_path / "a", PATIENT, 0)
    assert (tmp_path / "a").read_bytes() == CONTENT and ranges(server) == [None]


def test_cut_off_is_resumed_at_once(tmp_path, serve):
    server = serve({"a": CONTENT}, cut=[1000, 3000])
    fetch(server.url(), tmp_path / "a", PATIENT, 0)
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=1000-", "bytes=4000-"]


def test_a_server_that_brings_nothing_more_is_given_up(tmp_path, serve):
    server = serve({"a": CONTENT}, cut=[1000] + [0] * 9)
    with pytest.raises(SourceError, match="cut off after 1,000 of 10,240 bytes"):
        fetch(server.url(), tmp_path / "a", PATIENT, 0)
    assert ranges(server) == [None, "bytes=1000-"] and (tmp_path / "a").read_bytes() == CONTENT[:1000]


def test_a_server_that_ignores_range(tmp_path, serve):
    server = serve({"a": CONTENT}, cut=[1000], ranges=False)
    (tmp_path / "a").write_bytes(b"x" * 500)
    fetch(server.url(), tmp_path / "a", PATIENT, 0)
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert ranges(server) == ["bytes=500-", "bytes=1000-"]


@pytest.mark.parametrize("extra, requests", [(b"", 1), (b"more", 2)])
def test_a_file_that_is_complete_or_too_long(tmp_path, serve, extra, requests):
    server = serve({"a": CONTENT})
    (tmp_path / "a").write_bytes(CONTENT + extra)
    fetch(server.url(), tmp_path / "a", PATIENT, 0)
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert len(server.log) == requests


def test_a_slow_server_is_told_from_a_broken_one(tmp_path, serve):
    with pytest.raises(SlowSource, match="slow, .* kB/s"):
        fetch(serve({"a": CONTENT}, block=100, pause=0.1).url(), tmp_path / "a", Limits(60, 5000, patience=0.3), 0)
    assert 0 < (tmp_path / "a").stat().st_size < len(CONTENT)
    with pytest.raises(SourceError, match="answers 404 .*/b") as caught:
        fetch(serve({}).url("b"), tmp_path / "b", PATIENT, 0)
    assert not isinstance(caught.value, SlowSource)


def test_a_silent_and_a_closed_server(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the system accepts, nobody answers
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/a"
        with pytest.raises(SourceError, match="timed out"):
            fetch(address, tmp_path / "a", Limits(timeout=0.3), 0)
    with pytest.raises(SourceError, match=address):
        fetch(address, tmp_path / "a", PATIENT, 0)
    assert names(tmp_path) == []


@pytest.mark.parametrize("code, message", [(errno.EACCES, "No permission to write.*Choose another folder"),
                                           (errno.ENOSPC, "No space left.*Free some"), (errno.EIO, "Cannot write")])
def test_a_disk_that_refuses(tmp_path, serve, monkeypatch, code, message):
    def refuse(path, mode="r", *args):
        if str(path).startswith(str(tmp_path)):
            raise OSError(code, "refused", str(path))  # PermissionError for EACCES
        return builtins.open(path, mode, *args)

    monkeypatch.setattr(transfer, "open", refuse, raising=False)
    with pytest.raises(DiskError, match=message):
        fetch(serve({"a": CONTENT}).url(), tmp_path / "a", PATIENT, 0)


def test_a_disk_that_fills_up_while_writing(tmp_path, serve, monkeypatch):
    class Full(io.FileIO):
        def write(self, content):
            if self.tell() + len(content) > 2000:
                raise OSError(errno.ENOSPC, "full")
            return super().write(content)

    monkeypatch.setattr(transfer, "CHUNK", 1000)
    monkeypatch.setattr(transfer, "open", Full, raising=False)
    with pytest.raises(DiskError, match="No space left"):
        fetch(serve({"a": CONTENT}).url(), tmp_path / "a", PATIENT, 0)


def test_space_is_asked_for_before_a_byte_is_written(tmp_path, serve, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("usage", "free")(len(CONTENT) + 10))
    server = serve({"a": CONTENT})
    with pytest.raises(DiskError, match="No space.*are needed"):
        fetch(server.url(), tmp_path / "a", PATIENT, reserve=11)
    assert names(tmp_path) == []
    fetch(server.url(), tmp_path / "a", PATIENT, reserve=10)
    assert names(tmp_path) == ["a"]
