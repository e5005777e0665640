"""The command line: `python -m zsq_lab COMMAND`. Each command is a thin layer over a function of the module.

Standard output carries the answer (with `--json` one JSON object and nothing else), standard error progress and
problems. Exit status 0, or with one clear line on stderr 2 for a wrong argument and 1 for anything else.
"""
import os
import sys
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from pathlib import Path

from . import export_command, sweep_command
from .arguments import Parser, WrongArgument, answer, bit_width, positive


def build_parser() -> Parser:
    parser = Parser(prog="python -m zsq_lab", description="Quantize neural networks without any training data.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)

    def command(name: str, summary: str, run, *, model: bool = False) -> Parser:
        sub = commands.add_parser(name, help=summary, description=summary)
        sub.set_defaults(run=run)
        sub.add_argument("--json", action="store_true", help="print one JSON object")
        if model:
            sub.add_argument("--model", required=True, help="resnet20, or with its data set cifar10/resnet20; see `models`")
            sub.add_argument("--profile", help="cifar10 (scenes: camvid, bccd) or embedded; default: the first that is there")
            sub.add_argument("--data", type=Path, metavar="FOLDER", help="scenes: a folder laid out as CamVid or Pascal VOC")
            sub.add_argument("--seed", type=int, default=0)
        return sub

    command("doctor", "check this computer and say what to do", _doctor)
    command("recipes", "list the recipes", _recipes)
    command("models", "list the networks that the lab ships", _models)
    sub = command("download", "get a data set, verified", _download)
    sub.add_argument("name", choices=["cifar10", "camvid", "bccd", "imagenet"])
    sub.add_argument("--out", type=Path, help="folder, default data/cache")
    sub = command("quantize", "quantize a network by a recipe and measure it", _quantize, model=True)
    sub.add_argument("--recipe", default="distilled")
    sub.add_argument("-w", "--weight-bits", type=bit_width, default=8, metavar="BITS")
    sub.add_argument("-a", "--activation-bits", type=bit_width, default=8, metavar="BITS")
    sub.add_argument("--edge-bits", type=bit_width, metavar="BITS", help="bits of the first and last layer")
    sub.add_argument("--convention", default="deployable")
    sub.add_argument("--budget", default="standard")
    sub.add_argument("--size-budget", type=float, metavar="SHARE",
                     help="mixed precision: weights in this share of their float size, 0.15 for instance, instead of -w")
    sub.add_argument("--stages", nargs="+", metavar="LAYER", help="compare student and teacher at these layers' inputs")
    sub.add_argument("--n-test", type=positive, help="measure on the first N test images; default all")
    sub.add_argument("--out", type=Path, help="write the quantized model (safetensors)")
    sub = command("synthesize", "make images from a network's statistics", _synthesize, model=True)
    sub.add_argument("-n", type=positive, default=256, help="how many images")
    sub.add_argument("--budget", default="standard")
    sub.add_argument("--out", type=Path, required=True, help="the .npz file to write, or a folder for arrays, pictures and a manifest")
    sub = command("evaluate", "measure a network, or a quantized one that was written", _evaluate, model=True)
    sub.add_argument("--quantized", type=Path, help="file written by `quantize --out`")
    sub.add_argument("--n-test", type=positive)
    sub = command("train", "train a full-precision network; the same command resumes", _train, model=True)
    sub.add_argument("--epochs", type=positive, help="default: as the shipped network")
    sub.add_argument("--lr", type=float, help="peak of the one-cycle schedule; default: as the shipped network")
    sub.add_argument("--start", type=Path, help="checkpoint to train further: one more cycle")
    sub.add_argument("--out", type=Path, help="checkpoint to write, with a card beside it; default in data/cache")
    sub = command("generator", "train a conditional generator from a network's statistics; the same command resumes",
                  _generator, model=True)
    sub.add_argument("--iterations", type=positive, default=1000)
    sub.add_argument("--out", type=Path, help="file to write, with a card beside it; default in data/cache")
    sub = command("sweep", "measure many settings, on one machine or many; the same command resumes", sweep_command.run)
    sweep_command.add_arguments(sub)
    sub = command("export", "write a quantized network for another runtime, compare and measure it",
                  lambda args: export_command.run(args, _classifier), model=True)
    export_command.add_arguments(sub)
    return parser


def _doctor(args) -> int:
    from . import doctor
    return doctor.main(["--json"] if args.json else [])


def _recipes(args) -> None:
    from .recipes import RECIPES
    rows = [{"recipe": r.name, "summary": r.summary, "looks_at": r.looks_at} for r in RECIPES.values()]
    answer(args, {"recipes": rows}, "\n".join(f"{r['recipe']:14} {r['summary']} [{r['looks_at']}]" for r in rows))


def _models(args) -> None:
    from .checkpoints import MODELS, describe
    from .imagenet_models import PACKAGED
    rows = [describe(name) for name in (*MODELS, *PACKAGED)]
    lines = [f"{row['model']:26} {row['parameters']:>9,} parameters  " + (f"{row['accuracy']:.2f} %" if row["accuracy"]
             is not None else row.get("weights", "no checkpoint")) for row in rows]
    lines += ["imagenet/NAME              any classifier of torchvision: resnet18, resnet50, mobilenet_v2, ..."]
    answer(args, {"models": rows}, "\n".join(lines))


def _download(args) -> None:
    from .data import cache_folder
    from .download import download
    folder = args.out or cache_folder()
    download(args.name, folder)
    answer(args, {"data": args.name, "folder": str(folder)}, f"{args.name} is in {folder}")


def _model(args):
    """(name, data set, network) of the arguments; wrong names are wrong arguments."""
    from .checkpoints import full_name, load_model
    from .data import DataError
    from .imagenet_models import is_imagenet
    from .tasks import CLASSIFICATION, task_of
    if is_imagenet(args.model):
        raise WrongArgument(f"{args.model} can be quantized, evaluated and synthesized from; `{args.command}` is for the "
                            "networks of the lab")
    task = task_of(args.model)
    if args.data and task is CLASSIFICATION:
        raise WrongArgument("--data names a folder of scenes: use it with a segmenter or detector")
    try:
        profile = args.profile or (args.model.split("/")[0] if "/" in args.model else None)
        dataset = task.dataset(profile, args.data)
        name = full_name(args.model, dataset.name)
    except DataError:
        raise
    except ValueError as error:
        raise WrongArgument(error) from None
    if args.command == "train":
        return name, dataset, None
    return name, dataset, load_model(name)[0]


def _classifier(args):
    """As `_model`, for the commands that compare classes; ImageNet's images come from their folder."""
    from .tasks import CLASSIFICATION, task_of
    if args.model.startswith("imagenet/"):
        from .imagenet_command import load_with_images
        return load_with_images(args)
    if task_of(args.model) is not CLASSIFICATION:
        raise WrongArgument(f"{args.command} takes classifiers: {args.model} is none (from Python, zsq_lab.export takes any network)")
    return _model(args)


def _quantize(args) -> None:
    from .checkpoints import save_model
    from .data import cache_folder
    from .lab import real_images
    from .layers import CONVENTIONS, QuantConfig
    from .recipes import BUDGETS, RECIPES, quantize
    from .tasks import task_of
    for value, known, kind in ((args.recipe, RECIPES, "recipe"), (args.budget, BUDGETS, "budget"),
                               (args.convention, CONVENTIONS, "convention")):
        if value not in known:
            raise WrongArgument(f"unknown {kind} '{value}': expected one of {', '.join(known)}")
    _writable(args.out)
    if args.model.startswith("imagenet/"):
        from .imagenet_command import run_quantize
        return run_quantize(args, QuantConfig(args.weight_bits, args.activation_bits, args.edge_bits, args.convention))
    name, dataset, network = _model(args)
    config = QuantConfig(args.weight_bits, args.activation_bits, args.edge_bits, args.convention)
    needs_images = RECIPES[args.recipe].needs_images
    images = real_images(dataset.train(), dataset, len(dataset.train()), args.seed) if needs_images else None
    result = quantize(network, config, args.recipe, image_shape=dataset.image_shape, seed=args.seed,
                      budget=args.budget, images=images, progress=True, resume=cache_folder() / "runs",
                      stages=args.stages, size_budget=args.size_budget, task=task_of(name))
    test, task = dataset.test(), task_of(name)
    measured = [task.measure(model, test, dataset, args.n_test, progress=True) for model in (network, result.model)]
    before, after = (values[task.metric] for values in measured)
    report = {key: value for key, value in result.report.items() if key != "config"}
    fields = {"model": name, "weight_bits": args.weight_bits, "activation_bits": args.activation_bits,
              "edge_bits": args.edge_bits, "fp_accuracy": round(before, 4), "accuracy": round(after, 4),
              "drop": round(before - after, 4), "profile": dataset.name,
              "n_test": min(args.n_test or len(test), len(test)), "metric": task.metric, **_details(measured[1]), **report}
    if args.out:
        save_model(result.model, args.out, fields | {"config": result.report["config"],
                                                     "image_shape": list(dataset.image_shape), "classes": len(dataset.classes)})
        fields["out"] = str(args.out)
    config = QuantConfig(**result.report["config"])  # with the bits of each layer, where a size budget asked for them
    answer(args, fields, f"{name}, {args.recipe}, {config}, seed {args.seed}, budget {args.budget}\n"
            f"{task.metric} {after:.2f} %, full precision {before:.2f} %, drop {before - after:.2f} points "
            f"({fields['n_test']} test images)\n{report['bytes_before'] / 1000:.0f} kB to "
            f"{report['bytes_after'] / 1000:.0f} kB in {report['seconds']:.1f} s on {report['threads']} threads"
            + (f", written to {args.out}" if args.out else ""))


def _synthesize(args) -> None:
    from .calibration_set import save_npz, write_calibration_set
    from .recipes import BUDGETS, synthesize
    from .tasks import task_of
    if args.budget not in BUDGETS:
        raise WrongArgument(f"unknown budget '{args.budget}': expected one of {', '.join(BUDGETS)}")
    if args.out.suffix not in ("", ".npz") or args.out.is_file() and not args.out.suffix:
        raise WrongArgument(f"--out {args.out}: expected a folder, or a name that ends in .npz")
    if args.out.suffix:
        _writable(args.out)
    if args.model.startswith("imagenet/"):
        from .imagenet_command import load
        name, network, dataset = load(args)
    else:
        name, dataset, network = _model(args)
    images = synthesize(network, args.n, image_shape=dataset.image_shape, seed=args.seed, budget=args.budget,
                        progress=True, task=task_of(name))
    if args.out.suffix:
        save_npz(args.out, images, dataset)
    else:
        write_calibration_set(args.out, images, dataset, {"model": name, "seed": args.seed, "budget": args.budget})
    answer(args, {"model": name, "n": args.n, "shape": list(images.shape), "seed": args.seed, "out": str(args.out)},
            f"{args.n} images {list(images.shape[1:])} of {name} written to {args.out}: `images` is normalised, "
            "pixels = images * std + mean")


def _evaluate(args) -> None:
    if args.model.startswith("imagenet/"):
        from .imagenet_command import run_evaluate
        return run_evaluate(args)
    from .checkpoints import load_quantized
    from .tasks import task_of
    name, dataset, network = _model(args)
    facts, task = {}, task_of(name)
    if args.quantized:
        network, facts = load_quantized(args.quantized)
        if facts["model"] != name:
            raise WrongArgument(f"{args.quantized} holds {facts['model']}, not {name}")
    test = dataset.test()
    values = task.measure(network, test, dataset, args.n_test, progress=True)
    measured = values[task.metric]
    n_test = min(args.n_test or len(test), len(test))
    kept = {key: facts[key] for key in ("recipe", "weight_bits", "activation_bits", "convention") if key in facts}
    described = " ".join(f"{key} {value}" for key, value in kept.items()) or "full precision"
    answer(args, {"model": name, **kept, "accuracy": round(measured, 4), "profile": dataset.name, "n_test": n_test,
                   "metric": task.metric, **_details(values)},
            f"{name}, {described}: {task.metric} {measured:.2f} % ({n_test} test images)")


def _train(args) -> None:
    from .checkpoints import checkpoint_path
    from .data import cache_folder
    from .tasks import CLASSIFICATION, task_of
    from .train import EPOCHS, train_checkpoint
    from .train_scenes import train_scene_checkpoint
    name, dataset, _ = _model(args)
    if dataset.name != name.split("/")[0]:
        raise WrongArgument(f"{name} is trained on {name.split('/')[0]}, not on profile {dataset.name}")
    out = args.out or cache_folder() / checkpoint_path(name).name
    _writable(out)
    if task_of(name) is not CLASSIFICATION:
        facts = train_scene_checkpoint(name, dataset, out, epochs=args.epochs, seed=args.seed, peak=args.lr, start=args.start)
        return answer(args, facts | {"out": str(out)}, f"{name}: {facts['accuracy']} % after "
                      f"{facts['epochs']} epochs, written to {out}")
    facts = train_checkpoint(name, dataset, out, epochs=args.epochs or EPOCHS[name], peak=args.lr or 0.2, seed=args.seed,
                             start=args.start)
    answer(args, facts | {"out": str(out)}, f"{name}: {facts['accuracy']} % after {facts['epochs']} epochs, written to {out}")


def _generator(args) -> None:
    from .checkpoints import generator_path
    from .data import cache_folder
    from .tasks import CLASSIFICATION, task_of
    from .zscgan import train_generator_checkpoint
    name, dataset, network = _model(args)
    if task_of(name) is not CLASSIFICATION:
        raise WrongArgument(f"{name} is no classifier: recipes zs-cgan and zaq train its generator as they go")
    out = args.out or cache_folder() / generator_path(name).name
    _writable(out)
    facts = train_generator_checkpoint(name, network, dataset.image_shape, out, iterations=args.iterations, seed=args.seed,
                                       runs=cache_folder() / "runs")
    answer(args, facts | {"out": str(out)}, f"{name}: statistics {facts['statistics']}, the classifier believes "
            f"{facts['believed']} % of the labels, written to {out}")


def _details(measured: dict) -> dict:
    """The measured numbers beyond the one that counts, rounded: mAP beside mAP50, the classes."""
    return {key: {name: round(part, 2) for name, part in value.items()} if isinstance(value, dict) else round(value, 4)
            for key, value in measured.items() if key != "accuracy"}


def _writable(path: Path | None) -> None:
    """A run of minutes must not end at a folder that does not exist."""
    if path is not None and path.is_dir():
        raise WrongArgument(f"--out {path} is a folder: name a file")
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)


def _one_of_several(args) -> int:
    """The command in one of several processes that train together: the first writes and answers, the others help."""
    from .distributed import is_first, joined
    with joined(), ExitStack() as silenced:
        if not is_first():
            silenced.enter_context(redirect_stdout(silenced.enter_context(open(os.devnull, "w"))))
            silenced.enter_context(redirect_stderr(silenced.enter_context(open(os.devnull, "w"))))
            if getattr(args, "out", None):
                args.out = args.out.with_name(f".{os.getpid()}.{args.out.name}")
                silenced.callback(args.out.unlink, missing_ok=True)
        return args.run(args) or 0


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        if os.environ.get("WORLD_SIZE", "1") != "1":  # started by torchrun
            return _one_of_several(args)
        return args.run(args) or 0
    except WrongArgument as error:
        print(f"zsq_lab: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("zsq_lab: interrupted", file=sys.stderr)
        return 130
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        print(f"zsq_lab: {' '.join(str(error).split())}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
