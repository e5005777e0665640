"""Figures: a grid that shows each image in its place; the numbers of a chart's sentence are those of the table, its lines
those of the settings."""
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from charts import own_settings  # noqa: F401 (a fixture of every test)

from zsq_lab import plots


def test_grid_shows_each_image_in_its_place():
    images = torch.rand(5, 3, 4, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    figure = plots.image_grid(images, columns=3, titles=list("abcde"))
    assert len(figure.axes) == 6
    for index, image in enumerate(images):
        (drawn,) = figure.axes[index].images
        np.testing.assert_array_equal(np.asarray(drawn.get_array()), image.detach().permute(1, 2, 0).numpy())
        assert figure.axes[index].get_title() == "abcde"[index]
    assert not figure.axes[5].images and not any(axis.axison for axis in figure.axes)
    plt.close(figure)


def test_style_is_colour_blind_safe_and_lines_have_markers():
    plots.use_style()
    colours = plt.rcParams["axes.prop_cycle"].by_key()["color"]
    assert len(set(plots.MARKERS)) == len(plots.MARKERS) >= 6
    import seaborn
    expected = seaborn.color_palette("colorblind")
    np.testing.assert_allclose([matplotlib.colors.to_rgb(c) for c in colours[:len(expected)]], expected, atol=1 / 255)


DROPS = {("best", 2): (10.0, 12.0), ("best", 4): (0.2, 0.4), ("squant", 2): (60.0, 70.0), ("squant", 4): (3.0, 3.5)}


@pytest.fixture
def table() -> pd.DataFrame:
    return pd.DataFrame([
        {"model": "m", "recipe": recipe, "weight_bits": bits, "activation_bits": bits, "edge_bits": None, "size_budget": None,
         "convention": "deployable", "budget": "quick", "n_test": 100, "seed": seed, "drop": drop, "accuracy": 92 - drop,
         "seconds": 2.0, "bytes": 1000 * bits} for (recipe, bits), drops in DROPS.items() for seed, drop in enumerate(drops)])


def test_seeds_become_a_mean_and_a_band(table):
    rows = plots.over_seeds(table).set_index(["recipe", "weight_bits"])
    assert rows.loc[("best", 2), ["mean", "low", "high", "seeds"]].tolist() == [11, 10, 12, 2]
    assert len(rows) == 4


def test_accuracy_against_bits(table):
    figure, sentence = plots.accuracy_against_bits(table)
    axis = figure.axes[0]
    lines = {line.get_label(): line.get_ydata().tolist() for line in axis.lines}
    assert lines == {"best": [11, pytest.approx(0.3)], "squant": [65, 3.25]}
    assert len({line.get_marker() for line in axis.lines}) == 2 and len(axis.collections) == 2
    assert sentence == "2 lines over 2 widths. At 2 bits best loses 11.0 points, squant loses 65.0 points."
    worse = plots.accuracy_against_bits(table.replace({"drop": {3.0: 90.0, 3.5: 92.0}}))[1]
    assert worse.endswith("They lie furthest apart at 4 bits, where best loses 0.3 points and squant loses 91.0 points.")
    assert "best has 81.0 %" in plots.accuracy_against_bits(table, "accuracy")[1]
    with pytest.raises(ValueError, match="no rows.*sweep"):
        plots.accuracy_against_bits(table.assign(activation_bits=8))
    plots.accuracy_against_bits(table.assign(activation_bits=8), any_activations=True)


def test_several_models_are_told_apart(table):
    both = pd.concat([table, table.assign(model="n")])
    figure, sentence = plots.accuracy_against_bits(both)
    assert len(figure.axes[0].lines) == 4 and sentence.startswith("4 lines")
    assert figure.axes[0].lines[0].get_label() == "best, m"


def test_a_trial_on_a_few_test_images_is_no_seed_of_the_whole_test(table):
    trial = table.assign(n_test=20, drop=90.0)
    rows = plots.over_seeds(pd.concat([table, trial])).set_index(["recipe", "weight_bits", "n_test"])
    assert rows.loc[("best", 2, 100), "mean"] == 11 and rows.loc[("best", 2, 20), "mean"] == 90
    figure, sentence = plots.accuracy_against_bits(pd.concat([table, trial.query("recipe == 'best'")]))
    assert [line.get_label() for line in figure.axes[0].lines] == ["best, 100 images", "squant", "best, 20 images"]
    assert "best, 100 images loses 11.0 points, best, 20 images loses 90.0 points" in sentence


def test_more_recipes_than_markers(table):
    many = pd.concat([table.assign(recipe=f"recipe {i}", drop=i, bytes=1000 - i) for i in range(len(plots.MARKERS) + 2)])
    figure, sentence = plots.size_against_drop(many)
    assert sentence.startswith("32 settings, 16 of them on the front")
    assert len(figure.axes[0].get_legend().texts) == 17, "each recipe, and the front"


def test_size_against_drop(table):
    _, sentence = plots.size_against_drop(table)
    assert sentence == ("4 settings, 2 of them on the front, from 2 kB with best (11.0 points) to 4 kB with best "
                        "(0.3 points).")


def test_weights_against_activations(table):
    other = table.assign(activation_bits=8, drop=table["drop"] / 2)
    _, sentence = plots.weights_against_activations(pd.concat([table, other]).query("recipe == 'best'"))
    assert sentence == ("drop over 2 weight and 3 activation widths: at 2 weight bits from 5.5 to 11.0 over the activation "
                        "widths.")


def test_sensitivity_of_layers():
    errors = np.array([[3.0, 1.0], [9.0, 0.1], [1.0, 0.5]])
    figure, sentence = plots.sensitivity_of_layers(errors, ["a", "b", "c"], (2, 4))
    assert sentence == "3 layers: at 2 bits b hurts the output most and c least."
    assert [line.get_label() for line in figure.axes[0].lines] == ["2 bits", "4 bits"]


def test_statistics_of_layers():
    figure, sentence = plots.statistics_of_layers({"noise": torch.tensor([1.0, 3.0]), "images": [0.1, 0.3]}, ["a", "b"])
    assert sentence == "Mean distance from the remembered statistics over 2 layers: 2 for noise, 0.2 for images."
    assert [line.get_label() for line in figure.axes[0].lines] == ["noise", "images"]


def test_ends_of_their_own_and_mixed_precision_are_lines_of_their_own(table):
    more = [table, table.assign(edge_bits=8.0), table.assign(size_budget=0.125)]
    figure, _ = plots.accuracy_against_bits(pd.concat(more).query("recipe == 'best'"))
    assert [line.get_label() for line in figure.axes[0].lines] == ["best", "best, 8-bit ends", "best, mixed"]
