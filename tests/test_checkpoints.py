"""Checkpoints: a round trip, one clear error for each way a file can be wrong, and the committed files themselves."""
import copy
import json
import os
import subprocess
import sys

import pytest
import torch
from networks import IMAGE, Residual, awaken, images, same_state
from safetensors.torch import save_file

from zsq_lab.checkpoints import (
    FOLDER,
    MODELS,
    checkpoint_path,
    describe,
    full_name,
    load_model,
    load_quantized,
    save_model,
    write_card,
)
from zsq_lab.layers import QuantConfig
from zsq_lab.models import build, count_parameters
from zsq_lab.recipes import quantize
from zsq_lab.tasks import CLASSIFICATION, task_of

FACTS = {"model": "cifar10/resnet20", "accuracy": 92.5, "classes": 10, "epochs": 40,
         "command": "python -m zsq_lab train --model cifar10/resnet20 --epochs 40"}


@pytest.fixture
def saved(tmp_path):
    model = awaken(build("resnet20")).to(memory_format=torch.channels_last)
    path = tmp_path / "new folder" / "resnet20.safetensors"
    save_model(model, path, FACTS)
    return model, path


def test_round_trip(saved):
    model, path = saved
    loaded, facts = load_model("cifar10/resnet20", path)
    assert same_state({k: v.contiguous() for k, v in model.state_dict().items()}, loaded.state_dict())
    assert facts == FACTS and not loaded.training
    assert [p.name for p in path.parent.iterdir()] == [path.name], "a partial file was left behind"


def test_another_number_of_classes(tmp_path):
    save_model(build("resnet20", 3), tmp_path / "three.safetensors", {"classes": 3})
    assert load_model("cifar10/resnet20", tmp_path / "three.safetensors")[0].fc.out_features == 3


def test_a_quantized_networks_added_biases_come_back(tmp_path, monkeypatch):
    network = awaken(Residual())
    network.fc.bias = None
    monkeypatch.setattr("zsq_lab.checkpoints.build", lambda *_: copy.deepcopy(network))
    monkeypatch.setattr("zsq_lab.checkpoints.MODELS", ("cifar10/own",))
    result = quantize(network, QuantConfig(4, 4), "dfq", image_shape=IMAGE)
    save_model(result.model, tmp_path / "own", result.report | {"model": "cifar10/own", "image_shape": IMAGE})
    loaded, _ = load_quantized(tmp_path / "own")
    assert torch.equal(loaded(images(4)), result.model(images(4))) and loaded.fc.layer.bias is not None


@pytest.mark.parametrize("facts", [{"model": "mine"}, {"model": "lung/unet"}, {"model": 3}, {}])
def test_a_network_of_your_own_is_asked_for_and_taken(tmp_path, facts):
    network = awaken(Residual())
    result = quantize(network, QuantConfig(4, 4), "rtn-noise", image_shape=IMAGE)
    report = {key: value for key, value in result.report.items() if key != "model"}
    save_model(result.model, tmp_path / "own", report | {"image_shape": IMAGE} | facts)
    with pytest.raises(ValueError, match=r"own holds a network that is none of the lab's .*network="):
        load_quantized(tmp_path / "own")
    assert torch.equal(load_quantized(tmp_path / "own", network)[0](images(4)), result.model(images(4)))


def test_a_checkpoint_of_floats_is_no_quantized_model(saved):
    with pytest.raises(ValueError, match="is not a quantized model of this lab: its facts lack 'config'"):
        load_quantized(saved[1])


def test_names():
    assert full_name("resnet20", "embedded") == "embedded/resnet20"
    assert full_name("cifar10/mobilenetv2", "embedded") == "cifar10/mobilenetv2"
    for name, profile in (("vgg", "cifar10"), ("mobilenetv2", "embedded"), ("mars/resnet20", "cifar10")):
        with pytest.raises(ValueError, match="unknown model .*expected one of cifar10/resnet20"):
            full_name(name, profile)


@pytest.mark.parametrize("name", ["resnet20", "cifar10/vgg"])
def test_a_name_that_is_not_a_full_one_is_one_clear_error(name, saved):
    with pytest.raises(ValueError, match="unknown"):
        load_model(name, saved[1])


