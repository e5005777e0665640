"""The command `quantize`: a network through a recipe, measured beside full precision, written where asked."""
from pathlib import Path

from .arguments import Parser, WrongArgument, answer, bit_width, known, positive, share, writable
from .evaluate_command import details
from .named_model import named


def add_arguments(sub: Parser) -> None:
    sub.add_argument("--recipe", default="distilled", metavar="NAME", help="see `recipes`; default distilled")
    add_widths(sub)
    sub.add_argument("--convention", default="deployable", metavar="NAME", help="deployable (default) or literature")
    sub.add_argument("--budget", default="standard", metavar="NAME",
                     help="quick, standard (default) or long: how much work")
    sub.add_argument("--size-budget", type=share, metavar="SHARE",
                     help="mixed precision: weights in this share of their float size, 0.15 for instance, instead of -w")
    sub.add_argument("--stages", nargs="+", metavar="LAYER", help="compare student and teacher at these layers' inputs")
    sub.add_argument("--n-test", type=positive, metavar="N", help="measure on the first N test images; default all")
    sub.add_argument("--out", type=Path, metavar="FILE", help="write the quantized model (safetensors)")


def add_widths(sub: Parser) -> None:
    sub.add_argument("-w", "--weight-bits", type=bit_width, default=8, metavar="BITS", help="2 to 16, default 8")
    sub.add_argument("-a", "--activation-bits", type=bit_width, default=8, metavar="BITS", help="2 to 16, default 8")
    sub.add_argument("--edge-bits", type=bit_width, metavar="BITS",
                     help="of the first and last layer; default: as the others")


def run(args) -> None:
    from .layers import CONVENTIONS, QuantConfig
    from .recipes import BUDGETS, RECIPES
    from .resume import kept_until_written
    known("recipe", args.recipe, RECIPES)
    known("budget", args.budget, BUDGETS)
    known("convention", args.convention, CONVENTIONS)
    writable(args.out)
    config = QuantConfig(args.weight_bits, args.activation_bits, args.edge_bits, args.convention)
    with kept_until_written():  # measuring may take as long as the recipe
        if args.model.startswith("imagenet/"):
            from .imagenet_command import run_quantize
            run_quantize(args, config)
        else:
            _run(args, config)


def _run(args, config) -> None:
    from .checkpoints import save_model
    from .lab import real_images
    from .layers import QuantConfig
    from .recipes import RECIPES
    from .tasks import task_of
    name, dataset, network = named(args)
    task = task_of(name)
    test = dataset.test()  # before the work: a damaged file is named now, and not when it is done
    needs_images = RECIPES[args.recipe].needs_images
    images = real_images(dataset.train(), dataset, len(dataset.train()), args.seed) if needs_images else None
    result = quantized(args, network, config, image_shape=dataset.image_shape, images=images, task=task)
    report = {key: value for key, value in result.report.items() if key != "config"}
    fields = {"model": name, "weight_bits": uniform_bits(args), "activation_bits": args.activation_bits,
              "edge_bits": args.edge_bits, "profile": dataset.name, **report}
    form = {"config": result.report["config"], "image_shape": list(dataset.image_shape), "classes": len(dataset.classes)}
    if args.out:
        save_model(result.model, args.out, fields | form)  # it is there, whatever becomes of the measuring
    measured = [task.measure(model, test, dataset, args.n_test, progress=True) for model in (network, result.model)]
    before, after = (values[task.metric] for values in measured)
    fields |= {"fp_accuracy": round(before, 4), "accuracy": round(after, 4), "drop": round(before - after, 4),
               "n_test": min(args.n_test or len(test), len(test)), "metric": task.metric, **details(measured[1])}
    if args.out:
        save_model(result.model, args.out, fields | form)
        fields["out"] = str(args.out)
    config = QuantConfig(**result.report["config"])  # with the bits of each layer, where a size budget asked for them
    answer(args, fields, f"{name}, {args.recipe}, {config}, seed {args.seed}, budget {args.budget}\n"
            f"{task.metric} {after:.2f} %, full precision {before:.2f} %, drop {before - after:.2f} points "
            f"({fields['n_test']} test images)\n{report['bytes_before'] / 1000:.0f} kB to "
            f"{report['bytes_after'] / 1000:.0f} kB in {report['seconds']:.1f} s on {report['threads']} threads"
            + (f", written to {args.out}" if args.out else ""))


def quantized(args, network, config, **more):
    """`quantize` with what the arguments say of any network; a layer in --stages that it lacks is a wrong argument."""
    from .data import cache_folder
    from .job import UnknownLayer
    from .recipes import quantize
    try:
        return quantize(network, config, args.recipe, seed=args.seed, budget=args.budget, progress=True,
                        resume=cache_folder() / "runs", stages=args.stages, size_budget=args.size_budget, **more)
    except UnknownLayer as error:
        raise WrongArgument(error) from None


def uniform_bits(args) -> int | None:
    """The weight bits that all layers have; None where a size budget gave each its own."""
    return None if args.size_budget else args.weight_bits
