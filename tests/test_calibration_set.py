"""Calibration sets on disk: another tool that follows the manifest gets the network's own input back."""
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import images
from PIL import Image

from zsq_lab.calibration_set import check_place, read_calibration_set, save_npz, write_calibration_set
from zsq_lab.data import find_dataset

SHAPE = (3, 12, 10)


@pytest.fixture
def written(tmp_path):
    made = images(5, SHAPE)
    folder = tmp_path / "set"
    return folder, made, write_calibration_set(folder, made, find_dataset("embedded"), {"model": "m", "seed": 3})


def test_arrays_come_back_bit_for_bit(written, tmp_path):
    folder, made, _ = written
    assert torch.equal(read_calibration_set(folder), made) and torch.equal(read_calibration_set(folder / "images.npz"),
                                                                           made)
    assert [p.name for p in tmp_path.iterdir()] == ["set"], "nothing half-written is left"


def test_pictures_follow_the_manifest(written):
    folder, made, manifest = written
    assert json.loads((folder / "manifest.json").read_text()) == manifest
    assert (manifest["n"], manifest["shape"], manifest["model"], manifest["layout"]) == (5, list(SHAPE), "m", "NCHW")
    names = sorted(p.name for p in (folder / "images").iterdir())
    assert names == sorted(manifest["pictures"]["sha256"]) == [f"{i:05}.png" for i in range(5)]
    mean, std = (np.array(manifest["normalisation"][k]) for k in ("mean", "std"))
    for name, own in zip(names, made.numpy(), strict=True):  # as a tool outside of Python would do it
        pixels = np.asarray(Image.open(folder / "images" / name)).astype(float)
        assert pixels.shape == (12, 10, 3)
        got = ((pixels / 255 - mean) / std).transpose(2, 0, 1)
        inside = (own * std[:, None, None] + mean[:, None, None] >= 0) & (own * std[:, None, None] + mean[:, None, None] <= 1)
        assert np.abs(got - own)[inside].max() <= 0.5 / 255 / std.min() + 1e-6 and inside.mean() > 0.8
    assert 0 < manifest["pictures"]["clipped"] < 0.1


def test_an_earlier_set_is_replaced_and_nothing_else(written, tmp_path):
    folder, made, _ = written
    write_calibration_set(folder, made[:2], find_dataset("embedded"), {})
    assert len(read_calibration_set(folder)) == 2 and len(list((folder / "images").iterdir())) == 2
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="mine exists and is no calibration set"):
        write_calibration_set(tmp_path / "mine", made, find_dataset("embedded"), {})
    assert (tmp_path / "mine" / "thesis.txt").exists()


@pytest.mark.parametrize("out, manifest", [
    ("mine", '{"format": "of another program"}'), ("mine", "no JSON"), ("mine", "[]"), ("mine/new/..", None),
    ("mine/new/../", None)])
def test_no_path_to_a_folder_of_yours_empties_it(tmp_path, out, manifest):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "images").write_text("years of work")
    if manifest:
        (tmp_path / "mine" / "manifest.json").write_text(manifest)
    with pytest.raises(ValueError, match="exists and is no calibration set"):
        write_calibration_set(tmp_path / out, images(2, SHAPE), find_dataset("embedded"), {})
    assert (tmp_path / "mine" / "images").read_text() == "years of work"


def test_a_set_to_which_you_have_added_is_yours(written):
    folder, made, _ = written
    (folder / "notes.txt").write_text("years of work")
    with pytest.raises(ValueError, match="exists and is no calibration set"):
        write_calibration_set(folder, made, find_dataset("embedded"), {})
    assert (folder / "notes.txt").exists()


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    for out in ("file", "file/set", "file/deep/set"):
        with pytest.raises(ValueError, match="is a file, or inside of one"):
            write_calibration_set(tmp_path / out, images(2, SHAPE), find_dataset("embedded"), {})


def test_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "empty").mkdir()
    write_calibration_set(tmp_path / "empty", images(2, SHAPE), find_dataset("embedded"), {})
    assert len(read_calibration_set(tmp_path / "empty")) == 2


@pytest.mark.parametrize("locked, out", [("locked", "locked/set"), ("locked", "locked/new/set"), ("set", "set")])
def test_a_place_that_takes_no_files_is_named_before_the_work(written, tmp_path, monkeypatch, locked, out):
    (tmp_path / "locked").mkdir()
    monkeypatch.setattr(os, "access", lambda place, mode: Path(place) != tmp_path / locked)  # root may write everywhere
    with pytest.raises(ValueError, match=f"{out}: no permission to write to .*{locked}: name another folder"):
        check_place(tmp_path / out)


def test_a_new_set_that_cannot_take_its_place_leaves_the_old_one(written, tmp_path, monkeypatch):
    folder, made, _ = written
    replace, refused = Path.replace, []

    def refuse_once(self, target):
        if target == folder and not refused:
            refused.append(self)
            raise OSError("busy")
        return replace(self, target)
    monkeypatch.setattr(Path, "replace", refuse_once)
    with pytest.raises(OSError, match="busy"):
        write_calibration_set(folder, made[:2], find_dataset("embedded"), {})
    assert torch.equal(read_calibration_set(folder), made) and [p.name for p in tmp_path.iterdir()] == ["set"]


def test_what_is_cut_off_leaves_the_old_set_and_nothing_else(written, tmp_path, monkeypatch):
    folder, made, _ = written
    save_npz(tmp_path / "images.v1", made, find_dataset("embedded"))

    def cut_off(file, **arrays):
        file.write(b"half")
        raise KeyboardInterrupt
    monkeypatch.setattr(np, "savez", cut_off)
    with pytest.raises(KeyboardInterrupt):
        write_calibration_set(folder, made[:2], find_dataset("embedded"), {})
    with pytest.raises(KeyboardInterrupt):
        save_npz(tmp_path / "images.v1", made[:2], find_dataset("embedded"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images.v1", "set"]
    assert len(read_calibration_set(folder)) == len(read_calibration_set(tmp_path / "images.v1")) == 5


def test_damaged_and_foreign_sets_are_one_clear_error(written, tmp_path):
    folder, _, _ = written
    content = (folder / "images.npz").read_bytes()
    for bad in (b"", content[:-100], content[:200] + b"\0" + content[201:]):
        (folder / "images.npz").write_bytes(bad)
        with pytest.raises(ValueError, match="not a calibration set .*synthesize"):
            read_calibration_set(folder)
    np.savez(tmp_path / "pickled.npz", images=np.array([{"a": 1}], object))
    np.savez(tmp_path / "bytes.npz", images=np.zeros((2, 3, 4, 4), np.uint8))
    for other in ("pickled.npz", "bytes.npz", "none"):
        with pytest.raises(ValueError, match="not a calibration set"):
            read_calibration_set(tmp_path / other)
