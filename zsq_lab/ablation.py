"""What each ingredient of `best` is worth: the recipe again and again, each time with one thing changed (notebook 05).

`python -m zsq_lab.ablation --csv data/results/ablation/NAME.csv` measures all variants for three seeds; rows that the table
has already are not measured again, so an interrupted run goes on.
"""
import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from .arguments import Parser, bit_width, positive, writable
from .arguments import seed as seed_number
from .checkpoints import load_model
from .cifar10 import DataError
from .data import find_dataset
from .distill import FineTuning, dense_layers, feature_error, knowledge_loss, stage_layers, suited_loss
from .equalize import equalize
from .evaluate import accuracy
from .graph import Graph, trace
from .image_maker import make_images
from .job import CALIBRATION_BATCH, Budget, learning_rate, named_budget, pool_sampler
from .lab import real_images
from .layers import QuantConfig, convert, quantize_model
from .patches import patched
from .ranges import fit_input_ranges, fit_weight_ranges
from .results import write_text
from .tasks import CLASSIFICATION

COLUMNS = ("model", "variant", "weight_bits", "activation_bits", "edge_bits", "budget", "seed", "fp_accuracy", "accuracy",
           "drop", "seconds", "n_test", "threads")
KEY = (*COLUMNS[:7], "n_test")  # what names a row


@dataclass(frozen=True)
class Variant:
    """`best` as it is at three bits, with one thing changed: what it learns from, where and how it is compared, what may
    move, how it starts.

    images: settings of `optimise_images` that differ. source: "made", "noise" or "real". find: the layers that are
    compared; outputs_only: none of them; thorough: by `suited_loss`, not always `knowledge_loss`. mirrored: half of each batch.
    patches: of other images, in half of it. frozen: "weights" or "scales" stay as they are. searched: ranges of least
    error, not of the extremes. equalized: weights as `equalize` leaves them, before all else. The rate goes by the bits for
    all of them, which for ResNet-20 is the one that `best` takes.
    """

    images: dict = field(default_factory=dict)
    source: str = "made"
    find: Callable[[Graph], list[str]] = dense_layers
    outputs_only: bool = False
    thorough: bool = True
    mirrored: bool = True
    patches: bool = False
    frozen: str = ""
    searched: bool = True
    equalized: bool = True


VARIANTS = {
    "best": Variant(),
    "compared only where the resolution changes": Variant(find=stage_layers),
    "compared only at the output": Variant(outputs_only=True),
    "logits compared by divergence alone": Variant(thorough=False),
    "scales stay": Variant(frozen="scales"),
    "weights stay": Variant(frozen="weights"),
    "ranges from the extremes": Variant(searched=False),
    "images never mirrored": Variant(mirrored=False),
    "patches of other images, as at two bits": Variant(patches=True),
    "images in colours each for itself": Variant(images={"correlation": 0.0}),
    "images of no class": Variant(images={"class_weight": 0.0}),
    "images of a class, statistics ignored": Variant(images={"statistics_weight": 0.0, "class_weight": 1.0}),
    "weights not equalized": Variant(equalized=False),
    "noise for images": Variant(source="noise"),
    "real images (reference)": Variant(source="real"),
}


def measure(name: str, model: str, config: QuantConfig, *, budget: str, seed: int, n_test: int | None = None) -> dict:
    """One row, COLUMNS: how far the variant's student gets on the test images. Raises KeyError for an unknown variant."""
    variant, dataset, network = VARIANTS[name], find_dataset(model.split("/")[0]), load_model(model)[0]
    shape, test, started = dataset.image_shape, dataset.test(), time.perf_counter()
    work = named_budget(budget, shape, CLASSIFICATION)
    images = _images(variant.source, model, work, seed, tuple(variant.images.items()))
    teacher, student = convert(network, config, shape)
    if variant.equalized:
        teacher = equalize(teacher, shape)
        student = copy.deepcopy(teacher)
        quantize_model(student, config, trace(student, shape))
    fit_weight_ranges(student, search=variant.searched)
    fit_input_ranges(student, images.split(CALIBRATION_BATCH), search=variant.searched, seed=seed)
    learn(student, teacher, images, variant, work, learning_rate(config), seed, shape)
    seconds = time.perf_counter() - started
    full, reached = _full_accuracy(model, n_test), accuracy(student.eval(), test, dataset, limit=n_test)
    return dict(zip(COLUMNS, (model, name, config.weight_bits, config.activation_bits, config.edge_bits, budget, seed,
                              round(full, 2), round(reached, 2), round(full - reached, 2), round(seconds, 1),
                              min(n_test or len(test), len(test)), torch.get_num_threads()), strict=True))


