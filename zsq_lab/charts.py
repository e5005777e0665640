"""From a table of results to a figure and the sentence that says what it shows: accuracy against bit width, size against
drop, sensitivity of the layers, weights against activations.

Every function returns (figure, sentence); the sentence is made from the numbers and serves as alternative text
(`plots.show(*chart)`). Colours are colour-blind safe and every line has a marker of its own. Notebook 06 uses all of them.
"""
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from .plots import MARKERS

SETTING = ["model", "recipe", "weight_bits", "activation_bits", "edge_bits", "convention", "budget"]


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
    by = [column for column in ("model", "convention", "budget") if rows[column].nunique() > 1]
    names = rows["recipe"] + rows[by].astype(str).radd(", ").agg("".join, axis=1) if by else rows["recipe"]
    figure, axis = plt.subplots(figsize=(8, 4.5))
    for index, (name, line) in enumerate(rows.groupby(names, sort=False)):
        line = line.groupby("weight_bits", as_index=False)[["mean", "low", "high"]].mean()
        colour = sns.color_palette("colorblind")[index % 10]
        axis.plot(line["weight_bits"], line["mean"], marker=MARKERS[index % len(MARKERS)], color=colour, label=name)
        axis.fill_between(line["weight_bits"], line["low"], line["high"], color=colour, alpha=0.2, linewidth=0)
    if value == "drop":
        axis.set_yscale("symlog", linthresh=1)
    axis.set(xlabel="bits of weights" if any_activations else "bits of weights and activations", xticks=sorted(rows["weight_bits"].unique()),
             ylabel="drop from full precision (points)" if value == "drop" else "accuracy (%)")
    axis.legend(fontsize=8, ncols=2)
    return figure, _who_is_best(rows, names, value)


def _who_is_best(rows: pd.DataFrame, names: pd.Series, value: str) -> str:
    low = rows["weight_bits"].min()
    here = rows.assign(name=names)[rows["weight_bits"] == low].sort_values("mean", ascending=value == "drop")
    best, worst = here.iloc[0], here.iloc[-1]
    what = "loses {:.1f} points" if value == "drop" else "has {:.1f} %"
    lines, widths = names.nunique(), rows["weight_bits"].nunique()
    sentence = f"{lines} line{'s' * (lines > 1)} over {widths} width{'s' * (widths > 1)}. At {low} bits {best['name']} "
    sentence += what.format(best["mean"])
    return sentence + (f", {worst['name']} {what.format(worst['mean'])}." if len(here) > 1 else ".")


def size_against_drop(table: pd.DataFrame) -> tuple[Figure, str]:
    """Every setting as a point, kilobytes against drop, and the front of those that no other beats in both."""
    rows = over_seeds(table).sort_values(["bytes", "mean"]).reset_index(drop=True)
    front = rows[rows["mean"] < rows["mean"].cummin().shift(fill_value=np.inf)]
    figure, axis = plt.subplots(figsize=(7, 4.5))
    sns.scatterplot(rows, x=rows["bytes"] / 1000, y="mean", hue="recipe", style="recipe", palette="colorblind", s=60, ax=axis)
    axis.step(front["bytes"] / 1000, front["mean"], where="post", color="0.4", linewidth=1, label="front")
    axis.set_yscale("symlog", linthresh=1)
    axis.set(xlabel="kilobytes", ylabel="drop from full precision (points)")
    axis.legend(fontsize=8, ncols=2)
    ends = [f"{row['bytes'] / 1000:.0f} kB with {row['recipe']} ({row['mean']:.1f} points)" for _, row in
            front.iloc[[0, -1]].iterrows()]
    return figure, f"{len(rows)} settings, {len(front)} of them on the front, from {ends[0]} to {ends[1]}."


def weights_against_activations(table: pd.DataFrame, value: str = "drop") -> tuple[Figure, str]:
    """Heat map of one recipe's `value` over weight bits (rows) and activation bits (columns)."""
    grid = over_seeds(table, value).pivot_table(index="weight_bits", columns="activation_bits", values="mean")
    figure, axis = plt.subplots(figsize=(1.2 + 0.8 * grid.shape[1], 1 + 0.6 * grid.shape[0]))
    sns.heatmap(grid, annot=True, fmt=".1f", cmap="cividis_r" if value == "drop" else "cividis", ax=axis,
                cbar_kws={"label": "points" if value == "drop" else "%"})
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
