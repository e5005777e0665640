"""Widgets of the notebooks: sliders over pictures and sentences that are all made beforehand, so that moving is instant.

Core ipywidgets updated by `observe`: the state that a slider sets can be read, tested and compared.
"""
from collections.abc import Sequence
from functools import lru_cache

import ipywidgets as widgets
import pandas as pd

from .plots import accuracy_against_bits, over_seeds, png

SAME = "as the weights"


def picture_slider(label: str, options: Sequence, pictures: Sequence[bytes], sentences: Sequence[str],
                   start: int = 0) -> widgets.VBox:
    """A slider over `options` that shows one of `pictures` (PNG bytes) and, below it, one of `sentences`.

    All three have the same length; `start` is the index shown first. Children, in order: slider, image, text.
    Raises ValueError when the lengths differ.
    """
    if not len(options) == len(pictures) == len(sentences):
        raise ValueError(f"got {len(options)} options, {len(pictures)} pictures and {len(sentences)} sentences: "
                         "expected as many of each")
    slider = widgets.SelectionSlider(options=[(str(option), i) for i, option in enumerate(options)], value=start,
                                     description=label, continuous_update=False, style={"description_width": "initial"},
                                     layout=widgets.Layout(width="480px"))
    image = widgets.Image(value=pictures[start], format="png")
    text = widgets.HTML(value=sentences[start])
    image.layout.max_width = "100%"

    def update(change) -> None:
        image.value, text.value = pictures[change["new"]], sentences[change["new"]]

    slider.observe(update, names="value")
    return widgets.VBox([slider, image, text])


def accuracy_explorer(table: pd.DataFrame, own: pd.DataFrame | None = None,
                      images: dict[str, bytes] | None = None) -> widgets.VBox:
    """A widget over a table of `results.COLUMNS`; own: the reader's results, shown as "recipe (yours)".

    images: PNG bytes of the images that a recipe made, by recipe. Children, in order: the choices (models, recipes,
    activation bits, drop or accuracy), the figure beside the images, the sentence, the numbers.
    Raises ValueError for an empty table.
    """
    if own is not None and len(own):
        table = pd.concat([table, own.assign(recipe=own["recipe"] + " (yours)")], ignore_index=True)
    if table.empty:
        raise ValueError("no results to explore: measure some with `python -m zsq_lab sweep`")
    table, images = table.copy(), images or {}
    models, recipes = (list(dict.fromkeys(table[column])) for column in ("model", "recipe"))
    acts = [SAME, *sorted(int(bits) for bits in table["activation_bits"].unique())]
    best_known = table["model"].value_counts().idxmax()  # the model that most was measured on
    model = widgets.SelectMultiple(options=models, value=[best_known], description="models", rows=min(4, len(models) + 1))
    recipe = widgets.SelectMultiple(options=recipes, value=recipes[:3], description="recipes",
                                    rows=min(8, len(recipes) + 1))
    act = widgets.Dropdown(options=acts, value=SAME, description="activations")
    value = widgets.ToggleButtons(options=["drop", "accuracy"], value="drop", description="show")
    figure, made = widgets.Image(format="png"), widgets.Image(format="png")
    figure.layout.max_width, made.layout.max_width = "70%", "28%"
    sentence, numbers = widgets.HTML(), widgets.HTML()

    @lru_cache(maxsize=64)
    def look(models: tuple, recipes: tuple, act, value: str) -> tuple[bytes, str, str]:
        rows = table[table["model"].isin(models) & table["recipe"].isin(recipes)]
        rows = rows[rows["activation_bits"] == (rows["weight_bits"] if act == SAME else act)]
        if rows.empty:
            return b"", "Nothing was measured with these settings: choose others, or measure them.", ""
        chart, words = accuracy_against_bits(rows, value, any_activations=True)
        means = over_seeds(rows, value)
        means["spread"], means["kB"] = means["high"] - means["low"], means["bytes"] / 1000
        shown = means[["model", "recipe", "weight_bits", "activation_bits", "convention", "budget", "mean", "spread", "seeds",
                       "kB", "seconds"]].rename(columns={"mean": value})
        return png(chart), words, shown.to_html(index=False, float_format=lambda x: f"{x:.1f}", border=0)

    def update(_change=None) -> None:
        figure.value, sentence.value, numbers.value = look(model.value, recipe.value, act.value, value.value)
        with_images = next((name for name in recipe.value if name in images), None)
        made.value = images[with_images] if with_images else b""
        made.layout.display = None if with_images else "none"

    for control in (model, recipe, act, value):
        control.observe(update, names="value")
    update()
    return widgets.VBox([widgets.HBox([model, recipe, widgets.VBox([act, value])]), widgets.HBox([figure, made]), sentence,
                         numbers])
