"""`train` and `generator` on the command line: what is written, and what is refused before any work."""
import json

import numpy as np
import pytest
import torch
from command_line import one_line, run
from scene_files import picture

from zsq_lab import data, train, train_scenes
from zsq_lab.checkpoints import checkpoint_path, load_generator
from zsq_lab.resume import RunState


def test_a_trained_generator_is_written_with_its_facts(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "cache_folder", lambda: tmp_path / "cache")
    file = tmp_path / "new" / "generator.safetensors"
    status, out, _ = run(capsys, "generator", "--model", "embedded/resnet20", "--iterations", "1", "--seed", "3", "--out",
                         str(file), "--json")
    answer = json.loads(out)
    assert status == 0 and (answer["model"], answer["iterations"], answer["seed"]) == ("embedded/resnet20", 1, 3)
    assert 0 <= answer["believed"] <= 100 and 0 < answer["variety"] < 1 and answer["statistics"] > 0
    generator, facts = load_generator("embedded/resnet20", file)
    assert facts == {key: value for key, value in answer.items() if key != "out"}
    assert generator.sample(4, torch.Generator().manual_seed(0))[0].shape == (4, 3, 32, 32)
    assert "| seed | 3 |" in file.with_suffix(".md").read_text()
    assert not list((tmp_path / "cache" / "runs").glob("*/*"))


def test_the_card_of_a_resumed_generator_states_the_time_of_all_sessions(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "cache_folder", lambda: tmp_path / "cache")
    command = ["generator", "--model", "embedded/resnet20", "--iterations", "2", "--out", str(tmp_path / "g.safetensors")]

    def save_and_stop(own, phase, state, *, now=False):
        write(own, phase, state, now=True)
        raise KeyboardInterrupt
    write = RunState.save
    with monkeypatch.context() as patched:
        patched.setattr(RunState, "save", save_and_stop)
        assert run(capsys, *command)[0] == 130
    file, = (tmp_path / "cache" / "runs").glob("*/generator.pt")
    state = torch.load(file, weights_only=True)
    torch.save(state | {"seconds": 1000.0}, file)  # as if the first session had taken so long
    status, out, _ = run(capsys, *command, "--json")
    assert status == 0 and 1000 <= json.loads(out)["seconds"] < 1100


def test_the_folder_of_ones_own_scenes_is_in_the_command_on_the_card(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(train_scenes, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setitem(train_scenes.PLANS, "camvid/segmenter", train_scenes.Plan(1, 1, (32, 32), (0.9, 1.2)))
    for split in ("train", "test"):
        picture(tmp_path / "streets" / split / "images" / "a.png", np.full((90, 120, 3), 90))
        picture(tmp_path / "streets" / split / "masks" / "a.png", np.arange(90 * 120).reshape(90, 120) % 12)
    status, out, _ = run(capsys, "train", "--model", "camvid/segmenter", "--data", str(tmp_path / "streets"), "--out",
                         str(tmp_path / "own.safetensors"), "--json")
    assert status == 0 and json.loads(out)["command"].endswith(" --data streets")


@pytest.fixture
def idle(monkeypatch, tmp_path):
    """No training may begin; states would lie in a folder of the test."""
    for home in (train, train_scenes):
        monkeypatch.setattr(home, "cache_folder", lambda: tmp_path / "cache")
        monkeypatch.setattr(home, "run_epochs", lambda *_, **__: pytest.fail("work was begun"))


@pytest.mark.parametrize("arguments, expected, named", [
    (["--lr", "0"], 2, "'0' is not a rate"), (["--lr", "nan"], 2, "is not a rate"),
    (["--epochs", "0"], 2, "at least 1"),
    (["--seed", "-1"], 2, "'-1' is not a seed"),
    (["--profile", "cifar10"], 2, "embedded/resnet20 is trained on embedded"),
    (["--out", "folder"], 2, "is a folder"), (["--out", "file/x.safetensors"], 2, "is inside of a file"),
    (["--start", "file"], 1, "is not a checkpoint of embedded/resnet20"),
    (["--start", "folder"], 1, "no checkpoint at"),
    (["--start", str(checkpoint_path("embedded/segmenter"))], 1, "is not a checkpoint of embedded/resnet20")])
def test_what_cannot_be_trained_is_one_line_before_the_work(capsys, tmp_path, monkeypatch, idle, arguments, expected,
                                                            named):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    status, err = one_line(capsys, "train", "--model", "embedded/resnet20", *arguments)
    assert status == expected and named in err


def test_a_network_of_scenes_starts_from_scenes(capsys, tmp_path, idle):
    start = str(checkpoint_path("embedded/resnet20"))
    status, err = one_line(capsys, "train", "--model", "embedded/segmenter", "--start", start)
    assert status == 1 and "is no checkpoint that embedded/segmenter can start from" in err
