"""What a recipe works with: budgets by the size of the images, ranges, samples of a pool, fingerprints of all that decides."""
import pytest
import torch
from edited_sources import edit, fresh  # noqa: F401 (fixtures)
from networks import IMAGE, TINY, Residual, awaken, images
from torch import Tensor, nn

from zsq_lab.job import (
    BUDGETS,
    LARGE_BUDGETS,
    Job,
    UnknownLayer,
    check_stages,
    fingerprint,
    learning_rate,
    named_budget,
    pool_sampler,
)
from zsq_lab.layers import QuantConfig, convert, quant_layers
from zsq_lab.models import build
from zsq_lab.resume import RunState
from zsq_lab.tasks import CLASSIFICATION, SEGMENTATION


def job(folder=None, **more) -> Job:
    teacher, student = convert(awaken(Residual()), QuantConfig(4, 4), IMAGE)
    return Job(teacher, student, QuantConfig(4, 4), IMAGE, TINY, 0, run=RunState(folder), **more)


def test_learning_rate_falls_with_the_width():
    rates = [learning_rate(QuantConfig(bits, 8)) for bits in (2, 3, 4, 5, 8)]
    assert rates == sorted(rates, reverse=True) and rates[0] > rates[2]
    assert learning_rate(QuantConfig(8, 2)) == learning_rate(QuantConfig(8, 8, layer_bits={"fc": 2})) == rates[0]


def test_the_pool_gives_images_of_the_pool_mirrored_half_of_the_time():
    pool = images(5)
    batch = pool_sampler(pool, 400)(torch.Generator().manual_seed(0))
    plain = (batch[:, None] == pool).flatten(2).all(2)
    mirrored = (batch[:, None] == pool.flip(-1)).flatten(2).all(2)
    assert (plain | mirrored).any(1).all() and 0.4 < plain.any(1).float().mean() < 0.6
    assert (plain | mirrored).any(0).all()
    assert pool_sampler(images(5, (7,)), 4)(torch.Generator().manual_seed(0)).shape == (4, 7)


def test_the_fingerprint_is_of_all_that_decides_a_result():
    """One weight, one statistic, one image, any setting, the network's structure: each gives another;
    repeating does not."""
    def print_of(*settings, model: nn.Module | None = None, x: Tensor | None = None) -> str:
        return fingerprint(model or awaken(Residual()), *(settings or ("distilled", [3, 8, 8], 0)), images=x)

    weight, statistic = awaken(Residual()), awaken(Residual())
    with torch.no_grad():
        weight.fc.weight[0, 0] += 1e-6
        statistic.bn_a.running_mean[0] += 1e-6
    strided = awaken(Residual())
    strided.stem.stride = (1, 1)
    other = images(4)
    other[3, 2, 7, 7] += 1e-6
    different = [print_of(), print_of(model=weight), print_of(model=statistic), print_of(model=strided),
                 print_of(model=awaken(Residual(), seed=1)), print_of(x=images(4)), print_of(x=other),
                 print_of("zs-cgan", [3, 8, 8], 0), print_of("distilled", [3, 8, 8], 1),
                 print_of("distilled", [3, 9, 9], 0),
                 print_of("distilled", [3, 8, 8], 0, {"bits": 4})]
    assert len(set(different)) == len(different)
    assert print_of() == print_of(model=awaken(Residual()).to(memory_format=torch.channels_last)) == different[0]
    assert print_of(x=images(4)) == different[5] and len(different[0]) == 16


def test_large_images_and_scenes_have_budgets_of_their_own():
    assert named_budget("quick", (3, 32, 32), CLASSIFICATION) is BUDGETS["quick"]
    assert named_budget("quick", (3, 128, 128), CLASSIFICATION) is LARGE_BUDGETS["quick"]
    scenes = named_budget("quick", (3, 180, 240), SEGMENTATION)
    assert scenes.images < BUDGETS["quick"].images and scenes.name == "quick"
    with pytest.raises(ValueError, match="unknown budget 'huge': expected one of quick, standard, long"):
        named_budget("huge", (3, 32, 32), CLASSIFICATION)


