"""From tensors and tables of results to figures, each with the sentence that says what it shows.

The functions of a table or of layers return (figure, sentence); the sentence is made from the numbers and serves as
alternative text: `show(*chart)` displays both, `save(*chart, path)` writes both, as vectors or pixels. Colours are
colour-blind safe and every line has a marker of its own. Notebook 06 uses all of them.
"""
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure
from torch import Tensor

from . import results
from .figures import numbers, png, save, show

__all__ = ["MARKERS", "SETTING", "accuracy_against_bits", "image_grid", "numbers", "over_seeds", "png", "save",
           "sensitivity_of_layers", "show", "size_against_drop", "statistics_of_layers", "use_style",
           "weights_against_activations"]

# Beside the colours: nobody has to tell lines apart by colour. All filled, so that they can be mixed in one chart.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "p", "h", "d", "8")
SETTING = list(results.SETTING)


def use_style() -> None:
    """The lab's look: colour-blind palette, thin grid, readable sizes."""
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind",
                  rc={"figure.dpi": 80, "figure.constrained_layout.use": True, "axes.titlesize": "medium"})


def image_grid(images: Tensor, *, columns: int = 8, titles: list[str] | None = None, scale: float = 1.0) -> Figure:
    """A figure of images [N, 3, H, W] with values in 0..1 (see Dataset.denormalise), row by row."""
    rows = -(-len(images) // columns)
    height = images.shape[2] / images.shape[3] + (0.25 if titles else 0)
    figure, axes = plt.subplots(rows, columns, figsize=(columns * scale, rows * height * scale), squeeze=False)
    for index, axis in enumerate(axes.flat):
        axis.axis("off")
        if index < len(images):
            axis.imshow(np.asarray(images[index].detach().cpu().permute(1, 2, 0)), interpolation="nearest")
            if titles:
                axis.set_title(titles[index], fontsize=9)
    return figure


def over_seeds(table: pd.DataFrame, value: str = "drop") -> pd.DataFrame:
    """One row a setting: mean, smallest and largest `value` over the seeds, mean seconds and bytes, number of seeds."""
    groups = table.groupby(SETTING, dropna=False, sort=False)
    return groups.agg(mean=(value, "mean"), low=(value, "min"), high=(value, "max"), seconds=("seconds", "mean"),
                      bytes=("bytes", "mean"), seeds=("seed", "nunique")).reset_index()


def accuracy_against_bits(table: pd.DataFrame, value: str = "drop", *, any_activations: bool = False) -> tuple[Figure, str]:
    """One line a recipe (and model, where there are several) over the weight bits, with the band between the seeds.

    value: "drop" in points or "accuracy" in percent. Rows with activation bits other than the weight bits are left out,
    unless `any_activations`. Raises ValueError where no row is left.
    """
    rows = over_seeds(table if any_activations else table[table["weight_bits"] == table["activation_bits"]], value)
    if rows.empty:
        raise ValueError("no rows with as many activation bits as weight bits: measure some with `python -m zsq_lab sweep`")
    names = _line_names(rows)
    figure, axis = plt.subplots(figsize=(8, 4.5))
    for index, (name, line) in enumerate(rows.groupby(names, sort=False)):
        line = line.groupby("weight_bits", as_index=False)[["mean", "low", "high"]].mean()
        colour = sns.color_palette("colorblind")[index % 10]
        axis.plot(line["weight_bits"], line["mean"], marker=MARKERS[index % len(MARKERS)], color=colour, label=name)
        axis.fill_between(line["weight_bits"], line["low"], line["high"], color=colour, alpha=0.2, linewidth=0)
    if value == "drop":
        _points(axis)
    axis.set(xlabel="bits of weights" if any_activations else "bits of weights and activations",
             xticks=sorted(rows["weight_bits"].unique()),
             ylabel="drop from full precision (points)" if value == "drop" else "accuracy (%)")
    axis.legend(fontsize=8, ncols=2)
    return figure, _who_is_best(rows, names, value)


def _points(axis: plt.Axes) -> None:
    """A scale on which a tenth of a point and fifty points can both be read."""
    axis.set_yscale("symlog", linthresh=1)
    axis.yaxis.set_major_formatter("{x:g}")


def _line_names(rows: pd.DataFrame) -> pd.Series:
    """The recipe, and whatever else tells the lines apart."""
    names = rows["recipe"].copy()
    for column in ("model", "convention", "budget"):
        names += ", " + rows[column].astype(str) if rows[column].nunique() > 1 else ""
    names += rows["edge_bits"].map(lambda bits: "" if pd.isna(bits) else f", {bits:.0f}-bit ends")
    names += rows["size_budget"].map(lambda share: "" if pd.isna(share) else ", mixed")
    several = rows.groupby(names)["n_test"].transform("nunique") > 1  # a trial on a few test images beside the whole test
    return names + rows["n_test"].map(", {:.0f} images".format).where(several, "")


def _who_is_best(rows: pd.DataFrame, names: pd.Series, value: str) -> str:
    """The sentence below the curve: who ends where, and at which width the lines lie furthest apart."""
    rows, low = rows.assign(name=names), rows["weight_bits"].min()
    lines, widths = names.nunique(), rows["weight_bits"].nunique()
    what = "loses {:.1f} points" if value == "drop" else "has {:.1f} %"

    def ends(bits: int, joined: str) -> str:
        here = rows[rows["weight_bits"] == bits].sort_values("mean", ascending=value == "drop")
        told = [f"{row['name']} {what.format(row['mean'])}" for _, row in here.iloc[[0, -1]].iterrows()]
        return joined.join(told[:len(here)])

    sentence = f"{lines} line{'s' * (lines > 1)} over {widths} width{'s' * (widths > 1)}. At {low} bits {ends(low, ', ')}."
    apart = rows.groupby("weight_bits")["mean"].agg(lambda means: means.max() - means.min()).idxmax()
    if apart == low or lines == 1:
        return sentence
    return f"{sentence} They lie furthest apart at {apart} bits, where {ends(apart, ' and ')}."


def size_against_drop(table: pd.DataFrame) -> tuple[Figure, str]:
    """Every setting as a point, kilobytes against drop, and the front of those that no other beats in both."""
    rows = over_seeds(table).sort_values(["bytes", "mean"]).reset_index(drop=True)
    front = rows[rows["mean"] < rows["mean"].cummin().shift(fill_value=np.inf)]
    figure, axis = plt.subplots(figsize=(7, 4.5))
    markers = {recipe: MARKERS[index % len(MARKERS)] for index, recipe in enumerate(rows["recipe"].unique())}
    sns.scatterplot(rows, x=rows["bytes"] / 1000, y="mean", hue="recipe", style="recipe", palette="colorblind",
                    markers=markers, s=90, linewidth=0.3, ax=axis)
    axis.step(front["bytes"] / 1000, front["mean"], where="post", color="0.4", linewidth=1, label="front")
    _points(axis)
    axis.set(xlabel="kilobytes", ylabel="drop from full precision (points)")
    axis.legend(fontsize=8, ncols=2)
    ends = [f"{row['bytes'] / 1000:.0f} kB with {row['recipe']} ({row['mean']:.1f} points)" for _, row in
            front.iloc[[0, -1]].iterrows()]
    return figure, f"{len(rows)} settings, {len(front)} of them on the front, from {ends[0]} to {ends[1]}."


def weights_against_activations(table: pd.DataFrame, value: str = "drop") -> tuple[Figure, str]:
    """Heat map of one recipe's `value` over weight bits (rows) and activation bits (columns)."""
    grid = over_seeds(table, value).pivot_table(index="weight_bits", columns="activation_bits", values="mean")
    figure, axis = plt.subplots(figsize=(1.2 + 0.8 * grid.shape[1], 1 + 0.6 * grid.shape[0]))
    norm = SymLogNorm(1, vmin=0, vmax=max(1, grid.max().max())) if value == "drop" else None  # as the curve's scale
    sns.heatmap(grid, annot=True, fmt=".1f", cmap="cividis_r" if value == "drop" else "cividis", norm=norm, ax=axis,
                cbar_kws={"label": "points" if value == "drop" else "%", "format": "{x:g}"})
    axis.set(xlabel="activation bits", ylabel="weight bits")
    low = grid.index.min()
    return figure, (f"{value} over {grid.shape[0]} weight and {grid.shape[1]} activation widths: at {low} weight bits from "
                    f"{grid.loc[low].min():.1f} to {grid.loc[low].max():.1f} over the activation widths.")


def sensitivity_of_layers(errors: np.ndarray, names: list[str], widths: tuple[int, ...]) -> tuple[Figure, str]:
    """Error [L, W] of the outputs when one layer's weights alone have a width, one line a width over the layers."""
    errors = np.asarray(errors)
    figure, axis = plt.subplots(figsize=(9, 4))
    for index, bits in enumerate(widths):
        axis.plot(range(len(names)), errors[:, index], marker=MARKERS[index % len(MARKERS)],
                  color=sns.color_palette("colorblind")[index % 10], label=f"{bits} bits", linewidth=1)
    axis.set_yscale("log")
    axis.set(ylabel="error of the output", xticks=range(len(names)))
    axis.set_xticklabels(names, rotation=90, fontsize=7)
    axis.legend(fontsize=8, ncols=3)
    worst, best = (names[int(pick(errors[:, 0]))] for pick in (np.argmax, np.argmin))
    return figure, f"{len(names)} layers: at {widths[0]} bits {worst} hurts the output most and {best} least."


def statistics_of_layers(distances: dict[str, Tensor], names: list[str]) -> tuple[Figure, str]:
    """Distance from the statistics that BatchNorm remembers, [L] for each kind of images, over the layers."""
    figure, axis = plt.subplots(figsize=(9, 4))
    for index, (kind, values) in enumerate(distances.items()):
        axis.plot(range(len(names)), np.asarray(values), marker=MARKERS[index % len(MARKERS)], linewidth=1, label=kind,
                  color=sns.color_palette("colorblind")[index % 10])
    axis.set_yscale("log")
    axis.set(ylabel="distance from the statistics", xticks=range(len(names)))
    axis.set_xticklabels(names, rotation=90, fontsize=7)
    axis.legend(fontsize=8)
    means = ", ".join(f"{float(np.mean(np.asarray(values))):.2g} for {kind}" for kind, values in distances.items())
    return figure, f"Mean distance from the remembered statistics over {len(names)} layers: {means}."
