"""One result, one file: what was measured, under which conditions, keyed by everything that decides the number.

An `Item` is one run of `quantize` on the test set. Its file is named by a digest of its settings, of the code that its
recipe runs through and of the network's weights, so that a result is found again exactly as long as it holds. Files are
written atomically; a damaged or foreign one is named and skipped, never trusted.
"""
import hashlib
import json
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pandas as pd

from .checkpoints import checkpoint_path
from .code_version import code_version
from .image_folder import find_images
from .imagenet_models import fetched, is_imagenet, weights_file
from .tasks import task_of
from .transfer import disk_errors
from .whole_file import whole

ON_IMAGENET = ("imagenet_evaluate", "efficientnet_lite")  # files that measure networks of ImageNet
FOLDER = Path(__file__).resolve().parent.parent / "data" / "results"
COLUMNS = ("model", "recipe", "weight_bits", "activation_bits", "edge_bits", "size_budget", "convention", "budget", "seed",
           "fp_accuracy", "accuracy", "drop", "seconds", "bytes", "n_test", "threads", "torch", "machine")
SETTING = ("model", "recipe", "weight_bits", "activation_bits", "edge_bits", "size_budget", "convention", "budget", "n_test")


@dataclass(frozen=True)
class Item:
    """One measurement: a network, a recipe and its settings.

    n_test: the first so many test images, None for all. size_budget: mixed precision, the weights' share of their size
    in 32-bit floats; weight_bits is then the average that it allows, rounded (`Item.mixed`).
    """

    model: str
    recipe: str
    weight_bits: int
    activation_bits: int
    edge_bits: int | None = None
    convention: str = "deployable"
    budget: str = "standard"
    seed: int = 0
    n_test: int | None = None
    size_budget: float | None = None

    @classmethod
    def mixed(cls, model: str, recipe: str, size_budget: float, activation_bits: int, **more) -> "Item":
        """An item of mixed precision: each layer gets its own weight bits."""
        return cls(model, recipe, min(16, max(2, round(32 * size_budget))), activation_bits, size_budget=size_budget, **more)

    def digest(self) -> str:
        """16 hex digits that name the result's file."""
        reads = ON_IMAGENET if is_imagenet(self.model) else task_of(self.model).reads
        decides = [vars(self), code_version(self.recipe, reads), weights_version(self.model)]
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]

    def group(self) -> tuple:
        """Items of one group share images and generators: only their widths differ."""
        return self.model, self.recipe, self.convention, self.budget, self.seed

    def __str__(self) -> str:
        edges = f" edges {self.edge_bits}" if self.edge_bits else ""
        edges += f" mixed in {self.size_budget}" if self.size_budget else ""
        return (f"{self.model} {self.recipe} W{self.weight_bits}A{self.activation_bits}{edges} {self.convention} "
                f"{self.budget} seed {self.seed}")


@cache
def weights_version(model: str) -> str:
    """Digest of a network's file; for ImageNet's also of the list of images that it is measured on.

    Weights of torchvision are downloaded where they are absent: once, before the workers of a sweep want them.
    """
    if is_imagenet(model):
        folder = find_images()
        measured_on = "\n".join(f"{path.parent.name}/{path.name}" for path in folder.files) if folder else ""
        return hashlib.sha256(fetched(model).read_bytes() + measured_on.encode()).hexdigest()[:16]
    return hashlib.sha256(checkpoint_path(model).read_bytes()).hexdigest()[:16]


def write(folder: Path, item: Item, measured: dict) -> Path:
    """Write a result's file. Raises DiskError, which names it, where that cannot be done."""
    file = folder / f"{item.digest()}.json"
    write_text(file, json.dumps({"item": vars(item), "measured": measured}, indent=1))
    return file


