"""Figures leave the lab as small PNG bytes, with a sentence for eyes and for screen readers, and in files that hold it."""
import io

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from charts import own_settings  # noqa: F401 (a fixture of every test)

from zsq_lab import figures, plots


def test_png_is_a_picture_and_closes_the_figure():
    figure, axis = plt.subplots(figsize=(2, 1))
    axis.plot([1, 2])
    content = figures.png(figure)
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert plt.imread(io.BytesIO(content)).shape == (80, 160, 4)
    assert not plt.fignum_exists(figure.number)


def test_show_gives_the_sentence_to_eyes_and_to_screen_readers(monkeypatch, capsys):
    shown = []
    monkeypatch.setattr(figures, "display", shown.append)
    figures.show(plt.figure(figsize=(1, 1)), "Error falls by four for each bit.")
    (image,) = shown
    assert image.alt == "Error falls by four for each bit." and image.data[:4] == b"\x89PNG"
    assert capsys.readouterr().out == "Figure: Error falls by four for each bit.\n"


def test_notebooks_find_them_in_plots():
    assert plots.show is figures.show and plots.png is figures.png and plots.numbers is figures.numbers


def test_a_large_picture_keeps_its_looks_in_a_palette():
    smooth = np.random.default_rng(0).random((6, 6, 3)).repeat(40, 0).repeat(40, 1)  # 36 colours on 240x240 pixels
    grain = np.random.default_rng(1).normal(0, 0.03, smooth.shape)
    figure = plt.figure(figsize=(3, 3))
    figure.add_axes((0, 0, 1, 1)).imshow((smooth + grain).clip(0, 1), interpolation="nearest")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    content = figures.png(figure)
    assert len(content) < 0.5 * len(buffer.getvalue()) and content[25] == 3  # the colour type of PNG's header: a palette
    shown, drawn = (plt.imread(io.BytesIO(data))[..., :3] for data in (content, buffer.getvalue()))
    assert np.abs(shown - drawn).mean() < 0.03 and np.abs(shown.mean((0, 1)) - drawn.mean((0, 1))).max() < 0.01


def test_few_pixels_of_a_rare_colour_keep_it():
    """A legend beside pictures is small, and its colours are what it is there for."""
    noise = np.random.default_rng(2).random((240, 240, 3)) * [0.6, 0.8, 1.0]  # bluish: no orange anywhere
    noise[:6, :12] = orange = (0.9, 0.55, 0.0)
    figure = plt.figure(figsize=(3, 3))
    figure.add_axes((0, 0, 1, 1)).imshow(noise, interpolation="nearest")
    shown = plt.imread(io.BytesIO(figures.png(figure)))[..., :3]
    assert np.abs(shown[2, 5] - orange).max() < 0.12


def test_a_long_sentence_breaks_between_words(monkeypatch, capsys):
    monkeypatch.setattr(figures, "display", lambda image: None)
    sentence = "Left: a staircase. " * 12 + "data-free"
    figures.show(plt.figure(figsize=(1, 1)), sentence)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 2 and max(map(len, lines)) <= figures.LINE
    assert " ".join(lines) == f"Figure: {sentence}"


def test_numbers_prints_the_telling_rows_and_keeps_all(monkeypatch, capsys):
    shown = []
    monkeypatch.setattr(figures, "display", shown.append)
    table = pd.DataFrame({"error": [0.1, 0.22, 0.3]}, index=["conv1", "conv2", "fc"])
    figures.numbers(table, ["conv1", "fc"])
    printed = capsys.readouterr().out
    assert "conv1" in printed and "conv2" not in printed and "fc" in printed
    assert "all 3 rows" in shown[0].data and "conv2" in shown[0].data and "0.22" in shown[0].data
    figures.numbers(table)
    assert "conv2" in capsys.readouterr().out and len(shown) == 1


@pytest.mark.parametrize("name, start, words", [("a.png", b"\x89PNG", b"Best loses 1 point"),
                                                ("a.svg", b"<?xml", b"Best loses 1 point"), ("a.pdf", b"%PDF", None)])
def test_a_figure_is_saved_with_its_sentence(tmp_path, name, start, words):
    content = figures.save(plt.figure(figsize=(1, 1)), "Best loses 1 point", tmp_path / name).read_bytes()
    assert content.startswith(start) and (words is None or words in content)
    assert [file.name for file in tmp_path.iterdir()] == [name] and not plt.get_fignums()


def test_a_format_that_is_not_known(tmp_path):
    with pytest.raises(ValueError, match=r"a.gif: expected a name that ends in .png, .svg, .pdf"):
        figures.save(plt.figure(figsize=(1, 1)), "", tmp_path / "a.gif")
