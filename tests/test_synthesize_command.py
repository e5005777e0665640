"""`synthesize`: arrays or a folder, and the normalisation with them."""
import numpy as np
import pytest
from command_line import one_line, run

from zsq_lab import data
from zsq_lab.calibration_set import read_calibration_set
from zsq_lab.job import BUDGETS, Budget
from zsq_lab.resume import RunState


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(data, "cache_folder", lambda: cache)
    monkeypatch.setitem(BUDGETS, "quick", Budget("quick", 4, 3, 1, 1, 4, 4))
    return cache


MADE = ["synthesize", "--model", "embedded/resnet20", "-n", "4", "--budget", "quick", "--out"]


def test_an_array_file_has_images_and_their_normalisation(capsys, tmp_path):
    file = tmp_path / "images.npz"
    status, out, _ = run(capsys, *MADE, str(file))
    assert status == 0 and "4 images [3, 32, 32]" in out
    with np.load(file) as written:
        assert written["images"].shape == (4, 3, 32, 32) and written["mean"].shape == (3,)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images.npz"]  # nothing half-written left


def test_an_interrupted_command_goes_on_where_it_was(capsys, tmp_path, monkeypatch, quick):
    files = [str(tmp_path / name) for name in ("whole.npz", "cut.npz")]
    assert run(capsys, *MADE, files[0])[0] == 0
    kept, = quick.glob("runs/images_*/images.pt")
    kept.unlink()
    write, steps = RunState.save, []

    def save_and_stop(own, phase, state, *, now=False):
        write(own, phase, state, now=True)
        steps.append(state()["iteration"])
        if len(steps) == 2:
            raise KeyboardInterrupt
    monkeypatch.setattr(RunState, "save", save_and_stop)
    assert run(capsys, *MADE, files[1])[0] == 130
    assert run(capsys, *MADE, files[1])[0] == 0
    assert steps[:3] == [1, 2, 3], "nothing was done twice"
    with np.load(files[0]) as whole, np.load(files[1]) as cut:
        assert np.array_equal(whole["images"], cut["images"])


def test_a_folder_is_a_calibration_set(capsys, tmp_path):
    assert run(capsys, *MADE, str(tmp_path / "set"))[0] == 0
    assert read_calibration_set(tmp_path / "set").shape == (4, 3, 32, 32)


@pytest.mark.parametrize("out", ["images.jpg", "file", "file/set", "file/x.npz", "folder.npz", "full", "new/.."])
def test_a_place_that_cannot_take_them_is_refused_before_the_work(capsys, tmp_path, monkeypatch, out):
    (tmp_path / "file").touch()
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    monkeypatch.setattr("zsq_lab.recipes.synthesize", lambda *_, **__: pytest.fail("work was begun"))
    status, err = one_line(capsys, *MADE, str(tmp_path / out))
    assert status == 2 and out in err and (tmp_path / "full" / "thesis.txt").exists()
