"""The command `export`: its arguments, and the quantized model that they name; `export_comparison` writes and measures it."""
from pathlib import Path

from .arguments import Parser, WrongArgument, known, positive, writable
from .evaluate_command import read_quantized
from .named_model import named_classifier
from .quantize_command import add_widths

SUFFIXES = (".onnx", ".safetensors")


def add_arguments(sub: Parser) -> None:
    sub.add_argument("--recipe", default="distilled", metavar="NAME", help="see `recipes`; default distilled")
    add_widths(sub)
    sub.add_argument("--budget", default="standard", metavar="NAME",
                     help="quick, standard (default) or long: how much work")
    sub.add_argument("--quantized", type=Path, metavar="FILE",
                     help="export this model, written by `quantize --out`, instead of running a recipe")
    sub.add_argument("--images", type=Path, metavar="SET",
                     help=".onnx: calibration images for the added ranges, from `synthesize`; default: made now")
    sub.add_argument("--n-test", type=positive, metavar="N",
                     help="compare on the first N test images; default all, of ImageNet's at most 5,000")
    sub.add_argument("--threads", type=positive, metavar="N", help=".onnx: of the measurement; default as PyTorch")
    sub.add_argument("--out", type=Path, required=True, metavar="FILE",
                     help=".onnx: for ONNX Runtime; .safetensors: packed, any width")


def run(args) -> None:
    from .calibration_set import read_calibration_set
    from .export_comparison import write_onnx, write_packed
    from .job import BUDGETS
    from .recipes import RECIPES
    from .resume import kept_until_written
    known("recipe", args.recipe, RECIPES)
    known("budget", args.budget, BUDGETS)
    if args.out.suffix not in SUFFIXES or args.out.is_dir():
        raise WrongArgument(f"--out {args.out}: expected a file that ends in {' or '.join(SUFFIXES)}")
    if args.out.suffix == ".onnx" and max(args.weight_bits, args.activation_bits, args.edge_bits or 0) > 8:
        raise WrongArgument("integer runtimes take at most 8 bits: choose -w and -a up to 8, or --out with .safetensors")
    if RECIPES[args.recipe].needs_images:
        raise WrongArgument(f"recipe '{args.recipe}' needs real images: write its model with `quantize --out` and "
                            "export that with --quantized")
    if args.out.suffix == ".safetensors" and (args.images or args.threads):
        raise WrongArgument("--images and --threads are for ONNX Runtime: leave them out, or name a file that ends in .onnx")
    if args.out.suffix == ".onnx":  # before minutes of work
        from .export import require_onnx
        from .onnx_runtime import require_runtime
        require_onnx(), require_runtime()
    calibration = read_calibration_set(args.images) if args.images else None
    writable(args.out)
    name, dataset, network = named_classifier(args)
    if calibration is not None and calibration.shape[1:] != dataset.image_shape:
        raise WrongArgument(f"--images {args.images} holds images {list(calibration.shape[1:])}, expected "
                            f"{list(dataset.image_shape)}: make them with `synthesize --model {name}`")
    if args.out.suffix == ".onnx":
        from .export import float_program
        from .onnx_graph import GraphWriter
        GraphWriter(float_program(network, dataset.image_shape))  # operations that ONNX lacks are refused before the work
    with kept_until_written():  # calibrating, comparing and writing come after the recipe
        student, facts = _student(args, name, dataset, network)
        wanted = ("model", "recipe", "config", "convention", "seed", "budget", "seconds", "image_shape")
        kept = {key: facts[key] for key in wanted if key in facts}
        if args.out.suffix == ".onnx":
            write_onnx(args, network, student, dataset, kept, calibration)
        else:
            write_packed(args, network, student, dataset, kept)


def _student(args, name: str, dataset, network) -> tuple:
    """The quantized model and the facts about it: that of --quantized, or what the recipe makes."""
    from .data import cache_folder
    from .layers import QuantConfig
    from .recipes import quantize
    if not args.quantized:
        config = QuantConfig(args.weight_bits, args.activation_bits, args.edge_bits)
        result = quantize(network, config, args.recipe, image_shape=dataset.image_shape, seed=args.seed,
                          budget=args.budget, progress=True, resume=cache_folder() / "runs")
        return result.model, result.report | {"model": name, "image_shape": list(dataset.image_shape)}
    student, facts = read_quantized(args.quantized, name)
    if args.out.suffix == ".onnx":  # before images are made for it
        from .deploy import check_deployable
        from .recorder import record
        try:
            check_deployable(record(student, dataset.image_shape))
        except ValueError as error:
            raise WrongArgument(f"--quantized {args.quantized}: {error}") from None
    return student, facts
