"""What the commands do with `imagenet/...` networks: the same words, images that stream from a folder, intervals.

Without a folder of images, agreement with the full-precision network on synthetic images that the recipe has not seen.
"""
import sys
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .arguments import WrongArgument, answer
from .code_version import files_version
from .data import Dataset, Split, cache_folder
from .evaluate_command import how_quantized, read_quantized
from .image_folder import ImageFolder, Preprocess, classes, find_images
from .image_maker import make_images
from .image_start import suited
from .imagenet_evaluate import BATCH, Share, denormalise, evaluate, normalise, synthetic_agreement
from .imagenet_models import check_name, load_imagenet
from .job import MAKERS, fingerprint
from .layers import QuantConfig, convert
from .quantize_command import quantized, uniform_bits
from .recipes import RECIPES
from .resume import RunState

REFERENCE_IMAGES = 64  # real ones for the reference recipes
IN_MEMORY = 5000  # real images, of 150 kB each, that are decoded at once unless another number is asked for
HELD_OUT, HELD_OUT_ITERATIONS, HELD_OUT_SEED = 32, 40, 1_000_003  # far from any seed that a recipe is given


def load(args) -> tuple[str, nn.Module, Preprocess]:
    """(full name, network, preprocessing) of the arguments; an unknown name is a wrong argument, and so is another place of
    the images."""
    if args.data or args.profile:
        raise WrongArgument("imagenet networks take their images from $ZSQ_IMAGENET: leave --data and --profile out")
    try:
        name = check_name(args.model)
    except ValueError as error:
        raise WrongArgument(error) from None
    return name, *load_imagenet(name)


def load_with_images(args) -> tuple[str, Dataset, nn.Module]:
    """(full name, data set, network): the first images of the folder in memory, as the lab's small data sets are.

    Without a folder: synthetic images that no recipe has seen, labelled by the network itself, and one line that says so.
    """
    folder = find_images()
    name, network, preprocess = load(args)
    if folder is None:
        print(f"no images here: what is called accuracy below is agreement with full precision on {HELD_OUT} synthetic "
              "images; set ZSQ_IMAGENET for accuracy", file=sys.stderr)
        kind, read = "imagenet, synthetic", partial(_own_split, network, preprocess)
    else:
        if args.n_test is None and len(folder) > IN_MEMORY:
            print(f"{IN_MEMORY:,} of the {len(folder):,} images are compared; --n-test {len(folder)} takes all",
                  file=sys.stderr)
        kind, read = "imagenet", partial(_split, folder.first(args.n_test or IN_MEMORY), preprocess)
    names = tuple(own for _, own in classes())
    dataset = Dataset(kind, names, preprocess.mean, preprocess.std, lambda split: read())
    dataset.image_shape = preprocess.image_shape
    return name, dataset, network


def _split(folder: ImageFolder, preprocess: Preprocess) -> Split:
    images, labels = torch.empty(len(folder), *preprocess.image_shape, dtype=torch.uint8), []
    with tqdm(total=len(folder), desc="reading", unit=" images", leave=False) as bar:
        for pixels, own in folder.batches(preprocess, BATCH):
            images[len(labels):len(labels) + len(own)] = torch.from_numpy(pixels).permute(0, 3, 1, 2)
            labels += own.tolist()
            bar.update(len(own))
    warn_unreadable(folder)
    return Split(images[:len(labels)], torch.tensor(labels))


@torch.no_grad()
def _own_split(network: nn.Module, preprocess: Preprocess) -> Split:
    teacher, _ = convert(network, QuantConfig(), preprocess.image_shape)
    images = held_out_images(teacher, preprocess.image_shape)
    pixels = (denormalise(images, preprocess) * 255).round().to(torch.uint8)
    shown = normalise(pixels.permute(0, 2, 3, 1), preprocess)
    return Split(pixels, torch.cat([teacher(batch).argmax(1) for batch in shown.split(BATCH)]))


def run_quantize(args, config: QuantConfig) -> None:
    """Quantize, measure on the folder (or on synthetic images), write where asked."""
    from .checkpoints import save_model
    folder = find_images()  # a folder that is not sound is an error now, not after the work
    name, network, preprocess = load(args)
    images = None
    if RECIPES[args.recipe].needs_images:
        images = reference_images(folder, preprocess)
    result = quantized(args, network, config, image_shape=preprocess.image_shape, images=images)
    config = QuantConfig(**result.report["config"])  # with the bits of each layer, where a size budget asked for them
    report = {key: value for key, value in result.report.items() if key != "config"}
    fields = {"model": name, "weight_bits": uniform_bits(args), "activation_bits": args.activation_bits,
              "edge_bits": args.edge_bits, "profile": "imagenet", **report}
    form = {"config": result.report["config"], "image_shape": list(preprocess.image_shape)}
    if args.out:
        save_model(result.model, args.out, fields | form)  # it is there, whatever becomes of the measuring
    fields |= beside_full_precision(result.model, network, preprocess, folder, args.n_test)
    if args.out:
        save_model(result.model, args.out, fields | form)
        fields["out"] = str(args.out)
    answer(args, fields, f"{name}, {args.recipe}, {config}, seed {args.seed}, budget {report['budget']}\n"
           f"{_text(fields)}\n{report['bytes_before'] / 1e6:.1f} MB to "
           f"{report['bytes_after'] / 1e6:.1f} MB in {report['seconds']:.1f} s on {report['threads']} threads"
           + (f", written to {args.out}" if args.out else ""))


