"""Packed files: what comes back computes the same bits, is as small as it should be,
and a bad file is one clear error."""
import json
import pickle
import time

import pytest
import torch
from networks import IMAGE, LAYER_TYPES, Asking, Mobile, Residual, SharedConv, awaken, images, layer_and_norm, snapshot
from safetensors.torch import save_file

from zsq_lab.checkpoints import checkpoint_path, load_model
from zsq_lab.layers import QuantConfig
from zsq_lab.packed_file import load_packed, save_packed
from zsq_lab.recipes import quantize
from zsq_lab.weight_file import read_weights

NETWORKS = {"residual": Residual, "mobile": Mobile, "shared": SharedConv, "asking": Asking}


def packed(tmp_path, network, config, shape=IMAGE, recipe="rtn-noise"):
    result = quantize(network, config, recipe, image_shape=shape)
    file = tmp_path / "small.safetensors"
    save_packed(result.model, file, {"model": "mine", "config": result.report["config"], "image_shape": list(shape)})
    return result.model, file


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8, 11, 16])
@pytest.mark.parametrize("convention", ["deployable", "literature"])
def test_what_comes_back_computes_the_same_bits(tmp_path, bits, convention):
    network = awaken(Residual())
    student, file = packed(tmp_path, network, QuantConfig(bits, min(bits, 8), convention=convention))
    before = snapshot(network)
    loaded, facts = load_packed(file, network)
    assert torch.equal(loaded(images(4)), student(images(4)))
    assert facts["config"]["weight_bits"] == bits and not loaded.training
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


@pytest.mark.parametrize("kind", LAYER_TYPES)
def test_all_kinds_of_layers(tmp_path, kind):
    network, shape = layer_and_norm(kind)
    student, file = packed(tmp_path, network, QuantConfig(3, 8), shape)
    x = images(3, shape)
    assert torch.equal(load_packed(file, network)[0](x), student(x))


@pytest.mark.parametrize("name, recipe", [("shared", "rtn-noise"), ("mobile", "dfq"), ("mobile", "rtn-bn"),
                                          ("asking", "rtn-bn")])
def test_call_sites_and_rescaled_caps_come_back(tmp_path, name, recipe):
    network = awaken(NETWORKS[name]())
    student, file = packed(tmp_path, network, QuantConfig(4, 8), recipe=recipe)
    assert torch.equal(load_packed(file, network)[0](images(4)), student(images(4)))


@pytest.mark.parametrize("recipe", ["dfq", "rtn-bn"])
def test_biases_that_a_recipe_added_come_back(tmp_path, recipe):
    network = awaken(Residual())
    network.fc.bias = None
    student, file = packed(tmp_path, network, QuantConfig(4, 4), recipe=recipe)
    loaded, _ = load_packed(file, network)
    assert torch.equal(loaded(images(4)), student(images(4)))
    assert (loaded.fc.layer.bias is None) == (recipe == "rtn-bn") and network.fc.bias is None


def test_numbers_that_the_network_has_no_place_for_are_one_clear_error(small):
    file, network = small
    network.fc = torch.nn.Identity()
    with pytest.raises(ValueError, match="it holds 'fc.layer.bias', which the network does not have"):
        load_packed(file, network)


class TwoNames(Residual):
    """A list of the layers to look at, as detectors and wrappers keep one."""

    def __init__(self):
        super().__init__()
        self.watched = torch.nn.ModuleList([self.conv_b, self.bn_b, self.fc])


def test_a_module_with_two_names_is_stored_once(tmp_path):
    network = awaken(TwoNames())
    student, file = packed(tmp_path, network, QuantConfig(4, 8))
    loaded, _ = load_packed(file, network)
    assert torch.equal(loaded(images(4)), student(images(4))) and loaded.watched[0] is loaded.conv_b
    plain = packed(tmp_path / "plain", awaken(Residual()), QuantConfig(4, 8))[1]
    assert read_weights(file)[0].keys() == read_weights(plain)[0].keys()


def test_a_model_that_is_one_layer(tmp_path):
    network = torch.nn.Linear(8, 4)
    student, file = packed(tmp_path, network, QuantConfig(4, 4), shape=(8,))
    assert torch.equal(load_packed(file, network)[0](images(4, (8,))), student(images(4, (8,))))


