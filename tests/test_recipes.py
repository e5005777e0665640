"""quantize() and synthesize(): every recipe on every kind of model, the input untouched, one seed one result."""
import json
import pickle
from dataclasses import replace
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from networks import (
    IMAGE,
    LAYER_TYPES,
    TINY,
    Asking,
    Mobile,
    Residual,
    SharedConv,
    SharedReLU,
    awaken,
    images,
    layer_and_norm,
    same_state,
    snapshot,
    teach,
)
from torch import Tensor, nn

from zsq_lab import QuantConfig, quantize, synthesize
from zsq_lab.distill import relative_error
from zsq_lab.graph import BATCH_NORMS
from zsq_lab.job import BUDGETS
from zsq_lab.layers import quant_layers
from zsq_lab.recipes import RECIPES, model_bytes
from zsq_lab.resume import RunState

WITHOUT_IMAGES = [name for name, recipe in RECIPES.items() if not recipe.needs_images]
FROM_STATISTICS = [name for name in WITHOUT_IMAGES if name not in ("rtn-noise", "zaq-paper")]
QUICK = ["rtn-noise", "rtn-bn", "dfq", "squant"]


def run(model: nn.Module, recipe: str, *, weight_bits: int = 4, activation_bits: int = 4, shape=IMAGE, seed: int = 0,
        convention: str = "deployable", edge_bits: int | None = None, **options):
    if RECIPES[recipe].needs_images:
        options.setdefault("images", images(16, shape))
    return quantize(model, QuantConfig(weight_bits, activation_bits, edge_bits, convention), recipe, image_shape=shape,
                    seed=seed, **{"budget": TINY, **options})


@cache
def standard(recipe: str, convention: str):
    """The result that several tests look at, of seed 0."""
    return run(awaken(Residual()), recipe, convention=convention)


@cache
def remembered(network) -> Tensor:
    """Images of the kind that the statistics of a network tell of."""
    return synthesize(awaken(network()), 16, image_shape=IMAGE, budget=TINY)


def conventions_of(recipe: str) -> list[str]:
    return ["deployable"] if recipe == "dfq" else ["deployable", "literature"]


EACH = [(recipe, convention) for recipe in RECIPES for convention in conventions_of(recipe)]


ITERATIONS = {"zeroq": 3, "distilled": 6, "gznq": 3, "gznq-finetuned": 6, "zs-cgan": 6, "zs-cgan-paper": 6, "zaq": 6,
              "zaq-paper": 3, "reconstructed": 6, "best": 6, "real-finetune": 3}  # with the budget of three of each


def test_the_named_recipes_and_budgets():
    assert list(RECIPES) == ["rtn-noise", "rtn-bn", "dfq", "squant", "zeroq", "distilled", "gznq", "gznq-finetuned",
                             "zs-cgan", "zs-cgan-paper", "zaq", "zaq-paper", "reconstructed", "best", "real-ranges",
                             "real-finetune"]
    assert [name for name, recipe in RECIPES.items() if recipe.needs_images] == ["real-ranges", "real-finetune"]
    assert list(BUDGETS) == ["quick", "standard", "long"] and all(name == b.name for name, b in BUDGETS.items())


