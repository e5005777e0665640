"""Recorded results: `python -m zsq_lab record` measures a fixed list of rows and appends them to a CSV file.

Each row is one `quantize` run on the full test set and carries all that decides it (convention, bits, seed, budget,
seconds, machine). A row that the file already has is not measured again, so an interrupted run goes on where it was.
"""
import csv
import platform
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from torch import nn
from tqdm import tqdm

from .checkpoints import load_model
from .data import Dataset, find_dataset
from .evaluate import accuracy
from .lab import real_images
from .layers import QuantConfig
from .recipes import RECIPES, quantize

FILE = Path(__file__).resolve().parent.parent / "data" / "results" / "foundation.csv"
SEEDS = (0, 1, 2)
COLUMNS = ("model", "recipe", "weight_bits", "activation_bits", "edge_bits", "convention", "budget", "seed",
           "fp_accuracy", "accuracy", "drop", "seconds", "n_test", "threads", "torch", "machine")
KEY = list(COLUMNS[:8])


@dataclass(frozen=True)
class Row:
    """One measurement to be made."""

    model: str
    recipe: str
    bits: int
    budget: str
    seed: int
    convention: str = "deployable"

    def key(self) -> tuple:
        return (self.model, self.recipe, self.bits, self.bits, "", self.convention, self.budget, self.seed)


def foundation() -> Iterator[Row]:
    """The rows of `foundation.csv`, seed by seed, so that an interrupted run holds whole tables."""
    resnet, mobilenet = "cifar10/resnet20", "cifar10/mobilenetv2"
    for seed in SEEDS:
        for model in (resnet, mobilenet):
            for recipe in ("rtn-noise", "rtn-bn", "dfq", "squant", "real-ranges"):
                yield from (Row(model, recipe, bits, "standard", seed) for bits in (8, 6, 4, 3))
            if model == resnet:
                yield Row(resnet, "distilled", 4, "quick", seed)
                for recipe in ("distilled", "zeroq", "real-finetune"):
                    yield from (Row(resnet, recipe, bits, "standard", seed) for bits in (4, 3))
        yield from (Row(mobilenet, "distilled", bits, "standard", seed) for bits in (4, 8))


def record(rows: Iterable[Row], file: Path = FILE, *, limit: int | None = None, progress: bool = True) -> pd.DataFrame:
    """Measure the rows that `file` does not have yet, append each as soon as it is known, return the whole table.

    limit: how many test images to measure on, all by default. Raises ValueError for a file with other columns.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    done = set() if not file.exists() else {tuple(row) for row in _read(file)[KEY].itertuples(index=False)}
    missing = [row for row in rows if row.key() not in done]
    networks: dict[str, tuple] = {}
    for row in tqdm(missing, "rows", disable=not progress):
        if row.model not in networks:
            dataset, network = find_dataset(row.model.split("/")[0]), load_model(row.model)[0]
            networks[row.model] = dataset, network, accuracy(network, dataset.test(), dataset, limit=limit)
        measured = _measure(row, *networks[row.model], limit)
        new = not file.exists()
        with file.open("a", newline="") as stream:
            writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(measured)
    return _read(file)


def _measure(row: Row, dataset: Dataset, network: nn.Module, fp_accuracy: float, limit: int | None) -> dict:
    images = None
    if RECIPES[row.recipe].needs_images:
        images = real_images(dataset.train(), dataset, len(dataset.train()), row.seed)
    result = quantize(network, QuantConfig(row.bits, row.bits, convention=row.convention), row.recipe, seed=row.seed,
                      image_shape=dataset.image_shape, budget=row.budget, images=images)
    measured = accuracy(result.model, dataset.test(), dataset, limit=limit)
    report = result.report
    values = (*row.key(), f"{fp_accuracy:.2f}", f"{measured:.2f}", f"{fp_accuracy - measured:.2f}",
              f"{report['seconds']:.1f}", len(dataset.test().labels[:limit]), report["threads"], report["versions"]["torch"],
              f"{platform.machine()} {report['device']}")
    return dict(zip(COLUMNS, values, strict=True))


def _read(file: Path) -> pd.DataFrame:
    table = pd.read_csv(file, dtype={"edge_bits": str}, keep_default_na=False)
    if list(table.columns) != list(COLUMNS):
        raise ValueError(f"{file} has columns {list(table.columns)}, expected {list(COLUMNS)}: move it away and measure anew")
    return table


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and spread (largest minus smallest) of the drop over the seeds, and the mean time, one line a setting."""
    groups = table.groupby([c for c in KEY if c != "seed"], sort=False)
    return groups.agg(fp=("fp_accuracy", "first"), accuracy=("accuracy", "mean"), drop=("drop", "mean"),
                      spread=("drop", lambda d: d.max() - d.min()), seconds=("seconds", "mean"),
                      seeds=("seed", "count")).round(2).reset_index()