def test_what_other_widths_can_use_lies_beside_the_run_and_is_named_by_what_decides_it(tmp_path):
    assert job().shared("images", 1).folder is None, "without a folder nothing is kept"
    own = job(tmp_path / "run")
    first, same, other = (own.shared("images", n).folder for n in (1, 1, 2))
    assert first == same != other and first.parent == tmp_path and first.name.startswith("images_")
    assert len(own.reused) == 3 and own.shared("generator", 1).folder.name != first.name


@pytest.mark.parametrize("file, old, new, changed", [
    ("image_maker.py", "LATE_RATE = 0.5", "LATE_RATE = 0.4", {"images"}),
    ("images.py", "SHIFT = 2", "SHIFT = 1", {"images", "prior", "generator"}),  # it counts the classes for the others
    ("gznq.py", "LEARNING_RATE = 5e-3", "LEARNING_RATE = 4e-3", {"prior"}),
    ("zscgan.py", "LAB = Settings(3e-3", "LAB = Settings(2e-3", {"generator"}),
    ("plots.py", "import seaborn as sns\n", "", set())])
def test_what_is_shared_belongs_to_the_code_that_makes_it(tmp_path, edit, file, old, new, changed):
    kinds = ("images", "prior", "generator")
    before = {kind: job(tmp_path / "run").shared(kind).folder for kind in kinds}
    edit(file, old, new)
    after = {kind: job(tmp_path / "run").shared(kind).folder for kind in kinds}
    assert {kind for kind in kinds if after[kind] != before[kind]} == changed


def test_the_fingerprint_is_also_of_the_code_of_the_labs_own_networks(edit):
    networks = build("resnet20", 10), Residual()
    before = [fingerprint(network) for network in networks]
    edit("models.py", "F.relu", "F.relu6")
    after = [fingerprint(network) for network in networks]
    assert after[0] != before[0] and after[1] == before[1], "another's has not changed"


def test_noise_is_the_seeds_and_ranges_are_set_everywhere():
    own = job()
    assert torch.equal(own.noise(5), job().noise(5)) and own.noise(5).shape == (5, *IMAGE)
    assert not torch.equal(own.noise(5), Job(own.teacher, own.student, own.config, IMAGE, TINY, 1).noise(5))
    own.fit(own.noise(32))
    with torch.no_grad():
        assert own.student(images(4)).isfinite().all()
    assert all(q.enabled for layer in quant_layers(own.student).values() for q in layer.input_quantizers)


def test_stages_are_found_or_named():
    assert job(stages=["conv_a"]).compared() == ["conv_a"] and job().compared()
    with pytest.raises(ValueError, match="no layer is found to compare features at: name layers .*conv_a"):
        job().compared(lambda graph: [])
    check_stages(None, job().student), check_stages(["conv_a", "fc"], job().student)
    with pytest.raises(UnknownLayer, match="no layer 'nothing' to compare features at: name layers .*conv_a"):
        check_stages(["conv_a", "nothing"], job().student)


class Squashed(Residual):
    def __init__(self, squash):
        super().__init__()
        self.squash = squash

    def forward(self, x: Tensor) -> Tensor:
        return self.squash(super().forward(x))


def test_the_fingerprint_is_also_of_the_users_own_code():
    def named(*squash, kind=Squashed) -> list[str]:
        networks = [kind(one) for one in squash]
        for network in networks:
            network.load_state_dict(networks[0].state_dict())
        return [fingerprint(network) for network in networks]

    torch.manual_seed(0)
    one, same, other = named(torch.relu, torch.relu, torch.tanh)
    assert one == same != other

    def typed(factor: int) -> list[str]:
        """Of a class that no file holds, as one that a notebook defines."""
        space = {"Base": Squashed}
        exec(f"class Squashed(Base):\n    def forward(self, x):\n        return {factor} * Base.forward(self, x)", space)
        torch.manual_seed(0)
        return named(torch.relu, kind=space["Squashed"])

    assert typed(2) == typed(2) != typed(3) and [one] not in (typed(2), typed(3))
