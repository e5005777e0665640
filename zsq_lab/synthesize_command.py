"""The command `synthesize`: images from a network's statistics, for other toolkits to calibrate with."""
from pathlib import Path

from .arguments import Parser, WrongArgument, answer, known, positive, writable
from .named_model import named


def add_arguments(sub: Parser) -> None:
    sub.add_argument("-n", type=positive, default=256, metavar="N", help="how many images; default 256")
    sub.add_argument("--budget", default="standard", metavar="NAME",
                     help="quick, standard (default) or long: how much work")
    sub.add_argument("--out", type=Path, required=True,
                     help="the .npz file to write, or a folder for arrays, pictures and a manifest")


def run(args) -> None:
    from .calibration_set import check_place, save_npz, write_calibration_set
    from .data import cache_folder
    from .recipes import BUDGETS, synthesize
    from .tasks import task_of
    known("budget", args.budget, BUDGETS)
    if args.out.suffix not in ("", ".npz"):
        raise WrongArgument(f"--out {args.out}: expected a folder, or a name that ends in .npz")
    if args.out.suffix:
        writable(args.out)
    else:
        try:
            check_place(args.out)
        except ValueError as error:
            raise WrongArgument(f"--out {error}") from None
    if args.model.startswith("imagenet/"):
        from .imagenet_command import load
        name, network, dataset = load(args)
    else:
        name, dataset, network = named(args)
    images = synthesize(network, args.n, image_shape=dataset.image_shape, seed=args.seed, budget=args.budget,
                        progress=True, resume=cache_folder() / "runs", task=task_of(name))
    if args.out.suffix:
        save_npz(args.out, images, dataset)
    else:
        write_calibration_set(args.out, images, dataset, {"model": name, "seed": args.seed, "budget": args.budget})
    answer(args, {"model": name, "n": args.n, "shape": list(images.shape), "seed": args.seed, "out": str(args.out)},
            f"{args.n} images {list(images.shape[1:])} of {name} written to {args.out}: `images` is normalised, "
            "pixels = images * std + mean")
