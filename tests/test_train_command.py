"""`train` and `generator` on the command line: what is written, and what is refused before any work."""
import json

import pytest
import torch
from command_line import one_line, run

from zsq_lab import data, train, train_scenes
from zsq_lab.checkpoints import checkpoint_path, load_generator


def test_a_trained_generator_is_written_with_its_facts(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "cache_folder", lambda: tmp_path / "cache")
    file = tmp_path / "new" / "generator.safetensors"
    status, out, _ = run(capsys, "generator", "--model", "embedded/resnet20", "--iterations", "1", "--seed", "3",
                         "--out",
                         str(file), "--json")
    answer = json.loads(out)
    assert status == 0 and (answer["model"], answer["iterations"], answer["seed"]) == ("embedded/resnet20", 1, 3)
    assert 0 <= answer["believed"] <= 100 and 0 < answer["variety"] < 1 and answer["statistics"] > 0
    generator, facts = load_generator("embedded/resnet20", file)
    assert facts == {key: value for key, value in answer.items() if key != "out"}
    assert generator.sample(4, torch.Generator().manual_seed(0))[0].shape == (4, 3, 32, 32)
    assert "| seed | 3 |" in file.with_suffix(".md").read_text()
    assert not list((tmp_path / "cache" / "runs").glob("*/*"))


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
