"""The ablation of `best`: the unchanged variant is the recipe itself, each change changes what it says, runs go on."""
from dataclasses import replace

import pandas as pd
import pytest
import torch

from zsq_lab import QuantConfig, ablation, quantize
from zsq_lab.ablation import VARIANTS, Variant
from zsq_lab.checkpoints import load_model
from zsq_lab.data import find_dataset
from zsq_lab.evaluate import accuracy
from zsq_lab.job import BUDGETS
from zsq_lab.layers import convert, quant_layers
from zsq_lab.ranges import fit_input_ranges, fit_weight_ranges

MODEL, SHAPE = "embedded/resnet20", (3, 32, 32)
TINY = replace(BUDGETS["quick"], name="tiny", images=8, image_iterations=2, finetune_iterations=2, image_batch=8, batch_size=4)


@pytest.fixture(autouse=True)
def tiny_budget(monkeypatch):
    monkeypatch.setitem(BUDGETS, "tiny", TINY)


def student_and_teacher(config=QuantConfig(3, 3)):
    images = torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(0))
    teacher, student = convert(load_model(MODEL)[0], config, SHAPE)
    fit_weight_ranges(student, search=True)
    fit_input_ranges(student, images.split(8), search=True, seed=0)
    return student, teacher, images


def test_the_unchanged_variant_is_the_recipe():
    row = ablation.measure("best", MODEL, QuantConfig(3, 3), budget="tiny", seed=1, n_test=200)
    dataset = find_dataset("embedded")
    result = quantize(load_model(MODEL)[0], QuantConfig(3, 3), "best", image_shape=SHAPE, seed=1, budget=TINY)
    assert row["accuracy"] == round(accuracy(result.model, dataset.test(), dataset, limit=200), 2)
    assert row["drop"] == pytest.approx(row["fp_accuracy"] - row["accuracy"], abs=0.011)


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "real images (reference)"])
def test_every_variant_runs_and_gives_a_row(name):
    row = ablation.measure(name, MODEL, QuantConfig(4, 4), budget="tiny", seed=0, n_test=50)
    assert tuple(row) == ablation.COLUMNS and row["variant"] == name and row["n_test"] == 50
    assert 0 <= row["accuracy"] <= 100


@pytest.mark.parametrize("frozen", ["weights", "scales", ""])
def test_what_stays_is_bit_identical_and_the_rest_moves(frozen):
    student, teacher, images = student_and_teacher()
    layers = quant_layers(student).values()
    weights = [layer.layer.weight.clone() for layer in layers]
    scales = [layer.weight_quantizer.scale.clone() for layer in layers] + [layer.input_quantizer.scale.clone() for layer in layers]
    ablation.learn(student, teacher, images, Variant(frozen=frozen), TINY, 1e-3, 0, SHAPE)
    after = [layer.weight_quantizer.scale for layer in layers] + [layer.input_quantizer.scale for layer in layers]
    assert all(torch.equal(a, layer.layer.weight) for a, layer in zip(weights, layers, strict=True)) == (frozen == "weights")
    assert all(torch.equal(a, b) for a, b in zip(scales, after, strict=True)) == (frozen == "scales")


def test_the_loss_suits_how_far_the_student_starts_unless_a_variant_says_otherwise(monkeypatch):
    asked, used = [], []
    monkeypatch.setattr(ablation, "feature_error", lambda *_: 0.5)
    monkeypatch.setattr(ablation, "suited_loss", lambda begun: asked.append(begun) or used.append)
    monkeypatch.setattr(ablation, "FineTuning", lambda *args: used.append(args[-1]) or (_ for _ in ()).throw(KeyboardInterrupt))
    for variant in (Variant(), Variant(thorough=False), Variant(outputs_only=True)):
        with pytest.raises(KeyboardInterrupt):  # the loss is chosen; nothing need be learned
            ablation.learn(*student_and_teacher(), variant, TINY, 1e-3, 0, SHAPE)
    assert asked == [0.5] and used[0] == used.append and used[1] is ablation.knowledge_loss


def test_unmirrored_batches_are_images_of_the_pool(monkeypatch):
    student, teacher, images = student_and_teacher()
    seen = []
    step = ablation.FineTuning.step
    monkeypatch.setattr(ablation.FineTuning, "step", lambda self, x, done: seen.append(x) or step(self, x, done))
    for mirrored in (False, True):
        ablation.learn(student, teacher, images, Variant(mirrored=mirrored), replace(TINY, finetune_iterations=4), 1e-3, 0,
                       SHAPE)
    known = [any(torch.equal(x, image) for image in images) for batch in seen for x in batch]
    assert all(known[:16]) and not all(known[16:])


