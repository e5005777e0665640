"""Figures: PNG bytes, alternative text with the same sentence below, and a grid that shows each image in its place."""
import io

import matplotlib
import numpy as np
import pytest
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  the backend is chosen first

from zsq_lab import plots  # noqa: E402


@pytest.fixture(autouse=True)
def own_settings():
    with matplotlib.rc_context():
        yield
    assert plt.get_fignums() == [], "a figure was left open"


def test_png_is_a_picture_and_closes_the_figure():
    figure, axis = plt.subplots(figsize=(2, 1))
    axis.plot([1, 2])
    content = plots.png(figure)
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert plt.imread(io.BytesIO(content)).shape == (80, 160, 4)
    assert not plt.fignum_exists(figure.number)


def test_show_gives_the_sentence_to_eyes_and_to_screen_readers(monkeypatch, capsys):
    shown = []
    monkeypatch.setattr(plots, "display", shown.append)
    plots.show(plt.figure(figsize=(1, 1)), "Error falls by four for each bit.")
    (image,) = shown
    assert image.alt == "Error falls by four for each bit." and image.data[:4] == b"\x89PNG"
    assert capsys.readouterr().out == "Figure: Error falls by four for each bit.\n"


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