@pytest.mark.parametrize("recipe, convention", EACH)
def test_the_input_and_the_world_are_untouched(recipe, convention):
    model = awaken(Residual()).train()
    model.bn_a.eval()
    model.fc.bias.requires_grad_(False)
    calls = []
    model.fc.register_forward_hook(lambda *_: calls.append(1))
    before = snapshot(model)
    facts = [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    world = torch.get_rng_state(), torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype()
    result = run(model, recipe, convention=convention)
    assert same_state(before, model.state_dict())
    assert facts == [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["fc.bias"]
    assert all(p.grad is None for p in model.parameters())
    after = torch.get_rng_state(), torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype()
    assert torch.equal(world[0], after[0]) and world[1:] == after[1:]
    own, given = ({v.data_ptr() for v in m.state_dict().values()} for m in (result.model, model))
    assert not own & given, "the result shares memory with the input"


@pytest.mark.parametrize("recipe, convention", EACH)
def test_one_seed_one_result_to_the_bit(recipe, convention):
    first = standard(recipe, convention)
    again, other = (run(awaken(Residual()), recipe, seed=seed, convention=convention) for seed in (0, 1))
    torch.rand(7)  # what happens to the global generator in between does not matter
    assert same_state(first.model.state_dict(), again.model.state_dict())
    assert torch.equal(first.model(images(4)), again.model(images(4)))
    if recipe != "real-ranges" or convention == "deployable":  # min-max of the same images: the seed has nothing to do
        assert not same_state(first.model.state_dict(), other.model.state_dict())


@pytest.mark.parametrize("recipe, convention", EACH)
def test_evaluating_leaves_every_bit_of_the_result(recipe, convention):
    model = standard(recipe, convention).model
    assert not any(m.training for m in model.modules()) and not any(p.requires_grad for p in model.parameters())
    before, x = snapshot(model), images(4)
    expected = model(x)
    for factor in (1, 1000):
        model(factor * images(8, seed=3))
    assert same_state(before, model.state_dict()) and torch.equal(model(x), expected)


@pytest.mark.parametrize("recipe, convention", EACH)
@pytest.mark.parametrize("network", [Residual, Mobile])
def test_eight_bits_stay_near_the_full_precision_model(recipe, convention, network):
    model = awaken(network())
    images_like_memory = remembered(network)
    result = run(model, recipe, weight_bits=8, activation_bits=8, convention=convention)
    limit = 0.12 if recipe == "dfq" else 0.05  # untrained statistics: absorption and correction are rough guesses here
    assert relative_error(result.model(images_like_memory), model(images_like_memory)) < limit


@pytest.mark.parametrize("recipe", QUICK)
@pytest.mark.parametrize("kind", LAYER_TYPES)
def test_every_kind_of_layer(recipe, kind):
    model, shape = layer_and_norm(kind)
    result = run(model, recipe, shape=shape)
    assert len(quant_layers(result.model)) == 1 and result.model(images(2, shape)).isfinite().all()


@pytest.mark.parametrize("kind", ["linear", "conv1d", "conv3d", "grouped transposed"])
def test_distilled_on_other_kinds_of_layers(kind):
    model, shape = layer_and_norm(kind)
    assert run(model, "distilled", shape=shape).model(images(2, shape)).isfinite().all()


@pytest.mark.parametrize("recipe", WITHOUT_IMAGES)
@pytest.mark.parametrize("network", [SharedConv, SharedReLU])
def test_shared_layers(recipe, network):
    result = run(awaken(network()), recipe)
    assert result.model(images(2)).isfinite().all()
    if network is SharedConv:
        first, second = quant_layers(result.model)["shared"].input_quantizers
        assert second.scale > 10 * first.scale


@pytest.mark.parametrize("recipe", FROM_STATISTICS)
def test_a_model_without_batchnorm_is_told_what_to_do(recipe):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    with pytest.raises(ValueError, match="no BatchNorm with running statistics.*use recipe 'rtn-noise'"):
        run(model, recipe)


@pytest.mark.parametrize("model", [
    nn.Conv2d(3, 4, 3), nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))], ids=["bare", "two layers"])
def test_noise_needs_no_batchnorm(model):
    result = run(model, "rtn-noise", weight_bits=8, activation_bits=8)
    assert relative_error(result.model(images(8)), model(images(8))) < 0.01
    assert len(quant_layers(result.model)) == sum(isinstance(m, nn.Conv2d) for m in model.modules())


@pytest.mark.parametrize("recipe", WITHOUT_IMAGES)
def test_dead_channels(recipe):
    """A weight channel of zeros, and a BatchNorm whose gamma is zero: nothing becomes NaN, nothing jumps."""
    model = awaken(Residual())
    with torch.no_grad():
        model.conv_a.weight[1] = 0
        model.bn_b.weight[2] = 0
        model.bn_a.weight.zero_()
    result = run(model, recipe, weight_bits=8, activation_bits=8)
    assert all(v.isfinite().all() for v in result.model.state_dict().values())
    assert relative_error(result.model(images(8)), model(images(8))) < 0.5