def test_variants_learn_from_what_they_name():
    made, noise = (ablation._images(source, MODEL, TINY, 3, ()) for source in ("made", "noise"))
    real = ablation._images("real", MODEL, TINY, 3, ())
    assert torch.equal(noise, torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(3)))
    dataset = find_dataset("embedded")
    train = dataset.normalise(dataset.train().images[:5000])
    assert len(real) == len(made) == 8 and not torch.equal(made, real)
    assert real.min() >= train.min() - 1e-6 and real.max() <= train.max() + 1e-6


def test_a_second_run_measures_only_what_is_missing(tmp_path, monkeypatch, capsys):
    calls, measure = [], ablation.measure
    monkeypatch.setattr(ablation, "measure", lambda name, *a, **k: calls.append((name, k["seed"])) or measure(name, *a, **k))
    table = tmp_path / "a.csv"
    few = ["--model", MODEL, "--budget", "tiny", "--n-test", "50", "--csv", str(table), "--variants", "best", "scales stay"]
    ablation.main([*few, "--seeds", "0"])
    first = table.read_text()
    ablation.main([*few, "--seeds", "0", "1"])
    assert calls == [("best", 0), ("scales stay", 0), ("best", 1), ("scales stay", 1)]
    assert table.read_text().startswith(first) and len(pd.read_csv(table)) == 4
    assert "scales stay" in capsys.readouterr().out


def test_a_measurement_on_few_test_images_is_no_measurement_on_more(tmp_path, capsys):
    table = tmp_path / "new" / "a.csv"
    few = ["--model", MODEL, "--budget", "tiny", "--csv", str(table), "--variants", "best", "--seeds", "0", "--n-test"]
    for n, rows in (("50", [50]), ("60", [50, 60]), ("50", [50, 60])):
        ablation.main([*few, n])
        assert pd.read_csv(table)["n_test"].tolist() == rows
    assert len(ablation.summary(ablation.load(table))) == 2, "nor are they averaged"
    with pytest.raises(SystemExit):
        ablation.main([*few, "60", "--csv", str(tmp_path / "new")])
    assert "new is a folder: name a file" in capsys.readouterr().err


def test_summary_gives_means_ranges_and_costs():
    rows = [dict.fromkeys(ablation.COLUMNS, 0) | {"variant": name, "seed": seed, "drop": drop, "edge_bits": None}
            for name, drops in (("best", (1.0, 2.0)), ("other", (3.0, 7.0))) for seed, drop in enumerate(drops)]
    table = ablation.summary(pd.DataFrame(rows)).set_index("variant")
    assert table.loc["best", ["drop", "low", "high", "seeds", "cost"]].tolist() == [1.5, 1.0, 2.0, 2, 0.0]
    assert table.loc["other", ["drop", "low", "high", "seeds", "cost"]].tolist() == [5.0, 3.0, 7.0, 2, 3.5]


@pytest.mark.parametrize("wrong, words", [(["--budget", "huge"], "unknown budget 'huge'"), (["-w", "1"], "not a bit width"),
                                          (["--variants", "magic"], "magic"), (["--model", "embedded/vgg"], "vgg")])
def test_wrong_arguments_are_one_line(tmp_path, capsys, wrong, words):
    with pytest.raises(SystemExit) as stop:
        ablation.main(["--model", MODEL, "--csv", str(tmp_path / "a.csv"), "--seeds", "0", *wrong])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and words in error and len(error.strip().splitlines()) == 1


def test_absent_data_are_no_wrong_argument(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("zsq_lab.data.search_folders", lambda: [tmp_path])
    with pytest.raises(SystemExit) as stop:
        ablation.main(["--model", "cifar10/resnet20", "--csv", str(tmp_path / "a.csv")])
    error = capsys.readouterr().err
    assert stop.value.code == 1 and "CIFAR-10 is not in any of these folders" in error and "--help" not in error


def test_a_table_of_another_kind_is_refused_and_kept(tmp_path, capsys):
    other = tmp_path / "a.csv"
    other.write_text("x,y\n1,2\n")
    with pytest.raises(SystemExit):
        ablation.main(["--csv", str(other)])
    assert "expected" in capsys.readouterr().err and other.read_text() == "x,y\n1,2\n"
