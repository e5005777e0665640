"""How a figure leaves the lab: as PNG bytes, on the screen with a sentence for eyes and for screen readers, in a file.

Every notebook shows its figures through `show` and long tables through `numbers`; `plots` draws what they show.
"""
import io
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import HTML, Image, display
from matplotlib.figure import Figure
from PIL import Image as Picture

from .whole_file import whole

LINE = 96  # characters that fit on a line of a notebook's page; longer lines break in the middle of a word
LARGE = 60_000  # bytes from which a figure is worth a palette: pictures, hardly ever charts

# Where each format keeps the words that describe a figure, and the date that would make two equal figures differ.
WORDS = {".png": "Description", ".svg": "Description", ".pdf": "Subject"}
DATES = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}


def png(figure: Figure) -> bytes:
    """The figure as PNG bytes, in 256 colours of its own where that saves much; closes it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    plt.close(figure)
    if buffer.tell() < LARGE:
        return buffer.getvalue()
    smaller = io.BytesIO()
    with Picture.open(buffer) as picture:
        # colours far apart, not the most frequent ones: a legend is a few pixels, and must look like what it explains
        palette = picture.convert("RGB").quantize(256, Picture.Quantize.MAXCOVERAGE, dither=Picture.Dither.NONE)
        palette.save(smaller, format="png", optimize=True)
    return min(buffer.getvalue(), smaller.getvalue(), key=len)


def show(figure: Figure, sentence: str) -> None:
    """Display a figure with `sentence` as its alternative text, and print the sentence below; closes the figure."""
    display(Image(data=png(figure), format="png", alt=sentence))
    print(textwrap.fill(f"Figure: {sentence}", LINE, break_long_words=False, break_on_hyphens=False))


def numbers(table: pd.DataFrame, telling: list | None = None) -> None:
    """Print the `telling` rows (labels of the index; None: all), and put the whole table behind a line that opens."""
    print((table if telling is None else table.loc[telling]).to_string())
    if telling is not None and len(telling) < len(table):
        display(HTML(f"<details><summary>all {len(table)} rows</summary>{table.to_html(border=0)}</details>"))


def save(figure: Figure, sentence: str, path: Path | str) -> Path:
    """Write a figure with its sentence inside: .svg or .pdf (vectors) or .png (pixels); closes the figure.

    Raises ValueError for any other ending.
    """
    path = Path(path)
    if path.suffix not in WORDS:
        raise ValueError(f"{path.name}: expected a name that ends in {', '.join(WORDS)}")
    try:
        with whole(path) as partial:
            figure.savefig(partial, format=path.suffix[1:], dpi=200,
                           metadata={WORDS[path.suffix]: sentence, **DATES[path.suffix]})
    finally:
        plt.close(figure)
    return path