def run_evaluate(args) -> None:
    """Measure a network, or a quantized one beside its full-precision form."""
    folder = find_images()
    name, network, preprocess = load(args)
    facts = {}
    if args.quantized:
        quantized, facts = read_quantized(args.quantized, name)
        measured = beside_full_precision(quantized, network, preprocess, folder, args.n_test)
    elif folder is None:
        raise ValueError("there are no images to evaluate a full-precision network on: set ZSQ_IMAGENET to a folder "
                         "with one folder of images per WordNet id, or to the official flat folder")
    else:
        images = folder.first(args.n_test)
        full = evaluate({"full": network}, images, preprocess, progress=True)["full"]
        measured = {"accuracy": round(full.top1.percent, 4), "interval": _rounded(full.top1), "top5": full.top5.percent,
                    "n_test": full.top1.n, "unreadable": images.unreadable}
        warn_unreadable(images)
    kept, described = how_quantized(facts)
    answer(args, {"model": name, **kept, "profile": "imagenet", **measured}, f"{name}, {described}: {_text(measured)}")


def beside_full_precision(model: nn.Module, network: nn.Module, preprocess: Preprocess, folder: ImageFolder | None,
                          n_test: int | None, *, workers: int | None = None) -> dict:
    """Fields that compare a quantized model with its full-precision network, on the folder or on synthetic images."""
    if folder is None:
        teacher, _ = convert(network, QuantConfig(), preprocess.image_shape)
        share = synthetic_agreement(model, teacher, held_out_images(teacher, preprocess.image_shape))
        return {"fp_accuracy": None, "accuracy": None, "drop": None, "n_test": 0, "agreement_synthetic": share.percent,
                "agreement_synthetic_interval": _rounded(share), "n_synthetic": share.n}
    images = folder.first(n_test)
    full, own = evaluate({"full": network, "own": model}, images, preprocess, workers=workers, progress=True).values()
    warn_unreadable(images)
    drop, half = own.drop(full)
    agreement = own.agreement(full)
    return {"fp_accuracy": round(full.top1.percent, 4), "accuracy": round(own.top1.percent, 4), "drop": round(drop, 4),
            "drop_interval": [round(drop - half, 2), round(drop + half, 2)], "interval": _rounded(own.top1),
            "fp_top5": round(full.top5.percent, 4), "top5": round(own.top5.percent, 4),
            "agreement": round(agreement.percent, 4), "agreement_interval": _rounded(agreement), "n_test": own.top1.n,
            "unreadable": images.unreadable}


def reference_images(folder: ImageFolder | None, preprocess: Preprocess) -> Tensor:
    """REFERENCE_IMAGES real images, spread over the folder, as the network takes them. ValueError without a folder."""
    if folder is None:
        raise ValueError("this recipe is a reference on real images: set ZSQ_IMAGENET to a folder of them, or use a "
                         "recipe without data")
    batches = folder.first(REFERENCE_IMAGES).batches(preprocess, BATCH, 0)
    return torch.cat([normalise(torch.from_numpy(pixels), preprocess) for pixels, _ in batches])


def held_out_images(teacher: nn.Module, image_shape: tuple[int, int, int], *, n: int = HELD_OUT,
                    iterations: int = HELD_OUT_ITERATIONS, runs: Path | None = None) -> Tensor:
    """Synthetic images [n, *image_shape] that no recipe has seen; made once and kept in the cache for each network."""
    settings = suited(teacher, image_shape, seed=HELD_OUT_SEED)
    key = fingerprint(teacher, "held out", files_version(MAKERS["images"]), list(image_shape), n, iterations, settings)
    run = RunState((runs or cache_folder() / "runs") / f"held_out_{key}")
    return make_images(teacher, n, image_shape, iterations=iterations, batch_size=min(n, 16), seed=HELD_OUT_SEED,
                       progress=True, run=run, settings=settings)[0]


def warn_unreadable(folder: ImageFolder) -> None:
    """One line on standard error that counts and names the files that were skipped."""
    if folder.unreadable:
        print(f"{len(folder.unreadable)} of {len(folder)} images could not be read and are left out: "
              f"{'; '.join(folder.unreadable[:5])}", file=sys.stderr)


def _rounded(share: Share) -> list[float]:
    return [round(end, 2) for end in share.interval]


def _text(fields: dict) -> str:
    if "agreement_synthetic" in fields:
        low, high = fields["agreement_synthetic_interval"]
        return (f"no images here: agreement with full precision on {fields['n_synthetic']} held-out synthetic images "
                f"{fields['agreement_synthetic']:.1f} % ({low:.0f} to {high:.0f}); set ZSQ_IMAGENET for accuracy")
    text = f"top-1 {fields['accuracy']:.2f} % ({fields['interval'][0]:.1f} to {fields['interval'][1]:.1f}), top-5 " \
           f"{fields['top5']:.2f} %"
    if "drop" in fields:
        text += (f"; full precision {fields['fp_accuracy']:.2f} %, drop {fields['drop']:.2f} points "
                 f"({fields['drop_interval'][0]:.1f} to {fields['drop_interval'][1]:.1f}), agreement "
                 f"{fields['agreement']:.2f} %")
    return f"{text} ({fields['n_test']} images, 95 % intervals)"
