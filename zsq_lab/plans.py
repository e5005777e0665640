"""The measurements behind the recorded tables: `python -m zsq_lab sweep --plan NAME` repeats them.

Seed by seed and the most wanted first, so that an interrupted sweep leaves a table that can be read.
"""
from collections.abc import Iterator

from .results import Item

SEEDS = (0, 1, 2)
WIDTHS = (8, 6, 5, 4, 3, 2)
NO_IMAGES = ("rtn-noise", "rtn-bn", "dfq", "squant", "real-ranges")
WITH_IMAGES = ("best", "real-finetune", "zs-cgan", "zaq", "distilled", "gznq-finetuned", "zs-cgan-paper", "zaq-paper",
               "zeroq", "gznq")
RESNET, MOBILENET, LITE = "cifar10/resnet20", "cifar10/mobilenetv2", "imagenet/efficientnet_lite0"
SCENE_MODELS = ("camvid/segmenter", "camvid/lite_segmenter", "bccd/detector")
EDGES = 8  # bits of the first and last layer where the others have two


def foundation() -> Iterator[Item]:
    """Recipes without images at four widths, and what optimised images add, on both networks."""
    for seed in SEEDS:
        for model in (RESNET, MOBILENET):
            for recipe in NO_IMAGES:
                yield from (Item(model, recipe, bits, bits, seed=seed) for bits in (8, 6, 4, 3))
        yield Item(RESNET, "distilled", 4, 4, budget="quick", seed=seed)
        yield from (Item(RESNET, recipe, bits, bits, seed=seed)
                    for recipe in ("distilled", "zeroq", "real-finetune") for bits in (4, 3))
        yield from (Item(MOBILENET, "distilled", bits, bits, seed=seed) for bits in (4, 8))


def cifar10() -> Iterator[Item]:
    """The recipes that make images and the references, side by side under one protocol; the lab's best also longer."""
    recipes = ("best", "real-finetune", "zs-cgan", "zaq", "distilled", "zs-cgan-paper", "zaq-paper", "gznq-finetuned",
               "gznq")
    for seed in SEEDS:
        for recipe in recipes:
            yield from (Item(RESNET, recipe, bits, bits, seed=seed) for bits in (4, 3, 5))
            yield Item(RESNET, recipe, 2, 2, EDGES, seed=seed)
        yield from (Item(RESNET, "best", bits, bits, budget="quick", seed=seed) for bits in (4, 3, 5))
        yield Item(MOBILENET, "best", 4, 4, seed=seed)
        yield from (Item(RESNET, recipe, bits, bits, convention="literature", seed=seed)
                    for recipe in recipes[:4] for bits in (5, 4, 3))
    for seed in SEEDS:
        yield from (Item(RESNET, "best", bits, bits, budget="long", seed=seed) for bits in (4, 3, 5))
        yield Item(RESNET, "best", 2, 2, EDGES, budget="long", seed=seed)


def widths() -> Iterator[Item]:
    """Accuracy against bit width (notebook 06): without images and with the quick budget first, then the full sweep."""
    for seed in SEEDS:
        for model in (RESNET, MOBILENET):
            yield from (Item(model, recipe, bits, bits, seed=seed) for recipe in NO_IMAGES for bits in WIDTHS)
        for recipe in ("squant", "dfq", "rtn-bn"):
            yield Item(MOBILENET, recipe, 4, 8, seed=seed)
            yield Item.mixed(MOBILENET, recipe, 4 / 32, 8, seed=seed)
        quick = {"budget": "quick", "seed": seed}
        yield from (Item(RESNET, "zeroq", w, a, **quick) for w in WIDTHS for a in WIDTHS)
        yield from (Item(RESNET, recipe, bits, bits, **quick)
                    for recipe in ("best", "real-finetune", "zs-cgan", "zaq", "distilled") for bits in WIDTHS)
        yield from (Item(RESNET, "best", bits, bits, EDGES, **quick) for bits in (4, 3, 2))
        yield from (Item(RESNET, recipe, bits, bits, convention="literature", **quick)
                    for recipe in ("zeroq", "best") for bits in (5, 4, 3))
    for seed in SEEDS:
        yield from (Item(model, recipe, bits, bits, seed=seed) for model in (RESNET, MOBILENET)
                    for recipe in WITH_IMAGES for bits in WIDTHS)
    for seed in SEEDS:
        yield from (Item(model, recipe, bits, bits, budget="long", seed=seed) for model in (RESNET, MOBILENET)
                    for recipe in ("best", "zs-cgan") for bits in WIDTHS)


def dense() -> Iterator[Item]:
    """Masks and boxes: street scenes and blood cells, the lab's best and its references first; then with more work."""
    recipes = ("best", "real-finetune", "zaq", "distilled", "rtn-bn", "zeroq", "real-ranges")
    for budget in ("quick", "standard"):
        for seed in SEEDS:
            yield from (Item(model, recipe, bits, bits, budget=budget, seed=seed) for recipe in recipes
                        for model in SCENE_MODELS for bits in (4, 6, 8))


def imagenet() -> Iterator[Item]:
    """EfficientNet-Lite0 at 224x224 (notebook 07), the cheapest first; measured on the images in $ZSQ_IMAGENET."""
    for seed in SEEDS:
        quick = {"budget": "quick", "seed": seed}
        settings = ((8, 8, None), (6, 6, None), (4, 8, None), (4, 4, EDGES))
        yield Item(LITE, "rtn-noise", 8, 8, **quick)
        yield from (Item(LITE, recipe, w, a, edges, **quick) for recipe in ("squant", "rtn-bn", "dfq", "zeroq")
                    for w, a, edges in settings)
        yield from (Item(LITE, "best", w, a, edges, seed=seed) for w, a, edges in reversed(settings[1:]))
        yield from (Item(LITE, "real-ranges", w, a, edges, **quick) for w, a, edges in settings)


PLANS = {"foundation": foundation, "cifar10": cifar10, "widths": widths, "dense": dense, "imagenet": imagenet}
