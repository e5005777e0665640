"""How the lab's figures look, and the two things that every figure needs: a sentence, and alternative text."""
import io

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from IPython.display import Image, display
from matplotlib.figure import Figure
from torch import Tensor

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")  # beside the colours: nobody has to tell lines apart by colour


def use_style() -> None:
    """The lab's look: colour-blind palette, thin grid, readable sizes."""
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind",
                  rc={"figure.dpi": 80, "figure.constrained_layout.use": True, "axes.titlesize": "medium"})


def png(figure: Figure) -> bytes:
    """The figure as PNG bytes; closes it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    plt.close(figure)
    return buffer.getvalue()


def show(figure: Figure, sentence: str) -> None:
    """Display a figure with `sentence` as its alternative text, and print the sentence below; closes the figure."""
    display(Image(data=png(figure), format="png", alt=sentence))
    print(f"Figure: {sentence}")


def image_grid(images: Tensor, *, columns: int = 8, titles: list[str] | None = None, scale: float = 1.0) -> Figure:
    """A figure of images [N, 3, H, W] with values in 0..1 (see Dataset.denormalise), row by row."""
    rows = -(-len(images) // columns)
    height = 1.25 if titles else 1.0
    figure, axes = plt.subplots(rows, columns, figsize=(columns * scale, rows * height * scale), squeeze=False)
    for index, axis in enumerate(axes.flat):
        axis.axis("off")
        if index < len(images):
            axis.imshow(np.asarray(images[index].detach().cpu().permute(1, 2, 0)), interpolation="nearest")
            if titles:
                axis.set_title(titles[index], fontsize=9)
    return figure
