"""Training: a resumed run is the uninterrupted one, the schedule, a second cycle, and what augmentation may do."""
import re

import pytest
import torch
from networks import awaken, same_state
from torch import Tensor, nn

from zsq_lab import train as train_module
from zsq_lab.__main__ import main
from zsq_lab.checkpoints import load_model, save_model
from zsq_lab.data import Dataset, Split
from zsq_lab.models import build
from zsq_lab.train import PAD, augment, image_side, train, train_checkpoint


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(8, 4))


def data(n: int = 48) -> tuple[Tensor, Tensor]:
    """Images whose class is told by their colour."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 4
    colours = torch.tensor([[200, 20, 20], [20, 200, 20], [20, 20, 200], [200, 200, 20]])[labels][:, :, None, None]
    noise = torch.randint(0, 50, (n, 3, 16, 16), generator=generator)
    return (colours + noise).to(torch.uint8), labels


def normalise(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1


def settings(**more) -> dict:
    return {"batch_size": 16, "peak": 0.1, "progress": False, **more}


def test_training_learns():
    model, (images, labels) = network(), data()
    facts = train(model, images, labels, normalise, epochs=12, **settings())
    assert facts["loss"] < 0.7 and facts["epochs"] == 12 and not model.training
    assert (model(normalise(images)).argmax(1) == labels).float().mean() > 0.8


def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(tmp_path):
    images, labels = data()
    whole = network()
    train(whole, images, labels, normalise, epochs=4, **settings())
    state, batches = tmp_path / "deep" / "run.pt", 0

    def pull_the_plug(x: Tensor) -> Tensor:
        nonlocal batches
        batches += 1
        if batches == 2 * 3 + 2:  # in the third epoch
            raise KeyboardInterrupt
        return normalise(x)

    with pytest.raises(KeyboardInterrupt):
        train(network(), images, labels, pull_the_plug, epochs=4, state_file=state, **settings())
    assert torch.load(state, weights_only=True)["epoch"] == 2
    resumed = network()
    with torch.no_grad():
        for parameter in resumed.parameters():
            parameter.add_(1)  # the state is what counts, not the fresh weights
    facts = train(resumed, images, labels, normalise, epochs=4, state_file=state, **settings())
    assert same_state(whole.state_dict(), resumed.state_dict())
    assert facts["epochs"] == 4 and [p.name for p in state.parent.iterdir()] == ["run.pt"]
    again = network()
    train(again, images, labels, normalise, epochs=4, state_file=state, **settings())  # nothing left to do
    assert same_state(whole.state_dict(), again.state_dict())


def test_the_seed_decides():
    images, labels = data()
    models = [network() for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        random_state = torch.get_rng_state()
        train(model, images, labels, normalise, epochs=1, seed=seed, **settings())
        assert torch.equal(torch.get_rng_state(), random_state)
    states = [m.state_dict() for m in models]
    assert same_state(states[0], states[1]) and not same_state(states[0], states[2])


def test_images_grow_to_full_size_at_55_percent():
    sides = [image_side(epoch, 40, 32) for epoch in range(40)]
    assert sides == sorted(sides) and set(sides) == {16, 20, 24, 28, 32}
    assert sides.index(32) == 22


@pytest.mark.parametrize("small_first, sides", [(True, [8, 10, 14, 16]), (False, [16] * 4)])
def test_the_network_sees_the_images_at_these_sides(small_first, sides):
    model, seen = network(), []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[-2:]))
    train(model, *data(), normalise, epochs=4, small_first=small_first, **settings())
    assert seen == [(side, side) for side in sides for _ in range(3)]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder where states between epochs go."""
    monkeypatch.setattr(train_module, "cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache"


def tiny() -> Dataset:
    """Two batches of images with four colours for classes."""
    return Dataset("embedded", ("red", "green", "blue", "yellow"), (0.5,) * 3, (0.25,) * 3,
                   lambda split: Split(*data({"train": 256, "test": 20}[split])))


FIRST = {"model": "embedded/resnet20", "classes": 4, "accuracy": 61.5, "epochs": 6, "seconds": 1150, "seed": 0,
         "command": "python -m zsq_lab train --model embedded/resnet20 --epochs 6 --lr 0.2 --seed 0"}


@pytest.fixture
def first(tmp_path):
    """A checkpoint to start from, with weights that no fresh network has."""
    save_model(awaken(build("resnet20", 4)), tmp_path / "first.safetensors", FIRST)
    return tmp_path / "first.safetensors"


def test_a_second_cycle_sees_full_images_and_says_what_it_started_from(tmp_path, cache, first, capsys):
    out = tmp_path / "again.safetensors"
    returned = train_checkpoint("embedded/resnet20", tiny(), out, epochs=2, peak=1e-9, seed=3, start=first)
    printed, shown = capsys.readouterr()
    assert re.findall(r"epoch ./2 at (\d+)px: loss", shown) == ["16", "16"] and printed == ""
    trained, facts = load_model("embedded/resnet20", out)
    assert facts == returned
    assert {key: facts[f"start_{key}"] for key in ("accuracy", "epochs", "seconds", "command")} == {
        key: FIRST[key] for key in ("accuracy", "epochs", "seconds", "command")}
    assert facts["command"].endswith("--epochs 2 --lr 1e-09 --seed 3 --start first.safetensors")
    weights = dict(load_model("embedded/resnet20", first)[0].named_parameters())
    for name, weight in trained.named_parameters():  # at a rate of nearly zero they stay what they were
        torch.testing.assert_close(weight, weights[name], rtol=1e-5, atol=1e-5)
    card = out.with_suffix(".md").read_text()
    assert "earlier checkpoint" in card and "| accuracy | 61.5 |" in card and "start_" not in card
    assert not list(cache.iterdir()), "the state goes away at the end"


def test_a_first_cycle_starts_small_and_from_the_seed(tmp_path, cache, capsys):
    for seed, file in ((0, "one"), (0, "same"), (1, "other")):
        facts = train_checkpoint("embedded/resnet20", tiny(), tmp_path / file, epochs=1, peak=0.01, seed=seed)
    assert re.findall(r"epoch 1/1 at (\d+)px: loss", capsys.readouterr().err) == ["8"] * 3
    assert not [key for key in facts if key.startswith("start")]
    one, same, other = (load_model("embedded/resnet20", tmp_path / file)[0].state_dict() for file in
                        ("one", "same", "other"))
    assert same_state(one, same) and not same_state(one, other)


def test_an_interrupted_second_cycle_is_not_resumed_from_another_start(tmp_path, cache, first, monkeypatch):
    def interrupted_run(start: float) -> list[str]:
        save_model(awaken(build("resnet20", 4), seed=start), first, FIRST)
        with pytest.raises(KeyboardInterrupt):
            train_checkpoint("embedded/resnet20", tiny(), tmp_path / "out", epochs=1, peak=0.01, seed=0, start=first)
        return sorted(path.name for path in cache.iterdir())

    def interrupt(*_args, **_named):  # after the last epoch, whose state is saved by then
        raise KeyboardInterrupt

    monkeypatch.setattr(train_module, "accuracy", interrupt)
    assert len(interrupted_run(start=0)) == 1
    assert len(interrupted_run(start=0)) == 1, "the same start, the same state"
    assert len(interrupted_run(start=1)) == 2


def test_a_start_of_another_architecture_is_one_clear_error(tmp_path, cache):
    save_model(build("mobilenetv2", 4), tmp_path / "mobile.safetensors", FIRST)
    with pytest.raises(ValueError, match="mobile.safetensors is not a checkpoint of embedded/resnet20"):
        train_checkpoint("embedded/resnet20", tiny(), tmp_path / "out.safetensors", epochs=1, peak=0.1, seed=0,
                         start=tmp_path / "mobile.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["mobile.safetensors"]


def test_a_missing_start_is_one_line_on_the_command_line(tmp_path, cache, capsys):
    status = main(["train", "--model", "embedded/resnet20", "--start", str(tmp_path / "none.safetensors"),
                   "--out", str(tmp_path / "out.safetensors")])
    out, err = capsys.readouterr()
    assert status in (1, 2) and out == ""
    assert len(err.strip().splitlines()) == 1 and "none.safetensors" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_each_augmented_image_is_a_padded_crop_of_its_own(dtype):
    """Every row of the result is found in the padded input or its mirror image, at one offset for the whole image."""
    images = (torch.rand(24, 3, 6, 6, generator=torch.Generator().manual_seed(0)) * 254 + 1).to(dtype)
    result = augment(images, torch.Generator().manual_seed(1))
    assert result.shape == images.shape and result.dtype == dtype
    found = set()
    for image, cropped in zip(images, result, strict=True):
        padded = torch.zeros(3, 6 + 2 * PAD, 6 + 2 * PAD, dtype=dtype)
        padded[:, PAD:-PAD, PAD:-PAD] = image
        places = [(top, left, flip)
                  for top in range(2 * PAD + 1) for left in range(2 * PAD + 1) for flip in (False, True)
                  if torch.equal(cropped.flip(2) if flip else cropped, padded[:, top:top + 6, left:left + 6])]
        assert places
        found.add(places[0])
    assert len(found) > 15 and {flip for *_, flip in found} == {False, True}


def test_augmentation_depends_on_its_generator_only():
    images, _ = data(8)
    first, again, other = (augment(images, torch.Generator().manual_seed(s)) for s in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_divergence_and_too_few_images_are_named():
    images, labels = data()
    with pytest.raises(RuntimeError, match="training diverged in epoch .*lower --lr"):
        train(network(), images, labels, lambda x: normalise(x) * torch.nan, epochs=1, **settings())
    with pytest.raises(ValueError, match="48 images.*batch"):
        train(network(), images, labels, normalise, epochs=1, **settings(batch_size=64))
