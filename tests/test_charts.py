"""Charts: the numbers in the sentence are those of the table, the lines those of the settings."""
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from zsq_lab import charts

DROPS = {("best", 2): (10.0, 12.0), ("best", 4): (0.2, 0.4), ("squant", 2): (60.0, 70.0), ("squant", 4): (3.0, 3.5)}


@pytest.fixture
def table() -> pd.DataFrame:
    return pd.DataFrame([
        {"model": "m", "recipe": recipe, "weight_bits": bits, "activation_bits": bits, "edge_bits": None,
         "convention": "deployable", "budget": "quick", "seed": seed, "drop": drop, "accuracy": 92 - drop, "seconds": 2.0,
         "bytes": 1000 * bits} for (recipe, bits), drops in DROPS.items() for seed, drop in enumerate(drops)])


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def test_seeds_become_a_mean_and_a_band(table):
    rows = charts.over_seeds(table).set_index(["recipe", "weight_bits"])
    assert rows.loc[("best", 2), ["mean", "low", "high", "seeds"]].tolist() == [11, 10, 12, 2]
    assert len(rows) == 4


def test_accuracy_against_bits(table):
    figure, sentence = charts.accuracy_against_bits(table)
    axis = figure.axes[0]
    lines = {line.get_label(): line.get_ydata().tolist() for line in axis.lines}
    assert lines == {"best": [11, pytest.approx(0.3)], "squant": [65, 3.25]}
    assert len({line.get_marker() for line in axis.lines}) == 2 and len(axis.collections) == 2
    assert sentence == "2 lines over 2 widths. At 2 bits best loses 11.0 points, squant loses 65.0 points."
    assert "best has 81.0 %" in charts.accuracy_against_bits(table, "accuracy")[1]
    with pytest.raises(ValueError, match="no rows.*sweep"):
        charts.accuracy_against_bits(table.assign(activation_bits=8))
    charts.accuracy_against_bits(table.assign(activation_bits=8), any_activations=True)


def test_several_models_are_told_apart(table):
    both = pd.concat([table, table.assign(model="n")])
    figure, sentence = charts.accuracy_against_bits(both)
    assert len(figure.axes[0].lines) == 4 and sentence.startswith("4 lines")
    assert figure.axes[0].lines[0].get_label() == "best, m"


def test_size_against_drop(table):
    _, sentence = charts.size_against_drop(table)
    assert sentence == ("4 settings, 2 of them on the front, from 2 kB with best (11.0 points) to 4 kB with best "
                        "(0.3 points).")


def test_weights_against_activations(table):
    other = table.assign(activation_bits=8, drop=table["drop"] / 2)
    _, sentence = charts.weights_against_activations(pd.concat([table, other]).query("recipe == 'best'"))
    assert sentence == ("drop over 2 weight and 3 activation widths: at 2 weight bits from 5.5 to 11.0 over the activation "
                        "widths.")


def test_sensitivity_of_layers():
    errors = np.array([[3.0, 1.0], [9.0, 0.1], [1.0, 0.5]])
    figure, sentence = charts.sensitivity_of_layers(errors, ["a", "b", "c"], (2, 4))
    assert sentence == "3 layers: at 2 bits b hurts the output most and c least."
    assert [line.get_label() for line in figure.axes[0].lines] == ["2 bits", "4 bits"]
