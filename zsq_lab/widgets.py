"""Widgets of the notebooks: sliders over pictures and sentences that are all made beforehand, so that moving is instant.

Core ipywidgets updated by `observe`: the state that a slider sets can be read, tested and compared.
"""
from collections.abc import Sequence

import ipywidgets as widgets


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