def learn(student: nn.Module, teacher: nn.Module, images: Tensor, variant: Variant, budget: Budget, rate: float,
          seed: int, shape: tuple[int, ...]) -> None:
    """Fine-tune the student in place, as `distill.finetune` does, with what the variant changes."""
    random, iterations = torch.Generator().manual_seed(seed), budget.finetune_iterations

    def unmirrored(random: torch.Generator) -> Tensor:
        return images[torch.randint(len(images), (budget.batch_size,), generator=random)]

    def of_outputs(own: Tensor, wanted: Tensor, _own_features: dict, _wanted_features: dict) -> Tensor:
        return CLASSIFICATION.output_loss(own, wanted)

    draw = pool_sampler(images, budget.batch_size) if variant.mirrored else unmirrored
    draw = patched(draw) if variant.patches else draw
    graph = trace(teacher, shape)
    loss = of_outputs if variant.outputs_only else knowledge_loss
    if variant.thorough and not variant.outputs_only:
        loss = suited_loss(feature_error(student, teacher, images[:budget.batch_size], dense_layers(graph)))
    with FineTuning(student, teacher, variant.find(graph), rate, loss) as tuning:
        tuning.rates = [0.0 if (group == 0) == (variant.frozen == "weights") and variant.frozen else own
                        for group, own in enumerate(tuning.rates)]  # the first group holds weights, all others scales
        for iteration in tqdm(range(iterations), "fine-tuning", leave=False):
            tuning.step(draw(random), iteration / iterations)


@cache
def _images(source: str, model: str, budget: Budget, seed: int, settings: tuple) -> Tensor:
    """What a variant learns from; made once for all variants that differ elsewhere."""
    dataset = find_dataset(model.split("/")[0])
    if source == "real":
        return real_images(dataset.train(), dataset, budget.images, seed)
    if source == "noise":
        return torch.randn(budget.images, *dataset.image_shape, generator=torch.Generator().manual_seed(seed))
    teacher, _ = convert(load_model(model)[0], QuantConfig(), dataset.image_shape)
    return make_images(teacher, budget.images, dataset.image_shape, iterations=budget.image_iterations,
                       batch_size=budget.image_batch, seed=seed, progress=True, **dict(settings))[0]


@cache
def _full_accuracy(model: str, n_test: int | None) -> float:
    dataset = find_dataset(model.split("/")[0])
    return accuracy(load_model(model)[0], dataset.test(), dataset, limit=n_test)


def load(csv: Path) -> pd.DataFrame:
    """The rows measured so far, COLUMNS; none where there is no table. Raises ValueError for a table of another kind."""
    if not csv.exists():
        return pd.DataFrame(columns=list(COLUMNS))
    table = pd.read_csv(csv)
    if list(table.columns) != list(COLUMNS):
        raise ValueError(f"{csv} has columns {list(table.columns)}, expected {list(COLUMNS)}: name another file")
    return table


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean drop of each variant in points, least and largest over the seeds, and what the change costs beside `best`."""
    setting = [column for column in KEY if column not in ("variant", "seed")]
    groups = table.groupby([*setting, "variant"], sort=False, dropna=False)
    means = groups.agg(drop=("drop", "mean"), low=("drop", "min"), high=("drop", "max"), seeds=("seed", "count")).reset_index()
    own = means[means.variant == "best"].set_index(setting)["drop"]
    means["cost"] = means["drop"] - means.set_index(setting).index.map(own)
    return means.round(2)


def main(argv: list[str] | None = None) -> None:
    """Measure what the table lacks; exit status 2 for a wrong argument, 1 for what else stands in the way."""
    parser = Parser(prog="python -m zsq_lab.ablation", description="Measure what each ingredient of `best` is worth.")
    parser.add_argument("--model", default="cifar10/resnet20")
    parser.add_argument("-w", type=bit_width, default=3, dest="weight_bits")
    parser.add_argument("-a", type=bit_width, default=3, dest="activation_bits")
    parser.add_argument("--edge-bits", type=bit_width)
    parser.add_argument("--budget", default="quick")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=seed_number, default=[0, 1, 2])
    parser.add_argument("--n-test", type=positive, help="measure on the first N test images; default all")
    parser.add_argument("--csv", type=Path, required=True, help="the table; rows that it has stay")
    args = parser.parse_args(argv)
    try:
        writable(args.csv, "--csv")
        config = QuantConfig(args.weight_bits, args.activation_bits, args.edge_bits)
        rows = load(args.csv).to_dict("records")
        there = len(find_dataset(args.model.split("/")[0]).test())
        n_test = min(args.n_test or there, there)
        for seed in args.seeds:
            for name in args.variants:
                key = (args.model, name, args.weight_bits, args.activation_bits, args.edge_bits, args.budget, seed, n_test)
                if any(_key(row) == key for row in rows):
                    continue
                rows.append(measure(name, args.model, config, budget=args.budget, seed=seed, n_test=n_test))
                write_text(args.csv, pd.DataFrame(rows, columns=list(COLUMNS)).astype({"edge_bits": "Int64"})
                           .to_csv(index=False, lineterminator="\n"))
    except (DataError, OSError, RuntimeError) as error:
        parser.fail(error)
    except ValueError as error:
        parser.error(str(error))
    print(summary(load(args.csv)).to_string(index=False))


def _key(row: dict) -> tuple:
    """What names a row; an empty cell of a table is None."""
    return tuple(None if pd.isna(row[column]) else row[column] for column in KEY)


if __name__ == "__main__":
    main()