class NoisyOutput(nn.Module):
    """Returns more than logits, as detectors and segmentation networks do."""

    def __init__(self):
        super().__init__()
        self.a, self.bn, self.b = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> dict:
        features = F.relu(self.bn(self.a(x)))
        return {"maps": self.b(features), "features": [features]}


@pytest.mark.parametrize("recipe", RECIPES)
def test_models_that_return_several_tensors(recipe):
    model = awaken(NoisyOutput())
    out, expected = run(model, recipe, weight_bits=8, activation_bits=8).model(images(4)), model(images(4))
    assert relative_error(out["maps"], expected["maps"]) < 0.1
    assert relative_error(out["features"][0], expected["features"][0]) < 0.1, "what is returned may not be rescaled"


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_precisions(dtype):
    model = awaken(Residual()).to(dtype)
    result = run(model, "distilled", weight_bits=8, activation_bits=8)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert relative_error(result.model(images(8)), awaken(Residual())(images(8))) < 0.05


@pytest.fixture
def defaults():
    """The caller's type and device, which a test may change."""
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_callers_defaults_decide_nothing(recipe, defaults):
    expected, model = standard(recipe, "deployable").model, awaken(Residual())
    given = {"images": images(16)} if RECIPES[recipe].needs_images else {}
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")  # what would be made there could not be computed with
    result = run(model, recipe, **given)
    assert same_state(expected.state_dict(), result.model.state_dict())
    assert (torch.get_default_dtype(), torch.get_default_device().type) == (torch.float64, "meta")


def test_the_callers_default_type_is_his_again_after_an_error(defaults):
    torch.set_default_dtype(torch.float64)
    with pytest.raises(ValueError, match="unknown recipe"):
        quantize(awaken(Residual()), recipe="magic", image_shape=IMAGE)
    assert torch.get_default_dtype() == torch.float64
    assert synthesize(awaken(Residual()), 2, image_shape=IMAGE, budget=TINY).dtype == torch.float32


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("recipe", ["rtn-bn", "distilled", "real-finetune"])
def test_works_where_the_caller_has_switched_gradients_off(recipe, context):
    model = awaken(Residual())
    expected = run(model, recipe)
    with context():
        result = run(model, recipe)
    assert same_state(expected.model.state_dict(), result.model.state_dict())


@pytest.mark.parametrize("edge_bits, weights", [(None, [2, 2, 2, 2]), (8, [8, 2, 2, 8])])
def test_edge_bits(edge_bits, weights):
    layers = quant_layers(run(awaken(Residual()), "rtn-bn", weight_bits=2, edge_bits=edge_bits).model)
    assert [layers[n].weight_quantizer.bits for n in ("stem", "conv_a", "conv_b", "fc")] == weights


def test_literature_keeps_batchnorm_and_its_statistics():
    model = awaken(Residual())
    student = run(model, "distilled", convention="literature").model
    norms = {n: m for n, m in student.named_modules() if isinstance(m, BATCH_NORMS)}
    assert set(norms) == {"bn_stem", "bn_a", "bn_b"}
    for name, norm in norms.items():
        own = model.get_submodule(name)
        assert torch.equal(norm.running_mean, own.running_mean) and torch.equal(norm.running_var, own.running_var)
        assert norm.num_batches_tracked == own.num_batches_tracked


@pytest.mark.parametrize("recipe", ["dfq", "zeroq", "distilled", "best", "reconstructed"])
def test_a_model_that_calls_by_keyword_and_asks_for_attributes(recipe):
    model = teach(awaken(Asking()), images(32))
    result = run(model, recipe, weight_bits=8, activation_bits=8)
    assert len(quant_layers(result.model)) == 3
    with torch.no_grad():
        assert relative_error(result.model(images(8)), model(images(8))) < 0.05


