"""The slider of the notebooks: moving it shows what belongs to its place, from content made beforehand."""
import ipywidgets
import pytest

from zsq_lab.widgets import picture_slider


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
