"""The commands `train` and `generator`: full-precision networks from data, generators from a network's statistics."""
from pathlib import Path

from .arguments import Parser, WrongArgument, answer, positive, rate, writable
from .named_model import named


def add_arguments(sub: Parser) -> None:
    sub.add_argument("--epochs", type=positive, metavar="N", help="default: as the shipped network")
    sub.add_argument("--lr", type=rate, metavar="RATE",
                     help="peak of the one-cycle schedule; default: as the shipped network")
    sub.add_argument("--start", type=Path, metavar="FILE", help="checkpoint to train further: one more cycle")
    sub.add_argument("--out", type=Path, metavar="FILE",
                     help="checkpoint to write, with a card beside it; default in data/cache")


def add_generator_arguments(sub: Parser) -> None:
    sub.add_argument("--iterations", type=positive, default=1000, metavar="N", help="default 1000")
    sub.add_argument("--out", type=Path, metavar="FILE",
                     help="file to write, with a card beside it; default in data/cache")


def run(args) -> None:
    from .checkpoints import checkpoint_path
    from .data import cache_folder
    from .tasks import CLASSIFICATION, task_of
    from .train import EPOCHS, train_checkpoint
    from .train_scenes import train_scene_checkpoint
    home = args.model.split("/")[0]
    if "/" in args.model and args.profile not in (None, home):
        raise WrongArgument(f"{args.model} is trained on {home}, not on profile {args.profile}")
    name, dataset, _ = named(args)
    out = args.out or cache_folder() / checkpoint_path(name).name
    writable(out)
    if task_of(name) is not CLASSIFICATION:
        facts = train_scene_checkpoint(name, dataset, out, epochs=args.epochs, seed=args.seed, peak=args.lr,
                                       start=args.start, data=args.data)
    else:
        facts = train_checkpoint(name, dataset, out, epochs=args.epochs or EPOCHS[name], peak=args.lr or 0.2, seed=args.seed,
                                 start=args.start)
    answer(args, facts | {"out": str(out)}, f"{name}: {facts['accuracy']} % after {facts['epochs']} epochs, written to {out}")


def run_generator(args) -> None:
    from .checkpoints import generator_path
    from .data import cache_folder
    from .tasks import CLASSIFICATION, task_of
    from .zscgan import train_generator_checkpoint
    name, dataset, network = named(args)
    if task_of(name) is not CLASSIFICATION:
        raise WrongArgument(f"{name} is no classifier: recipes zs-cgan and zaq train its generator as they go")
    out = args.out or cache_folder() / generator_path(name).name
    writable(out)
    facts = train_generator_checkpoint(name, network, dataset.image_shape, out, iterations=args.iterations, seed=args.seed,
                                       runs=cache_folder() / "runs")
    answer(args, facts | {"out": str(out)}, f"{name}: statistics {facts['statistics']}, the classifier believes "
            f"{facts['believed']} % of the labels, written to {out}")