def test_dfq_needs_folded_layers():
    with pytest.raises(ValueError, match="use convention 'deployable'"):
        run(awaken(Residual()), "dfq", convention="literature")


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_report(recipe):
    result = run(awaken(Residual()), recipe, weight_bits=4, activation_bits=3, seed=5)
    report = json.loads(json.dumps(result.report))
    assert {"recipe", "config", "convention", "seed", "budget", "seconds", "iterations", "bytes_before", "bytes_after",
            "device", "versions"} <= set(report)
    assert report["recipe"] == recipe and report["convention"] == "deployable" and report["seed"] == 5
    assert report["config"] == {"weight_bits": 4, "activation_bits": 3, "edge_bits": None, "convention": "deployable",
                                 "layer_bits": None}
    assert report["device"] == "cpu" and report["versions"]["torch"] == torch.__version__ and report["seconds"] > 0
    assert report["iterations"] == ITERATIONS.get(recipe, 0) and report["float_layers"] == []


def test_bytes_counted_by_hand():
    """A 3 -> 2 linear after folding: 6 weights of 3 bits in 3 bytes, 2 biases, 2 weight scales, 1 input scale."""
    model = awaken(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)))
    result = run(model, "rtn-bn", weight_bits=3, shape=(3,))
    assert result.report["bytes_before"] == 4 * (6 + 2)
    assert result.report["bytes_after"] == 3 + 4 * (2 + 2 + 1)
    wide = run(awaken(Residual()), "rtn-bn", weight_bits=8).model
    assert model_bytes(wide)[0] == 4 * (6 * 27 + 6 + 2 * (6 * 54 + 6) + 6 * 5 + 5)


def test_a_result_can_be_saved_and_copied():
    result = run(awaken(SharedConv()), "rtn-bn")
    copied = pickle.loads(pickle.dumps(result.model))
    assert torch.equal(copied(images(2)), result.model(images(2)))


@pytest.mark.parametrize("options, problem", [
    ({"recipe": "magic"}, "unknown recipe 'magic': expected one of rtn-noise"),
    ({"budget": "huge"}, "unknown budget 'huge': expected one of quick, standard, long"),
    ({"recipe": "real-ranges"}, "needs real images: pass images="),
    ({"recipe": "rtn-bn", "images": images(4)}, "looks at no images: leave images= out"),
    ({"recipe": "real-ranges", "images": images(4, (3, 9, 9))}, r"expected \[N, 3, 8, 8\]"),
    ({"recipe": "real-ranges", "images": images(0)}, "images"),
    ({"recipe": "real-ranges", "images": torch.zeros(4, *IMAGE, dtype=torch.uint8)}, "uint8.*normalise"),
    ({"recipe": "real-ranges", "images": torch.full((4, *IMAGE), torch.nan)}, "NaN or infinity: check the calibration"),
    ({"image_shape": (1, 8, 8)}, "does not take an input of shape .*Pass the image_shape")])
def test_bad_arguments(options, problem):
    with pytest.raises(ValueError, match=problem):
        quantize(awaken(Residual()), **{"recipe": "rtn-bn", "image_shape": IMAGE, "budget": TINY, **options})


@pytest.mark.parametrize("recipe", ["rtn-bn", "distilled"])
def test_bad_models_are_named(recipe):
    model = awaken(Residual())
    with pytest.raises(ValueError, match="layer 'fc' is already quantized"):
        run(run(model, "rtn-noise").model, recipe)
    model.rnn = nn.LSTM(3, 3)
    with pytest.raises(ValueError, match=r"layer 'rnn' \(LSTM\) is not supported"):
        run(model, recipe)
    model = awaken(Residual())
    model.conv_b.weight.data[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="layer 'conv_b' has NaN or infinity in its weight"):
        run(model, recipe)
    with pytest.raises(ValueError, match="NaN or infinity"):
        synthesize(model, 2, image_shape=IMAGE, budget=TINY)


