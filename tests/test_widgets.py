"""The slider of the notebooks: moving it shows what belongs to its place, from content made beforehand."""
import ipywidgets
import pandas as pd
import pytest

from zsq_lab.widgets import accuracy_explorer, picture_slider


def slider(**more):
    return picture_slider("bits", [2, 4, 8], [b"two", b"four", b"eight"], ["2 bits", "4 bits", "8 bits"], **more)


@pytest.mark.parametrize("start", [0, 2])
def test_it_starts_where_told(start):
    control, image, text = slider(start=start).children
    assert control.index == start and image.value == [b"two", b"four", b"eight"][start]
    assert text.value == ["2 bits", "4 bits", "8 bits"][start]


def test_moving_it_changes_picture_and_sentence():
    box = slider()
    control, image, text = box.children
    for index, (picture, sentence) in enumerate([(b"two", "2 bits"), (b"four", "4 bits"), (b"eight", "8 bits")]):
        control.index = index
        assert (image.value, text.value) == (picture, sentence)
    assert control.description == "bits" and [label for label, _ in control.options] == ["2", "4", "8"]


def test_it_is_made_of_core_widgets_only_and_moves_when_released():
    box = slider()
    assert isinstance(box, ipywidgets.VBox)
    assert [type(child) for child in box.children] == [ipywidgets.SelectionSlider, ipywidgets.Image, ipywidgets.HTML]
    assert not box.children[0].continuous_update


def test_two_sliders_do_not_touch_each_other():
    first, second = slider(), slider()
    first.children[0].index = 2
    assert second.children[2].value == "2 bits"


@pytest.mark.parametrize("arguments", [([2], [b"a", b"b"], ["x"]), ([2, 3], [b"a", b"b"], ["x"]), ([], [b"a"], ["x"])])
def test_lengths_that_differ_are_named(arguments):
    with pytest.raises(ValueError, match="expected as many of each"):
        picture_slider("bits", *arguments)


def results(recipe: str, drops: dict[int, float]) -> pd.DataFrame:
    return pd.DataFrame([{"model": "m", "recipe": recipe, "weight_bits": bits, "activation_bits": bits, "edge_bits": None,
                          "size_budget": None, "convention": "deployable", "budget": "quick", "n_test": 100, "seed": 0,
                          "drop": drop, "accuracy": 90 - drop, "seconds": 1.0, "bytes": 1000 * bits}
                         for bits, drop in drops.items()])


def test_the_explorer_says_what_it_shows():
    table = pd.concat([results("best", {2: 10, 4: 0.5}), results("squant", {2: 60, 4: 3})])
    explorer = accuracy_explorer(table, own=results("best", {4: 7.5}), images={"best": b"made by best"})
    (models, recipes, choices), (figure, made) = explorer.children[0].children, explorer.children[1].children
    activations, value = choices.children
    sentence, numbers = explorer.children[2:]
    assert recipes.options == ("best", "squant", "best (yours)") and models.value == ("m",)
    assert "At 2 bits best loses 10.0 points, squant loses 60.0 points." in sentence.value
    assert bytes(made.value) == b"made by best" and bytes(figure.value).startswith(b"\x89PNG")
    recipes.value = ("best (yours)",)
    assert "At 4 bits best (yours) loses 7.5 points." in sentence.value and "7.5" in numbers.value
    assert bytes(made.value) == b"" and made.layout.display == "none"
    value.value = "accuracy"
    assert "best (yours) has 82.5 %." in sentence.value
    activations.value = 2
    assert sentence.value.startswith("Nothing was measured") and bytes(figure.value) == b"" and numbers.value == ""


def test_the_explorer_needs_results():
    with pytest.raises(ValueError, match="no results to explore.*sweep"):
        accuracy_explorer(results("best", {}))
