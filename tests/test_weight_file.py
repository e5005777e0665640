"""Weight files: what was written comes back, and a failure leaves the old file and nothing else."""
import os
import stat
from pathlib import Path

import pytest
import torch

from zsq_lab.weight_file import read_weights, write_weights

TENSORS = {"a": torch.arange(6.0).reshape(2, 3).T, "b.c": torch.tensor([1, 2], dtype=torch.int8)}


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "new" / "file.safetensors"
    write_weights(path, TENSORS, {"facts": "{}"})
    tensors, text = read_weights(path)
    assert text == {"facts": "{}"} and tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], value) and tensors[name].dtype == value.dtype for name, value in TENSORS.items())


def test_tensors_that_share_memory_are_written_each(tmp_path):
    """A module with two names has its weights under both."""
    whole = torch.arange(6.0)
    write_weights(tmp_path / "file", {"a": whole, "b": whole, "c": whole[2:]}, {})
    tensors, _ = read_weights(tmp_path / "file")
    assert torch.equal(tensors["a"], whole) and torch.equal(tensors["b"], whole) and torch.equal(tensors["c"], whole[2:])


def test_whoever_may_read_the_folder_may_read_the_file(tmp_path):
    umask = os.umask(0o022)
    try:
        write_weights(tmp_path / "file", TENSORS, {})
    finally:
        os.umask(umask)
    assert os.name == "nt" or stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644


def test_no_text_is_empty_text(tmp_path):
    write_weights(tmp_path / "file", TENSORS, {})
    assert read_weights(tmp_path / "file")[1] == {}


@pytest.mark.parametrize("content", [b"", b"no weights at all", b"\xff" * 64])
def test_another_kind_of_file_is_refused(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match="eader"):
        read_weights(tmp_path / "file")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_weights(path, TENSORS, {"facts": "old"})

    def half_written(partial, content):
        with open(partial, "wb") as file:
            file.write(content[:len(content) // 2])
        raise OSError("no space left on device")
    monkeypatch.setattr(Path, "write_bytes", half_written)
    with pytest.raises(OSError, match="file could not be written: no space left"):
        write_weights(path, TENSORS, {"facts": "new"})
    assert read_weights(path)[1] == {"facts": "old"} and list(tmp_path.iterdir()) == [path]


def test_files_that_differ_in_their_ending_are_written_at_the_same_time(tmp_path, monkeypatch):
    write, others = Path.write_bytes, [tmp_path / "w4a4.seed1"]

    def another_comes_in_between(partial, content):
        write(partial, content)
        if others:
            write_weights(others.pop(), TENSORS, {"facts": "1"})
    monkeypatch.setattr(Path, "write_bytes", another_comes_in_between)
    write_weights(tmp_path / "w4a4.seed0", TENSORS, {"facts": "0"})
    assert {path.name: read_weights(path)[1]["facts"] for path in tmp_path.iterdir()} == {"w4a4.seed0": "0", "w4a4.seed1": "1"}
