"""Economies leave the result alone: checkpointed gradients are the same, bfloat16's statistics are near, small images untouched."""
import pytest
import torch
from networks import Residual, awaken, images, teach

from zsq_lab import precision
from zsq_lab.blocks import find_blocks
from zsq_lab.bn_stats import BatchNormStatistics
from zsq_lab.graph import LAYERS
from zsq_lab.images import optimise_images
from zsq_lab.layers import QuantConfig, convert
from zsq_lab.models import build
from zsq_lab.precision import activation_bytes, checkpointed, economical, free_memory, has_bfloat16

LARGE = (3, 128, 128)


def teacher(model, shape=LARGE):
    return convert(teach(awaken(model), images(2, shape)), QuantConfig(), shape)[0]


def gradient(model, x):
    x = x.clone().requires_grad_(True)
    with BatchNormStatistics(model) as statistics:
        model(x)
        loss = statistics.loss()
        return loss.item(), torch.autograd.grad(loss, x)[0]


def test_checkpointed_gradients_of_the_statistics_are_the_same_and_keep_less():
    model, x = teacher(build("mobilenetv2"), (3, 64, 64)), images(2, (3, 64, 64))
    kept = []
    for wrap in (False, True):
        held = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, held=held: held.append(t.numel()) or t, lambda t: t):
            if wrap:
                with checkpointed(model, x.shape[1:]):
                    kept.append((*gradient(model, x), sum(held)))
            else:
                kept.append((*gradient(model, x), sum(held)))
    assert kept[0][0] == pytest.approx(kept[1][0], rel=1e-6)
    torch.testing.assert_close(kept[0][1], kept[1][1], rtol=1e-4, atol=1e-7)
    assert kept[1][2] < 0.7 * kept[0][2]
    assert not any("forward" in vars(module) for module in model.modules()), "the model is left as it was"


def test_a_forward_that_a_block_was_given_for_itself_stays_its_own():
    model, shape = teacher(build("resnet20"), (3, 32, 32)), (3, 32, 32)
    block = model.get_submodule("layer1.0")
    given = lambda x, plain=block.forward: 2 * plain(x)  # noqa: E731
    block.forward = given
    with checkpointed(model, shape):
        inside = model(images(2, shape))
    assert block.forward is given and "forward" not in vars(model.get_submodule("layer1.1"))
    torch.testing.assert_close(inside, model(images(2, shape)))


def test_blocks_of_a_float_network():
    assert find_blocks(build("resnet20").eval(), (3, 32, 32), LAYERS)[:2] == ["conv1", "layer1.0"]


def test_memory_decides_about_checkpointing(monkeypatch):
    model = teacher(Residual())
    used = []
    monkeypatch.setattr(precision, "checkpointed", lambda *_: used.append(1) or checkpointed(*_))
    need = activation_bytes(model, LARGE)
    assert need > 6 * 64 * 64 * 4, "less than the stem's own output"
    for free, wanted in ((4 * need, 0), (need, 1)):
        used.clear()
        monkeypatch.setattr(precision, "free_memory", lambda device, free=free: free)
        with economical(model, LARGE, 1):
            pass
        assert len(used) == wanted
    assert free_memory(torch.device("cpu")) > 0


def test_a_container_is_no_larger_than_its_limit(monkeypatch, tmp_path):
    """The files of a control group, as Linux shows them; whatever is read and could be forgotten again is free."""
    def limit(most: str) -> None:
        for name, text in (("max", most), ("current", "900000\n"), ("stat", "anon 600000\ninactive_file 200000\n")):
            (tmp_path / f"memory.{name}").write_text(text)
    monkeypatch.setattr(precision, "CGROUPS", tmp_path)
    host = free_memory(torch.device("cpu"))
    assert host > 2**20
    limit("1000000\n")
    assert free_memory(torch.device("cpu")) == 300000
    limit("500000\n")
    assert free_memory(torch.device("cpu")) == 0
    limit("max\n")
    assert free_memory(torch.device("cpu")) > 2**20


def test_bfloat16_where_the_hardware_has_it_gives_images_as_good(monkeypatch):
    assert has_bfloat16(torch.device("cpu")) in (True, False)
    model, distances = teacher(Residual()), []
    for present in (False, True):
        monkeypatch.setattr(precision, "has_bfloat16", lambda device, present=present: present)
        made, _ = optimise_images(model, 2, LARGE, iterations=5, batch_size=2)
        assert made.dtype == torch.float32
        distances.append(gradient(model, made)[0])
    assert distances[0] != distances[1] and distances[1] == pytest.approx(distances[0], rel=0.1)


def test_small_images_are_left_as_they_are(monkeypatch):
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    with economical(awaken(Residual()), (3, 32, 32), 4):
        assert not torch.is_autocast_enabled("cpu")