@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all", b"\xff" * 64])
def test_a_corrupt_file_is_one_clear_error(tmp_path, content):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="bad.safetensors is not a checkpoint of cifar10/resnet20: .*Restore the file"):
        load_model("cifar10/resnet20", path)


def test_a_truncated_file_is_one_clear_error(saved):
    path = saved[1]
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="is not a checkpoint of cifar10/resnet20"):
        load_model("cifar10/resnet20", path)


def test_facts_that_cannot_be_read_are_one_clear_error(tmp_path):
    path = tmp_path / "bad.safetensors"
    save_file(build("resnet20").state_dict(), path, {"facts": "{broken"})
    with pytest.raises(ValueError, match="is not a checkpoint of cifar10/resnet20"):
        load_model("cifar10/resnet20", path)


def test_another_architectures_file_is_one_clear_error(saved):
    with pytest.raises(ValueError, match="is not a checkpoint of cifar10/mobilenetv2"):
        load_model("cifar10/mobilenetv2", saved[1])


def test_a_missing_file_says_how_to_make_it(tmp_path):
    with pytest.raises(ValueError, match="no checkpoint at .*python -m zsq_lab train --model cifar10/resnet20"):
        load_model("cifar10/resnet20", tmp_path / "none.safetensors")


def test_a_failed_write_leaves_the_old_file(saved, monkeypatch):
    model, path = saved
    before = path.read_bytes()
    with pytest.raises(TypeError):
        save_model(model, path, {"accuracy": object()})
    assert path.read_bytes() == before


def test_card(tmp_path):
    write_card(tmp_path / "x.safetensors", FACTS)
    card = (tmp_path / "x.md").read_text()
    assert card.startswith("# cifar10/resnet20\n") and "| accuracy | 92.5 |" in card and "`x.safetensors`" in card
    assert "`python -m zsq_lab train`" in card and "earlier" not in card


def test_every_checkpoint_has_a_card_of_its_own(tmp_path):
    for name in ("net.v1", "net.v2", "x.md", "y.safetensors"):
        (tmp_path / name).write_text("weights")
        write_card(tmp_path / name, FACTS)
    cards = {path.name for path in tmp_path.iterdir() if path.read_text() != "weights"}
    assert cards == {"net.v1.md", "net.v2.md", "x.md.md", "y.md"} and len(list(tmp_path.iterdir())) == 8


def test_card_of_a_second_training_has_a_table_for_the_first(tmp_path):
    write_card(tmp_path / "x.safetensors", FACTS | {"start_accuracy": 91.1, "start_command": "python -m zsq_lab train"})
    own, earlier = (tmp_path / "x.md").read_text().split("\n\nTraining went on from an earlier checkpoint:\n\n")
    assert "| accuracy | 92.5 |" in own and "start" not in own
    assert earlier.splitlines() == ["| fact | value |", "|---|---|", "| accuracy | 91.1 |",
                                    "| command | python -m zsq_lab train |"]


def test_a_card_is_written_in_the_same_encoding_everywhere(tmp_path):
    """The encoding that a computer prefers, which is another on Windows, is never asked for."""
    code = "import pathlib, warnings; from zsq_lab.checkpoints import write_card; warnings.simplefilter('error'); " \
           "write_card(pathlib.Path('x.safetensors'), {'model': 'm', 'command': 'c', 'machine': 'Z\\u00fcrich'})"
    subprocess.run([sys.executable, "-X", "warn_default_encoding", "-c", code], cwd=tmp_path, check=True,
                   env=os.environ | {"PYTHONPATH": str(FOLDER.parent.parent)})
    assert "| machine | Z\u00fcrich |" in (tmp_path / "x.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", MODELS)
def test_describe(name):
    row = describe(name)
    assert row["model"] == name and row["parameters"] == count_parameters(build(name.split("/")[1]))
    assert row["accuracy"] is None or 40 < row["accuracy"] < 100


@pytest.mark.parametrize("name", MODELS)
def test_committed_checkpoints_load_and_state_their_facts(name):
    if not checkpoint_path(name).is_file():
        pytest.skip(f"{name} is not trained yet")
    model, facts = load_model(name)
    assert all(v.isfinite().all() for v in model.state_dict().values())
    json.dumps(facts)
    assert facts["accuracy"] > (85 if task_of(name) is CLASSIFICATION else 40)
    assert checkpoint_path(name).with_suffix(".md").is_file(), "a checkpoint has a card"