def test_mixed_widths(tmp_path):
    config = QuantConfig(4, 8, edge_bits=8, layer_bits={"conv_a": 2})
    network = awaken(Residual())
    student, file = packed(tmp_path, network, config)
    assert torch.equal(load_packed(file, network)[0](images(4)), student(images(4)))


@pytest.mark.parametrize("bits, share", [(8, 0.27), (4, 0.14), (2, 0.08)])
def test_size_beside_the_float_checkpoint(tmp_path, bits, share):
    name = "embedded/resnet20"
    network, _ = load_model(name)
    result = quantize(network, QuantConfig(bits, 8), "rtn-noise", image_shape=(3, 32, 32))
    file = tmp_path / "resnet20.safetensors"
    size = save_packed(result.model, file, {key: value for key, value in result.report.items()} |
                       {"model": name, "image_shape": [3, 32, 32]})
    assert size == file.stat().st_size <= share * checkpoint_path(name).stat().st_size
    x = images(2, (3, 32, 32))
    assert torch.equal(load_packed(file)[0](x), result.model(x)), "a network of the lab needs no network beside it"


def test_five_million_weights_are_packed_and_loaded_in_a_fifth_of_a_second(tmp_path):
    network = torch.nn.Sequential(*[torch.nn.Conv2d(1000, 1000, 1) for _ in range(5)])
    student, file = packed(tmp_path, network, QuantConfig(4, 8), (1000, 1, 1))
    facts, seconds = load_packed(file, network)[1], []
    for _ in range(2):
        started = time.process_time()
        save_packed(student, file, facts)
        load_packed(file, network)
        seconds.append(time.process_time() - started)
    print(f"{min(seconds):.2f} s")
    assert min(seconds) < 0.5, "0.17 s on a quiet core"


@pytest.fixture
def small(tmp_path):
    network = awaken(Residual())
    return packed(tmp_path, network, QuantConfig(3, 8))[1], network


def test_every_truncation_is_one_clear_error(small):
    file, network = small
    content = file.read_bytes()
    for length in (0, 7, 100, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:length])
        with pytest.raises(ValueError, match="small.safetensors is not a packed model of this lab: .*Write it again"):
            load_packed(file, network)


def test_a_changed_bit_anywhere_in_the_numbers_is_noticed(small):
    file, network = small
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    for place in range(start, len(content), 211):
        file.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1:])
        with pytest.raises(ValueError, match="checksum is wrong"):
            load_packed(file, network)


@pytest.mark.parametrize("named", [{"model": "mine"}, {"model": "lung/unet"}, {}])
def test_a_network_of_your_own_is_asked_for(small, named):
    file, network = small
    student, facts = load_packed(file, network)
    save_packed(student, file, {key: facts[key] for key in ("config", "image_shape")} | named)
    with pytest.raises(ValueError, match=r"small.safetensors holds a network that is none of the lab's .*network="):
        load_packed(file)


def test_a_float_model_is_told_to_be_quantized_first(tmp_path):
    with pytest.raises(ValueError, match="has no quantized layer: quantize it first"):
        save_packed(awaken(Residual()), tmp_path / "x", {})
    assert not any(tmp_path.iterdir())


def test_other_files_are_one_clear_error(small, tmp_path):
    file, network = small
    with pytest.raises(ValueError, match="no packed model at .*none"):
        load_packed(tmp_path / "none", network)
    with pytest.raises(ValueError, match="not a packed model .*format is 'None'"):
        load_packed(checkpoint_path("embedded/resnet20"), network)
    with pytest.raises(ValueError, match="not a packed model"):
        load_packed(file, awaken(Mobile()))
    save_file({"a": torch.zeros(1)}, file, {"format": "zsq-lab packed 1", "checksum": "0", "facts": json.dumps({})})
    with pytest.raises(ValueError, match="not a packed model"):
        load_packed(file, network)


class Trap:
    """What pickle would run when loaded."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


def test_loading_never_runs_code_from_the_file(tmp_path):
    file, harm = tmp_path / "evil.safetensors", tmp_path / "harm"
    file.write_bytes(pickle.dumps(Trap(harm)))
    with pytest.raises(ValueError, match="not a packed model"):
        load_packed(file, awaken(Residual()))
    torch.save({"a": Trap(harm)}, file)
    with pytest.raises(ValueError, match="not a packed model"):
        load_packed(file, awaken(Residual()))
    assert not harm.exists()
