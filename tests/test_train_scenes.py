"""Training on scenes: learning, a resumed run, what a checkpoint says and what it lends."""
import json
from dataclasses import replace

import pytest
import torch
from networks import same_state
from squares import normalise, squares

from zsq_lab import train_scenes
from zsq_lab.checkpoints import load_model, save_model
from zsq_lab.imagenet_models import load_imagenet
from zsq_lab.lite_segmenter import ENCODER
from zsq_lab.models import build
from zsq_lab.scenes import UNLABELLED, SceneDataset
from zsq_lab.tasks import DETECTION, SEGMENTATION
from zsq_lab.train_scenes import PLANS, Plan, train, train_scene_checkpoint

PLAN = Plan(epochs=2, batch_size=4, crop=(32, 32), zoom=(0.9, 1.2), peak=3e-3)


def test_training_learns_masks_and_boxes():
    for name, task in (("segmenter", SEGMENTATION), ("detector", DETECTION)):
        torch.manual_seed(0)
        model, scenes = build(name, 2 if name == "segmenter" else 1), squares(16, name == "segmenter")
        facts = train(model, scenes, normalise, replace(PLAN, epochs=12), classes=2, progress=False)
        classes = ("a", "b") if name == "segmenter" else ("a",)
        dataset = SceneDataset("embedded", classes, (3, 32, 32), lambda split, scenes=scenes: scenes)
        dataset.normalise = normalise
        assert facts["epochs"] == 12 and not model.training
        assert task.measure(model, scenes, dataset)[task.metric] > 60, name


def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(tmp_path):
    def fresh():
        torch.manual_seed(0)
        return build("detector", 1)
    scenes, whole, steps = squares(8, False), fresh(), 0
    train(whole, scenes, normalise, PLAN, classes=1, progress=False)

    def pull_the_plug(x):
        nonlocal steps
        steps += 1
        if steps == 2 + 1:  # in the second epoch
            raise KeyboardInterrupt
        return normalise(x)
    state, cut = tmp_path / "deep" / "run.pt", fresh()
    with pytest.raises(KeyboardInterrupt):
        train(cut, scenes, pull_the_plug, PLAN, classes=1, progress=False, state_file=state)
    again = fresh()
    train(again, scenes, normalise, PLAN, classes=1, progress=False, state_file=state)
    assert same_state(whole.state_dict(), again.state_dict())


def test_a_checkpoint_says_what_was_stored(tmp_path, monkeypatch):
    """The weights are in half precision, and what the card states was measured with those; then a second cycle."""
    monkeypatch.setattr(train_scenes, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setitem(PLANS, "embedded/segmenter", PLAN)
    dataset = SceneDataset("embedded", ("a", "b"), (3, 32, 32), lambda split: squares(8))
    out = tmp_path / "x.safetensors"
    facts = train_scene_checkpoint("embedded/segmenter", dataset, out)
    model, read = load_model("embedded/segmenter", out)
    assert read == json.loads(json.dumps(facts)) and out.stat().st_size < 3e6 and out.with_suffix(".md").is_file()
    assert SEGMENTATION.measure(model, dataset.test(), dataset)["mIoU"] == pytest.approx(facts["mIoU"], abs=0.01)
    second = train_scene_checkpoint("embedded/segmenter", dataset, tmp_path / "y.safetensors", epochs=1, peak=1e-3,
                                    start=out)
    assert second["start_epochs"] == 2 and second["epochs"] == 1 and "--start x.safetensors" in second["command"]


def test_test_scenes_that_show_nothing_are_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(train_scenes, "train", lambda *_, **__: pytest.fail("work was begun"))
    blank = replace(squares(2), targets=torch.full((2, 32, 32), UNLABELLED, dtype=torch.uint8))
    dataset = SceneDataset("embedded", ("a", "b"), (3, 32, 32), {"train": squares(8), "test": blank}.get)
    with pytest.raises(ValueError, match="show no labelled pixel"):
        train_scene_checkpoint("embedded/segmenter", dataset, tmp_path / "x.safetensors")


def test_an_interrupted_run_does_not_go_on_with_other_scenes(tmp_path, monkeypatch):
    monkeypatch.setattr(train_scenes, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setitem(PLANS, "embedded/segmenter", PLAN)
    run_epochs = train_scenes.run_epochs

    def interrupt(*args, **more):  # after the last epoch, whose state is saved by then
        run_epochs(*args, **more)
        raise KeyboardInterrupt

    monkeypatch.setattr(train_scenes, "run_epochs", interrupt)
    for n, states in ((8, 1), (8, 1), (12, 2)):
        dataset = SceneDataset("embedded", ("a", "b"), (3, 32, 32), lambda split, n=n: squares(n))
        with pytest.raises(KeyboardInterrupt):
            train_scene_checkpoint("embedded/segmenter", dataset, tmp_path / "x.safetensors")
        assert len(list((tmp_path / "cache").iterdir())) == states


def test_a_detector_lends_its_pyramid(tmp_path):
    torch.manual_seed(3)
    detector, segmenter, file = build("detector", 2), build("segmenter", 2), tmp_path / "d.safetensors"
    save_model(detector, file, {"model": "embedded/detector", "classes": 2, "accuracy": 50.0})
    head = segmenter.classify.weight.clone()
    assert train_scenes.warm_start(segmenter, "embedded/segmenter", file)["accuracy"] == 50.0
    assert same_state(segmenter.pyramid.state_dict(), detector.pyramid.state_dict())
    assert torch.equal(segmenter.classify.weight, head)
    file.write_bytes(b"nothing")
    for wrong in (file, tmp_path / "absent"):
        with pytest.raises(ValueError, match=wrong.name):
            train_scenes.warm_start(segmenter, "embedded/segmenter", wrong)


def test_a_lite_segmenter_begins_as_imagenet_left_it(tmp_path, monkeypatch):
    monkeypatch.setattr(train_scenes, "cache_folder", lambda: tmp_path / "cache")
    begun = {}
    monkeypatch.setattr(train_scenes, "run_epochs", lambda model, *_, **__: begun.update(
        {key: value.clone() for key, value in model.pyramid.blocks.state_dict().items()}) or {"seconds": 0.0})
    dataset = SceneDataset("camvid", tuple("abcdefghijk"), (3, 32, 32), lambda split: squares(8))
    facts = train_scene_checkpoint("camvid/lite_segmenter", dataset, tmp_path / "x.safetensors")
    assert same_state(begun, load_imagenet(ENCODER)[0].blocks[:11].state_dict()) and facts["encoder"] == ENCODER


def test_too_few_scenes():
    with pytest.raises(ValueError, match="2 scenes do not fill one batch of 4"):
        train(build("segmenter", 2), squares(2), normalise, PLAN, classes=2)


def test_most_epochs_see_crops_and_the_last_fifth_whole_scenes():
    plan, seen = replace(PLAN, epochs=10, crop=(16, 24)), []
    model = build("segmenter", 2)
    model.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[2:])))
    train(model, squares(4), normalise, plan, classes=2, progress=False)
    assert seen == [(16, 24)] * 8 + [(32, 32)] * 2