def test_synthesize():
    model = awaken(Residual()).train()
    before, random_state = snapshot(model), torch.get_rng_state()
    made = synthesize(model, 10, image_shape=IMAGE, budget=TINY)
    assert made.shape == (10, *IMAGE) and made.is_contiguous() and made.isfinite().all()
    assert torch.equal(made, synthesize(model, 10, image_shape=IMAGE, budget=TINY, seed=0))
    assert not torch.equal(made, synthesize(model, 10, image_shape=IMAGE, budget=TINY, seed=1))
    assert same_state(before, model.state_dict()) and model.training
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("n", [0, -1, 2.5, "4"])
def test_synthesize_refuses_a_senseless_number(n):
    with pytest.raises(ValueError, match="n must be a whole number of at least 1"):
        synthesize(awaken(Residual()), n, image_shape=IMAGE)


def test_synthesize_needs_statistics():
    with pytest.raises(ValueError, match="no BatchNorm with running statistics, which making images needs"):
        synthesize(nn.Conv2d(3, 4, 3), 2, image_shape=IMAGE)


@pytest.mark.parametrize("recipe", ["rtn-bn", "distilled", "best", "gznq", "zs-cgan", "zaq", "zaq-paper",
                                    "real-finetune"])
def test_a_folder_for_resuming_changes_no_bit_and_keeps_no_state_of_the_run(recipe, tmp_path):
    expected = run(awaken(Residual()), recipe)
    result = run(awaken(Residual()), recipe, resume=tmp_path)
    assert same_state(expected.model.state_dict(), result.model.state_dict())
    assert not list(tmp_path.glob(f"{recipe}_*"))


@pytest.mark.parametrize("change, same", [
    ({"progress": True}, True), ({"budget": TINY}, True), ({"seed": 1}, False), ({"weight_bits": 5}, False),
    ({"activation_bits": 5}, False), ({"edge_bits": 8}, False), ({"convention": "literature"}, False),
    ({"budget": replace(TINY, finetune_iterations=4)}, False), ({"stages": ["conv_a"]}, False)], ids=str)
def test_only_the_same_call_finds_a_runs_state(change, same, tmp_path, monkeypatch):
    """The folder that a run would keep its state in, by the options of quantize."""
    folders = []
    monkeypatch.setattr(RunState, "clear", lambda own: folders.append(own.folder))
    for options in ({}, change):
        run(awaken(Residual()), "distilled", resume=tmp_path, **options)
    assert (folders[0] == folders[1]) == same and all(folder.parent == tmp_path for folder in folders)


def test_the_user_names_the_stages_to_compare(tmp_path):
    model = awaken(Residual())
    found, named = run(model, "distilled"), run(model, "distilled", stages=["conv_a", "conv_b"])
    assert same_state(found.model.state_dict(), run(model, "distilled", stages=["fc"]).model.state_dict())
    assert not same_state(found.model.state_dict(), named.model.state_dict())
    for recipe, size_budget in (("distilled", None), ("squant", None), ("best", 0.2)):
        with pytest.raises(ValueError, match="no layer 'layer9' to compare features at: name layers .*conv_a"):
            run(model, recipe, stages=["conv_a", "layer9"], size_budget=size_budget, resume=tmp_path / "runs")
    assert not (tmp_path / "runs").exists(), "no image was made"


def test_the_callers_images_get_no_gradient():
    own = images(8).requires_grad_(True)
    quantize(awaken(Residual()), QuantConfig(4, 4), "real-finetune", image_shape=IMAGE, budget=TINY, images=own)
    assert own.grad is None


def test_seconds_of_mixed_precision_include_those_of_images_made_before(tmp_path):
    def seconds() -> float:
        return quantize(awaken(Residual()), QuantConfig(4, 8), "rtn-bn", image_shape=IMAGE, budget=TINY, size_budget=0.2,
                        resume=tmp_path).report["seconds"]
    seconds()
    for state in tmp_path.rglob("images.pt"):
        torch.save(torch.load(state) | {"seconds": 1000.0}, state)
    assert seconds() > 1000