def write_text(file: Path, text: str) -> None:
    """Write a file atomically: a reader sees all of it or nothing. Raises DiskError, which names it."""
    with disk_errors(file), whole(file) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def read(file: Path) -> tuple[Item, dict] | None:
    """The item in a result's file and its row (all of COLUMNS); None, with a warning that names the file, if damaged."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        row = vars(item := Item(**content["item"])) | content["measured"]
        return item, {column: row[column] for column in COLUMNS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        _skip(file, f"it is no result of this lab ({type(error).__name__}: {error})")
        return None


def done(folder: Path, item: Item) -> bool:
    """Whether the item has a sound result in the folder."""
    file = folder / f"{item.digest()}.json"
    found = read(file) if file.exists() else None
    if found and found[0] != item:
        _skip(file, f"it holds another item ({found[0]})")
    return found is not None and found[0] == item


def load_measured(folder: Path) -> pd.DataFrame:
    """The results in a folder's JSON files that hold for the present code and weights, as a table with COLUMNS.

    What does not hold is said in a warning.
    """
    found = {file: content for file in sorted(folder.glob("*.json")) if (content := read(file))}
    rows = [row for file, (item, row) in found.items() if _holds(file, item)]
    if len(rows) < len(found):
        warnings.warn(f"{folder}: {len(found) - len(rows)} results of other code or weights are left out", stacklevel=3)
    return _table(rows)


def load(path: Path = FOLDER) -> pd.DataFrame:
    """The results of a folder, measured (JSON) and recorded (CSV), or of one CSV file, as one table with COLUMNS.

    What is measured at a setting counts, and not what a table says of it, which may be of older code.
    Raises ValueError for a CSV file with other columns; in a folder it is named and skipped.
    """
    path = Path(path)
    if not path.is_dir():
        return _read_csv(path)
    tables = [load_measured(path)]
    own = pd.MultiIndex.from_frame(tables[0][list(SETTING)])
    for file in sorted(path.glob("*.csv")):
        try:
            table = _read_csv(file)
        except ValueError as error:
            _skip(file, str(error))
            continue
        tables.append(table[~pd.MultiIndex.from_frame(table[list(SETTING)]).isin(own)])
    tables = [table for table in tables if len(table)] or tables[:1]
    return pd.concat(tables).drop_duplicates(ignore_index=True)  # one table may repeat another


def _holds(file: Path, item: Item) -> bool:
    try:
        here = not is_imagenet(item.model) or weights_file(item.model).is_file()  # to read a table nothing is downloaded
        return here and file.stem == item.digest()
    except (OSError, ValueError):  # a recipe or a network that this lab does not have
        return False


def _skip(file: Path, reason: str) -> None:
    warnings.warn(f"{file} is skipped, {reason}: delete it or move it away, and measure anew", stacklevel=3)


def _read_csv(file: Path) -> pd.DataFrame:
    table = pd.read_csv(file, dtype={"torch": str})  # a version is no number
    if list(table.columns) != list(COLUMNS):
        raise ValueError(f"{file} has columns {list(table.columns)}, expected {list(COLUMNS)}: move it away and measure anew")
    return _table(table)


def _table(rows: list[dict] | pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(
        {"edge_bits": float, "size_budget": float})  # NaN where all layers have the same bits


def save_csv(table: pd.DataFrame, file: Path) -> None:
    """Write a table with COLUMNS in a fixed order of rows, atomically."""
    table = table.sort_values([*SETTING, "seed"], kind="stable")[list(COLUMNS)].astype({"edge_bits": "Int64"})
    write_text(file, table.to_csv(index=False, lineterminator="\n"))


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and spread (largest minus smallest) of the drop over the seeds, and the mean time, one line a setting."""
    groups = table.groupby(list(SETTING), sort=False, dropna=False)
    return groups.agg(fp=("fp_accuracy", "first"), accuracy=("accuracy", "mean"), drop=("drop", "mean"),
                      spread=("drop", lambda d: d.max() - d.min()), seconds=("seconds", "mean"),
                      seeds=("seed", "count")).round(2).reset_index()
